"""The commands that reproduce the paper's figures and suggest a skip, on a few small images."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.presets import SeedRange
from experiments.results import Result, path_of, write
from linear_structure import datasets, get_parameters, parameters
from linear_structure.errors import run_command

SCRIPTS = Path(__file__).parents[1] / "scripts"
FIGURES = {
    "figure1",
    "figure2a",
    "figure2b",
    "figure2c",
    "figure2d",
    "figure3",
    "figure4",
    "figure5",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Twenty-four digits, their Gaussian, and one for each class."""
    folder = tmp_path_factory.mktemp("digits")
    images = datasets.load("digits").images()[:24]
    np.savez(folder / "few.npz", images=images.numpy())
    model, story = get_parameters.fit_gaussian(datasets.load(str(folder / "few.npz")))
    parameters.save(folder / "gaussian", model, story)
    return folder


@pytest.fixture
def run(files, tmp_path, monkeypatch):
    """Run a script in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *words: str) -> int:
        own = ("digits", "--dataset", files / "few.npz", "--parameters", files / "gaussian")
        monkeypatch.setattr(sys, "argv", [name, *map(str, own), "--threads", "1", *words])
        return run_command(runpy.run_path(str(SCRIPTS / name))["main"])

    return call


def test_all_figures_come_with_their_numbers_and_a_second_run_makes_none_again(run, tmp_path):
    words = ("--count", "3", "--seeds", "0-9", "--block", "10", "--skips", "0,6,9", "--steps", "10")
    assert run("reproduce_figures.py", *words) == 0
    folder = tmp_path / "figures" / "digits"
    assert {f"{name}.png" for name in (*FIGURES, "components", "teleports")} <= {
        path.name for path in folder.iterdir()
    }
    findings = json.loads((folder / "findings.json").read_text())
    assert 0.9 < findings["score explained by the Gaussian"]["80"] <= 1
    with (folder / "teleports.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["curve"] for row in rows} == {"Gaussian", "isotropic", "mixture of 10"}
    unskipped = {row["FD-digits"] for row in rows if row["skipped_steps"] == "0"}
    assert len(unskipped) == 1  # without a skip the model is not called
    made = {path: path.stat().st_mtime_ns for path in (folder / "models").iterdir()}
    assert "mixture-of-20.json" in {path.name for path in made}
    assert run("reproduce_figures.py", *words) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_skip_is_suggested_and_compared_with_the_sweep(run, tmp_path, capsys):
    assert run("suggest_skip.py", "--count", "4", "--tolerance", "0.05") == 0
    said = capsys.readouterr().out
    assert "of 18 steps" in said and "Nothing measured to compare with: no result" in said
    for skip, distance in ((0, 1.0), (4, 1.05), (6, 2.0)):
        inputs = {
            "preset": "digits",
            "n_skip": skip,
            "sigma_skip": 1.0,
            "seeds": [0, 9],
            "sigmas": [80.0, 0.002, 0.0],
            "distance_name": "FD-digits",
            "network": "n",
        }
        outputs = {"distance": distance, "count": 10, "nfe": 35 - 2 * skip}
        result = Result(inputs, outputs, {"seconds": 1.0, "host": "here", "versions": {}})
        write(path_of(Path("images_with_skips"), "digits", SeedRange(0, 9), skip), result)
    assert run("suggest_skip.py", "--count", "4") == 0
    assert "up to skip 4." in capsys.readouterr().out


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("suggest_skip.py", ("--count", "0"), "must be above 0"),
        ("suggest_skip.py", ("--by-class",), "this one has no classes"),
        ("reproduce_figures.py", ("--count", "1"), "quartiles need 2 or more"),
    ],
)
def test_misuse_is_one_sentence(run, capsys, script, words, said):
    assert run(script, *words) == 2
    assert said in capsys.readouterr().err
