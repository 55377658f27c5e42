"""Teleported chains: their changes, each seed with itself, and the two commands."""

import csv
import dataclasses
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from edm.evaluation import fid, paired
from experiments import presets, sweep, teleported
from experiments.sweep import Sweep
from experiments.teleported import Chain
from linear_structure.gaussian import Gaussian
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system.errors import run_command
from linear_structure.system.machine import Machine
from linear_structure.teleport import Teleport

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@dataclasses.dataclass(frozen=True)
class Halves:
    """Feature network of the tests: the mean of each half of an image."""

    name: str = "halves"
    distance_name: str = "FD-halves"
    dim: int = 2
    digest: str = "halves"

    def __call__(self, images):
        return torch.stack([half.float().mean((1, 2, 3)) for half in images.chunk(2, 2)], 1)


@pytest.fixture
def plain(tmp_path):
    generator = torch.Generator().manual_seed(2)
    preset = dataclasses.replace(presets.find("digits"), seeds=SeedRange(0, 11), block=4)
    return Sweep(
        preset=preset,
        network=tiny.network(img_channels=1),
        teleport=Teleport(
            Gaussian(torch.zeros(64).double(), torch.eye(64)[:, :3], torch.ones(3).double())
        ),
        features=Halves(),
        reference=fid.measure([torch.randn(30, 2, generator=generator)]),
        machine=Machine(torch.device("cpu"), torch.get_num_threads()),
        root=tmp_path,
    )


CHAINS = (Chain("ancestral", 5, (0, 2)), Chain("annealed", 4, (0, 1), 0.1, None))


def test_changes_are_those_of_equal_seeds_against_the_whole_chain(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(teleported, "CHAINS", CHAINS)
    rows = list(teleported.compared(plain, 12.0, tmp_path / "sweeps"))
    assert [(row.sampler, row.skip, row.calls) for row in rows] == [
        ("ancestral", 0, 5), ("ancestral", 2, 3), ("annealed", 0, 13), ("annealed", 1, 10),
    ]  # fmt: skip
    assert rows[2].sigma == 12.0 and rows[0].sigma == 80.0
    for whole, skipped in (rows[:2], rows[2:]):
        assert whole.changes is None
        pooled, *thirds = skipped.changes
        assert pooled == paired.change(skipped.sample, whole.sample)
        for number, each in enumerate(thirds):
            part = slice(4 * number, 4 * number + 4)
            own, other = (
                paired.Sample(row.sample.features[part], plain.reference)
                for row in (skipped, whole)
            )
            assert each.difference == own.distance - other.distance


@pytest.mark.parametrize("count", [6, 7, 10])
def test_seeds_have_three_thirds_of_two_or_more(plain, tmp_path, monkeypatch, count):
    monkeypatch.setattr(teleported, "CHAINS", CHAINS[:1])
    few = dataclasses.replace(plain.preset, seeds=SeedRange(0, count - 1))
    swept = dataclasses.replace(plain, preset=few)
    _, skipped = teleported.compared(swept, 12.0, tmp_path / "sweeps")
    assert len(skipped.row()) == len(teleported.HEAD + teleported.CHANGES)
    assert all(np.isfinite(each.difference) for each in skipped.changes)
    assert teleported.CHANGES[3:] == tuple(f"change_of_third_{i}" for i in (1, 2, 3))


def test_features_are_in_the_order_of_seeds(plain):
    preset = dataclasses.replace(plain.preset, seeds=SeedRange(2, 9), skips=(0,), steps=3)
    swept = dataclasses.replace(plain, preset=preset)
    rows = torch.cat(list(sweep.features_of(swept, 0)))
    with torch.inference_mode():
        each = [swept.sampling.pixels(range(i, i + 4)) for i in (0, 4, 8)]
    assert torch.equal(rows, Halves()(torch.cat(each))[2:10])


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A command in this process, in an empty folder: its exit code."""
    threads = torch.get_num_threads()

    def run(script, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *words, "--threads", "1"])
        return run_command(runpy.run_path(str(SCRIPTS / script))["main"])

    yield run
    torch.set_num_threads(threads)


def test_the_command_ends_with_a_table_and_a_picture_and_continues(
    call, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(teleported, "CHAINS", CHAINS)
    words = ("teleported_chains.py", "digits", "--seeds", "0-11", "--block", "4")
    assert call(*words) == 0
    folder = tmp_path / "score_based/digits"
    table = (folder / "teleported_chains.csv").read_bytes()
    rows = list(csv.DictReader(table.decode().splitlines()))
    assert [row["calls"] for row in rows] == ["5", "3", "13", "10"]
    assert rows[0]["change"] == "" and float(rows[1]["low"]) < float(rows[1]["high"])
    assert float(rows[2]["sigma"]) == pytest.approx(9.627, abs=1e-3)  # technique 1
    assert Image.open(folder / "teleported_chains.png").width > 900
    monkeypatch.setattr("edm.precondition.Preconditioned.forward", None)  # a call would raise
    assert call(*words) == 0
    assert (folder / "teleported_chains.csv").read_bytes() == table
    assert "ancestral    2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits", "--steps", "9"), "--steps would change nothing: each chain has its own"),
        (("digits", "--level-steps", "9"), "--level-steps would change nothing"),
        (("digits", "--seeds", "0-4"), "seeds 0-4: the change of each third of them needs two"),
        (("cifar10-small",), "cifar10-small comes without images: give --dataset"),
    ],
)
def test_misuse_of_the_chains_is_one_sentence(call, capsys, words, said):
    assert call("teleported_chains.py", *words) == 2
    assert said in capsys.readouterr().err


def test_annealed_images_stand_side_by_side(call, tmp_path):
    words = ("--steps", "4", "--sigma-max", "9.6", "--sigma-min", "0.1", "--level-steps", "1")
    assert call("annealed.py", "digits", *words, "--skips", "0,2") == 0
    picture = np.asarray(Image.open(tmp_path / "score_based/digits/annealed.png").convert("L"))
    left, right = picture[150:-50, 50:-50].astype(int)[:, : picture.shape[1] // 2 - 50], picture
    assert left.std() > 30 and right.shape[1] > 1200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reference", "x.npz"), "--reference would change nothing: no distance"),
        (("--sampler", "heun"), "--sampler would change nothing: annealed Langevin dynamics walks"),
        (("--rho", "5"), "--rho would change nothing: annealed Langevin dynamics walks"),
        (("--block", "5"), "--block would change nothing: the images of a panel are sampled"),
        (("--seeds", "0-23"), "seeds 0-23: a panel shows 25 images, such as of 0-24"),
        (("--skips", "18"), "from 0 to 17"),
        (("--eta", "1"), "--eta belongs to the sampler ddim; annealed has level_steps"),
    ],
)
def test_annealed_refuses_what_it_does_not_use(call, capsys, words, said):
    assert call("annealed.py", "digits", *words) == 2
    assert said in capsys.readouterr().err
