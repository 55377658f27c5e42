"""The commands that reproduce the paper's figures and suggest a skip, on a few small images."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

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


def test_a_skip_is_suggested_and_compared_with_a_sweep_of_the_same_settings(run, capsys):
    words = ("--count", "4", "--steps", "10", "--skips", "0,2")
    assert run("suggest_skip.py", *words) == 0
    said = capsys.readouterr().out
    assert "of 10 steps" in said and "Nothing measured to compare with: no result" in said
    sweep = (*words[2:], "--seeds", "0-9", "--block", "10")
    assert run("run_experiments_with_skips.py", *sweep) == 0
    capsys.readouterr()
    assert run("suggest_skip.py", *words) == 0
    assert "Measured: the distance stays within 1.1 times" in capsys.readouterr().out
    assert run("suggest_skip.py", "--count", "4") == 0
    assert "another sigmas" in capsys.readouterr().out
    assert run("suggest_skip.py", *words, "--sampler", "unipc") == 0
    said = capsys.readouterr().out
    assert "calls, not 10." in said and "another sampler" in said


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("suggest_skip.py", ("--count", "0"), "must be above 0"),
        ("suggest_skip.py", ("--tolerance", "nan"), "must be above 0"),
        ("suggest_skip.py", ("--by-class",), "this one has no classes"),
        ("reproduce_figures.py", ("--count", "1"), "quartiles need 2 or more"),
    ],
)
def test_misuse_is_one_sentence(run, capsys, script, words, said):
    assert run(script, *words) == 2
    assert said in capsys.readouterr().err
