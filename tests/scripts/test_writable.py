"""Commands that work long find out before it that nothing can be written, in one sentence."""

import errno
import sys
from pathlib import Path

import builders
import numpy as np
import pytest
import torch

from linear_structure.system.errors import run_command
from linear_structure.system.machine import set_threads

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ONE = ("--device", "cpu", "--threads", "1")
LINES = {
    "train.py digits --recipe digits --out": "edm.training.steps.Trainer.steps",
    "represent.py train digits --out": "edm.training.steps.Trainer.steps",
    "train_features.py digits --recipe digits --out": "edm.training.features.Training.run",
    "fid.py ref --features WEIGHTS --images few.npy --out": "edm.evaluation.extraction.Extractor"
    ".compute",
    "fid.py calc --features WEIGHTS --images few.npy --ref few.npy --json": "edm.evaluation"
    ".extraction.Extractor.compute",
    "losses.py digits --out": "experiments.losses.Study.measure",
    "likelihood.py digits --count 1 --out": "experiments.likelihood.Study.columns",
    "noise_scales.py few.npy --out": "linear_structure.sampling.scales.largest_distance",
}


@pytest.mark.parametrize("line", LINES)
def test_a_read_only_disk_is_found_before_the_work(line, tmp_path, monkeypatch, capsys):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))
    np.save("few.npy", np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(LINES[line], lambda *_, **__: pytest.fail("work has begun"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    weights = SCRIPTS.parent / "edm" / "weights" / "digits-features.safetensors"
    name, *words = line.replace("WEIGHTS", str(weights)).split()
    device = ONE[2 * (name == "noise_scales.py") :]
    monkeypatch.setattr(sys, "argv", [name, *words, "disk/new.npz", *device])
    threads = torch.get_num_threads()
    assert run_command(builders.module(SCRIPTS / name).main) == 1
    set_threads(threads)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: Read-only file system (") and said[-1].endswith("disk)")
    assert not list((tmp_path / "disk").iterdir())
