"""The commands that reproduce the paper's figures and suggest a skip, on a few small images."""

import csv
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edm.checkpoints import shipped
from linear_structure import fit, parameters
from linear_structure.data import datasets
from linear_structure.points import PointCloud
from linear_structure.system.errors import run_command

SCRIPTS = Path(__file__).parents[2] / "scripts"
CONDITIONAL = str(shipped("digits-conditional.safetensors"))
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
    """Twenty-four digits, as points too, and their Gaussian, also in the place of each class's."""
    folder = tmp_path_factory.mktemp("digits")
    images = datasets.load("digits").images()[:24]
    np.savez(folder / "few.npz", images=images.numpy())
    model, story = fit.fit_gaussian(datasets.load(str(folder / "few.npz")))
    parameters.save(folder / "gaussian", model, story)
    classes = [(model, replace(story, label=label)) for label in range(10)]
    parameters.save(folder / "by-class", model, story, classes)
    parameters.save(folder / "points", PointCloud(images.flatten(1)), story)
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
    made = {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*.npy")}
    assert "mixture-of-20-solution-000000-000002.npy" in {path.name for path in made}
    assert run("reproduce_figures.py", *words) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_skip_is_suggested_and_compared_with_a_sweep_of_the_same_settings(run, capsys):
    words = ("--count", "4", "--steps", "10")
    assert run("suggest_skip.py", *words) == 0
    said = capsys.readouterr().out
    assert "of 10 steps" in said and "Nothing measured to compare with: no result" in said
    sweep = (*words[2:], "--skips", "0,2", "--seeds", "0-9", "--block", "10")
    assert run("run_experiments_with_skips.py", *sweep) == 0
    capsys.readouterr()
    assert run("suggest_skip.py", *words) == 0
    said = capsys.readouterr().out
    assert "Measured: up to skip" in said and "4 finished samples (seeds 0-3)" in said
    assert "(1 - p)^4, 0.81 for 5 %, 0.96 for 1 %" in said
    assert run("suggest_skip.py", "--seeds", "5-8") == 0
    said = capsys.readouterr().out
    assert "another sigmas" in said and "4 finished samples (seeds 5-8)" in said
    assert run("run_experiments_with_skips.py", *sweep, "--sampler", "unipc") == 0
    capsys.readouterr()
    assert run("suggest_skip.py", *words) == 0
    said = capsys.readouterr().out
    *above, last, best, _, _, _ = said.splitlines()
    assert above[-1].endswith("  above 0.24")
    skip = int(re.fullmatch(r" +(\d+) +[\d.]+  [\d.]+", last)[1])
    assert best == f"Skip {skip} of 10 steps: NFE {19 - 2 * skip}, not 19."
    assert "another sampler" in said


def test_a_sweep_is_quoted_only_where_both_teleport_by_class_or_neither(run, files, capsys):
    own = ("--network", CONDITIONAL, "--parameters", str(files / "by-class"))
    words = (*own, "--steps", "10")
    sweep = (*words, "--skips", "0,2", "--seeds", "0-9", "--block", "10")
    for swept, other in (((), ("--by-class",)), (("--by-class",), ())):
        assert run("run_experiments_with_skips.py", *sweep, *swept) == 0
        capsys.readouterr()
        assert run("suggest_skip.py", *words, "--count", "4", *swept) == 0
        assert "The network is of no use: at skip 0" in capsys.readouterr().out
        assert run("suggest_skip.py", *words, "--count", "4", *other) == 0
        assert "The latest sweep was of another by_class:" in capsys.readouterr().out


def test_a_sweep_of_a_solved_teleport_is_quoted_only_if_it_was_as_fine(
    run, files, capsys, monkeypatch
):
    words = ("--parameters", str(files / "points"), "--steps", "10")
    sweep = (*words, "--skips", "0,2", "--seeds", "0-9", "--block", "10")
    assert run("run_experiments_with_skips.py", *sweep) == 0
    capsys.readouterr()
    assert run("suggest_skip.py", *words, "--count", "4") == 0
    assert "The network is of no use: at skip 0" in capsys.readouterr().out
    monkeypatch.setattr("linear_structure.teleport.SOLVER_STEPS", 16)
    assert run("suggest_skip.py", *words, "--count", "4") == 0
    assert "The latest sweep was of another solver_steps:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("suggest_skip.py", ("--count", "0"), "must be above 1"),
        ("suggest_skip.py", ("--count", "4", "--seeds", "0-9"), "--count would change nothing"),
        ("suggest_skip.py", ("--skips", "0,2"), "--skips would change nothing"),
        ("suggest_skip.py", ("--block", "4"), "--block would change nothing"),
        ("suggest_skip.py", ("--tolerance", "nan"), "must be above 0"),
        ("suggest_skip.py", ("--tolerance", "inf"), "must be above 0 and at most 1"),
        ("suggest_skip.py", ("--tolerance", "1e300"), "must be above 0 and at most 1"),
        ("suggest_skip.py", ("--by-class",), "this one has no classes"),
        ("suggest_skip.py", ("--sampler", "unipc"), "--sampler unipc would change nothing: skips"),
        ("suggest_skip.py", ("--sampler", "ddim", "--eta", "1"), "tried by Heun's method"),
        ("reproduce_figures.py", ("--count", "1"), "quartiles need 2 or more"),
    ],
)
def test_misuse_is_one_sentence(run, capsys, script, words, said):
    assert run(script, *words) == 2
    assert said in capsys.readouterr().err
