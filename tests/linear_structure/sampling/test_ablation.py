"""Schedules of the ablation sampler: their weights, and that a slice changes none."""

import pytest
import torch
from walks import doubles

from linear_structure.sampling.ablation import Ablation
from linear_structure.sampling.grids import Churn
from linear_structure.system.errors import UsageError


def test_a_sliced_schedule_keeps_every_amount():
    schedule = Ablation(12, schedule="vp", scaling="vp", churn=Churn(s_churn=4)).plan()
    assert schedule[5:].stages == schedule.stages[5:]
    assert torch.equal(schedule[5:].sigmas, schedule.sigmas[5:])
    assert schedule[:6].stages == schedule.stages[:5]
    assert schedule[:-1].stages == schedule.stages[:-1]
    assert schedule[12:].stages == ()
    with pytest.raises(ValueError, match="no stride"):
        schedule[::2]


def test_the_weights_of_the_default_schedule_are_heuns():
    schedule = Ablation(8).plan()
    for stage, sigma, sigma_next in zip(
        schedule.stages[:-1], schedule.sigmas, schedule.sigmas[1:], strict=False
    ):
        h = sigma_next - sigma
        weights = torch.stack(stage[1:])
        expected = torch.stack([h / h, h / 2, h / 2, sigma_next, h / h, h])
        assert torch.allclose(weights, expected, rtol=1e-14)
    assert schedule.stages[-1].second == 0


def test_a_schedule_keeps_to_the_levels_of_its_network():
    schedule = Ablation(8).plan(0.01, 50.0, lambda sigma: (sigma * 1000).round() / 1000)
    assert torch.allclose(schedule.sigmas[[0, -2, -1]], doubles(50, 0.01, 0))
    assert torch.equal(schedule.sigmas, (schedule.sigmas * 1000).round() / 1000)


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "rk4"},
        {"discretization": "cosine"},
        {"schedule": "EDM"},
        {"scaling": ""},
        {"alpha": 0.0},
        {"alpha": 1.5},
    ],
)
def test_wrong_ablations_are_refused(settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))} is .*: expected"):
        Ablation(**settings)
