"""The command of automatic scales: the published table, files that are read again, misuse."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from linear_structure.data import datasets
from linear_structure.images import from_uint8
from linear_structure.sampling.scales import Scales
from linear_structure.system.errors import run_command

SCRIPT = Path(__file__).parents[2] / "scripts/noise_scales.py"

# pixels, sigma_1 in [0, 1], gamma(.5), published levels, T, r, eps in [0, 1]
PUBLISHED = {
    "cifar": (32, 50, "1.03980", 232, 5, ".06184", 6.184e-6),
    "celeba": (64, 90, "1.01951", 500, 5, ".03337", 3.337e-6),
    "church": (96, 140, "1.01292", 788, 4, ".02312", 2.312e-6),
    "bedroom": (128, 190, "1.00966", 1086, 3, ".01768", 1.768e-6),
    "ffhq": (256, 348, "1.00481", 2311, 3, ".00893", 8.932e-7),
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; returns the exit code and what was said."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, words), "--threads", "1"])
        code = run_command(runpy.run_path(str(SCRIPT))["main"])
        said = capsys.readouterr()
        return code, said.out if code == 0 else said.err

    return call


def images(path, *shape, white=0):
    """Black images, of which the last has some white values, so at a distance known exactly."""
    pixels = np.zeros(shape, np.uint8)
    pixels[-1].reshape(-1)[:white] = 255
    np.save(path, pixels)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_table(run, tmp_path, name):
    size, sigma_max, gamma, levels, steps, r, eps = PUBLISHED[name]
    source = images(tmp_path / f"{name}.npy", 2, 3, size, size, white=sigma_max**2)
    _, said = run(source, "--overlap", "0.567", "--steps", steps)
    assert f"sigma_1  {2 * sigma_max} in [-1, 1], {sigma_max} in [0, 1]: all pairs of 2" in said
    assert f"L        {levels} levels" in said
    assert f"r        0{r}" in said
    found = re.search(r"eps +(\S+) in \[-1, 1\], (\S+) in \[0, 1\]", said)
    assert tuple(map(float, found.groups())) == pytest.approx((4 * eps, eps), rel=1e-3)
    assert f"calls    {levels * steps + 1}," in said
    _, said = run(source, "--steps", steps)
    assert f"; {gamma} of technique 2, overlap 0.5" in said


def test_a_file_is_made_once_for_equal_settings(run, tmp_path):
    code, said = run("digits")
    assert code == 0
    assert "sigma_1  9.6274 in [-1, 1], 4.8137 in [0, 1]: all pairs of 1,797 images" in said
    path = tmp_path / "score_based/digits/noise_scales.json"
    content = json.loads(path.read_text())
    assert content.keys() == {"inputs", "outputs", "digest", "made"}
    data = datasets.load("digits")
    scales = Scales.of(from_uint8(data.images()).flatten(1))
    assert content["outputs"] == scales.to_json()
    inputs = content["inputs"]
    assert (inputs["digest"], inputs["n"]) == (data.digest(), 1797)
    assert (inputs["unit"], inputs["overlap"]) == ("pixels in [-1, 1]", 0.5)
    before = path.stat().st_mtime_ns
    assert run("digits") == (0, said)
    assert path.stat().st_mtime_ns == before
    path.write_text(path.read_text()[:50])
    assert run("digits") == (0, said)
    assert json.loads(path.read_text()) == content
    assert "T        3 steps" in run("digits", "--steps", "3")[1]


def test_the_plane_takes_a_ratio(run, tmp_path):
    code, said = run("mixture", "--gamma", "1.3", "--out", "here")
    assert code == 0 and "of --gamma" in said and "[0, 1]" not in said
    content = json.loads((tmp_path / "here/noise_scales.json").read_text())
    assert content["outputs"]["gamma"] >= 1.3
    assert (content["inputs"]["unit"], content["inputs"]["overlap"]) == ("plane", None)
    code, said = run("moons")
    assert code == 2 and "dim is 2" in said and "in fewer, choose one with --gamma" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overlap", "0"), "overlap is 0.0: expected a number above 0 and below 0.9973"),
        (("--overlap", "0.9974"), "below 0.9973"),
        (("--overlap", "nan"), "overlap is nan"),
        (("--sigma-min", "9.63"), "--sigma-min 9.63 is not below sigma_1 = 9.627, the largest"),
        (("--sigma-min", "0"), "--sigma-min 0: expected a number above 0"),
        (("--sigma-min", "inf"), "--sigma-min inf"),
        (("--sigma-min", "1e-300", "--gamma", "1.3"), "above 0, of 1e-15 or more"),
        (("--sigma-min", "nan"), "--sigma-min nan"),
        (("--gamma", "1.3", "--overlap", "0.5"), "--overlap would change nothing: --gamma takes"),
        (("--gamma", "1"), "gamma is 1.0: expected a number above 1"),
        (("--gamma", "nan"), "gamma is nan"),
        (("--gamma", "inf"), "gamma is inf"),
        (("--gamma", "1e200"), "gamma is 1e+200: expected a number above 1 and below 1e100"),
    ],
)
def test_impossible_options_are_refused(run, tmp_path, words, message):
    code, said = run("digits", *words)
    assert code == 2 and message in said
    assert not list(tmp_path.iterdir())


def test_no_steps_are_refused(run):
    with pytest.raises(SystemExit, match="2"):
        run("digits", "--steps", "0")


def test_images_without_a_distance_are_refused(run, tmp_path):
    one = images(tmp_path / "one.npy", 1, 8, 8, white=9)
    assert run(one) == (2, "error: one holds one image: its largest distance takes two or more\n")
    same = images(tmp_path / "same.npy", 5, 8, 8)
    assert run(same) == (2, "error: all 5 of same are equal: expected two that differ\n")
    tiny = images(tmp_path / "tiny.npy", 2, 2, 2, white=1)
    code, said = run(tiny)
    assert code == 2 and "dim is 4" in said and "with --gamma" in said
    assert run(tiny, "--gamma", "1.5")[0] == 0


def test_a_wrong_name_is_refused(run):
    code, said = run("nowhere")
    assert code == 2 and "neither a known dataset" in said


def test_plane_data_do_not_change_from_run_to_run(run, tmp_path):
    for folder in ("a", "b"):
        assert run("rings", "--gamma", "2", "--out", folder)[0] == 0
    read = [json.loads((tmp_path / f / "noise_scales.json").read_text()) for f in ("a", "b")]
    assert read[0] == read[1]
    assert torch.get_num_threads() == 1
