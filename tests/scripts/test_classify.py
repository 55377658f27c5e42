"""The command `classify.py`: shares with their intervals, and a sentence for each mistake."""

import shutil
import sys
from pathlib import Path

import builders
import numpy as np
import pytest

from edm.checkpoints import shipped
from edm.evaluation.features import resized
from linear_structure.data import datasets
from linear_structure.system.errors import run_command

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "classify.py"
OF_DIGITS = str(shipped("digits-features.safetensors"))


@pytest.fixture
def run(monkeypatch, capsys, one_thread):
    """Type a command; returns exit code, output and complaints."""

    def typed(images, features=OF_DIGITS):
        words = ["classify.py", str(images), "--features", str(features), "--threads", "1"]
        monkeypatch.setattr(sys, "argv", words)
        code = run_command(builders.module(SCRIPT).main)
        return code, *capsys.readouterr()

    return typed


def test_shares_of_classes_and_of_clear_images(run, tmp_path):
    """With labels also how many are told right: of ten ones, all of them, and no other class.

    Ten of ten are from 100 / (1 + z^2 / 10) % on, at z = 1.95996 (Wilson 1927): no certainty.
    """
    digits = datasets.load("digits")
    ones = digits.images()[digits.labels() == 1][:10].squeeze(1).numpy()
    np.save(tmp_path / "ones.npy", ones)
    np.savez(tmp_path / "half.npz", images=ones, labels=np.array([1] * 5 + [2] * 5))
    plain, labelled = (run(tmp_path / name) for name in ("ones.npy", "half.npz"))
    classes = ", ".join(f"{k} {100 * (k == 1)}.0%" for k in range(10))
    said = (
        f"10 images; a class above 0.8: 100.00% (72.25% to 100.00%)\nlikeliest class: {classes}\n"
    )
    assert plain == (0, said, "")
    assert labelled == (0, f"{said}told right: 50.00% (23.66% to 76.34%)\n", "")


def test_images_of_another_size_are_brought_to_that_which_the_features_learned_on(run, tmp_path):
    """What is said is what is said of images that somebody resized before."""
    large = datasets.load("digits").images()[:20].repeat_interleave(2, 2).repeat_interleave(3, 3)
    small = resized(large, 8)
    np.save(tmp_path / "large.npy", large.squeeze(1).numpy())
    np.save(tmp_path / "small.npy", small.squeeze(1).numpy())
    shutil.copy(OF_DIGITS, tmp_path / "copy.safetensors")
    verdict = run(tmp_path / "small.npy")
    code, out, err = run(tmp_path / "large.npy", tmp_path / "copy.safetensors")
    told, _, rest = out.partition("\n")
    assert told.startswith("images are brought to 8 x 8, which ")
    assert (code, rest, err) == verdict


def test_what_does_not_fit_is_named(run, tmp_path):
    np.save(tmp_path / "colours.npy", np.zeros((2, 8, 8, 3), np.uint8))
    code, _, said = run(tmp_path / "colours.npy")
    assert code == 2 and "colours has images of 3 channels: expected 1" in said
    code, _, said = run("digits", shipped("digits-denoiser.safetensors"))
    assert code == 2 and "is not a feature network" in said
