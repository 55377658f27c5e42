"""Points in the plane as what a training learns from."""

import math
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import builders
import pytest
import torch

from edm.checkpoints import load
from edm.training.data import Points
from edm.training.recipes import RECIPES
from edm.training.runs import STATE, Job
from edm.training.state import read_state
from linear_structure.data.plane import checkerboard, find
from linear_structure.system.errors import UsageError, run_command

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
MIXTURE = Points("mixture", find("mixture"), CPU)
SHORT = replace(RECIPES["plane"], duration=20_480, tick=5_120)

pytestmark = pytest.mark.usefixtures("one_thread")


def job(folder: Path, **changes: object) -> Job:
    return Job(replace(SHORT, **changes).shared_by(1), MIXTURE, folder, CPU, samples=None)


def test_a_piece_is_a_function_of_its_seed_and_no_point_comes_twice() -> None:
    first, again, other = (MIXTURE.piece(seed, torch.arange(50)) for seed in (3, 3, 4))
    assert first.images.shape == (50, 2)
    assert first.images.dtype == torch.float32
    assert torch.equal(first.images, again.images)
    assert len(torch.cat([first.images, other.images]).unique(dim=0)) == 100
    assert first.class_labels is None


def test_pieces_have_the_distribution_of_what_draws_them() -> None:
    drawn = MIXTURE.piece(0, torch.arange(100_000)).images.double()
    covariance = torch.tensor([[3.26, 0.72], [0.72, 2.44]], dtype=torch.float64)
    torch.testing.assert_close(drawn.mean(0), drawn.new_tensor([0.2, 1.4]), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.05, rtol=0)
    board = Points("board", checkerboard, CPU).piece(0, torch.arange(1000)).images
    assert not ((board / 2 + 2).floor().sum(1) % 2).any()


@pytest.mark.parametrize("position", [0, 64, 640])
def test_order_continues_from_any_position(position: int) -> None:
    whole = torch.cat(list(islice(MIXTURE.order(64, 0, 0), 12)))
    resumed = next(MIXTURE.order(64, 0, position))
    assert torch.equal(resumed, whole[position : position + 64])


def test_the_data_of_the_recipe_have_the_size_that_it_says() -> None:
    assert RECIPES["plane"].sigma_data == pytest.approx(math.sqrt((3.26 + 2.44) / 2), abs=5e-5)


def test_a_training_on_points_continues_to_the_bit(tmp_path: Path) -> None:
    job(tmp_path / "whole").run()
    job(tmp_path / "part", duration=10_240).run()
    state = job(tmp_path / "part").run()
    expected = read_state(tmp_path / "whole" / STATE, CPU)["average"]
    found = state.average.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert state.curve[-1][1] < 0.95 * state.curve[0][1]


def test_points_are_for_an_mlp(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mixture are points in the plane: expected .* mlp"):
        job(tmp_path, architecture="ddpmpp", channel_mult=(1,)).run()
    assert not list(tmp_path.iterdir())


def test_the_command_trains_on_the_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = builders.module(ROOT / "scripts" / "train.py")
    line = ["train.py", "mixture", "--recipe", "plane", "--device", "cpu", "--threads", "1"]
    line += ["--duration", "1024", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    assert run_command(script.main) == 0
    network, x = load(tmp_path / "network-000001024.safetensors"), torch.zeros(3, 2).double()
    assert network(x, torch.tensor(1.0, dtype=torch.float64)).shape == (3, 2)
    job(tmp_path / "same", duration=1024).run()
    assert load(tmp_path / "same" / "network-000001024.safetensors").digest == network.digest
