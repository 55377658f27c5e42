"""Schedules: the published grids, and that a slice changes no amount."""

import math

import pytest
import torch

from edm.schedule import (
    VE,
    VP,
    Ablation,
    Churn,
    Linear,
    iddpm_grid,
    iddpm_table,
    sigma_grid,
    ve_grid,
    vp_grid,
)
from linear_structure.errors import UsageError

PUBLISHED_18 = """80 57.586 40.7856 28.3746 19.3525 12.9101 8.40094 5.31519 3.25682 1.92334 1.08817
    .585348 .296442 .139516 .0599473 .0229345 .00752802 .002 0"""


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_grid_is_the_published_one():
    grid = sigma_grid(18)
    assert grid.dtype == torch.float64
    assert torch.allclose(grid, doubles(*map(float, PUBLISHED_18.split())), rtol=5e-6)


@pytest.mark.parametrize("k", range(17))
def test_the_restarted_grid_is_its_own_tail(k):
    grid = sigma_grid(18)
    restarted = sigma_grid(18 - k, sigma_max=grid[k].item())
    assert torch.allclose(restarted, grid[k:], rtol=1e-13, atol=0)


def test_one_step_goes_from_sigma_max_to_zero():
    assert torch.allclose(sigma_grid(1, sigma_max=3.0), doubles(3, 0))


@pytest.mark.parametrize(
    "grid", [sigma_grid(9, 0.01, 50), ve_grid(9, 0.01, 50), vp_grid(9, 0.01, 50)]
)
def test_grids_decrease_between_their_ends(grid):
    assert torch.allclose(grid[[0, -2, -1]], doubles(50, 0.01, 0), rtol=1e-10)
    assert (grid.diff() < 0).all()


def test_ve_levels_have_one_ratio():
    grid = ve_grid(7, 0.02, 100)[:-1]
    assert torch.allclose(grid[1:] / grid[:-1], (grid[1] / grid[0]).expand(6))


def test_the_iddpm_table_is_the_published_one():
    table = iddpm_table()
    assert table.shape == (1001,)
    assert torch.allclose(table[[0, 1000]], doubles(20291.17, 0), rtol=1e-6)
    assert math.isclose(table[999], 0.0064223, rel_tol=1e-4)


def test_an_iddpm_grid_is_made_of_table_entries():
    grid = iddpm_grid(20, 0.002, 81.0)
    assert torch.isin(grid, iddpm_table()).all()
    assert (grid.diff() < 0).all()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (lambda: sigma_grid(0), "steps is 0: expected at least 1"),
        (lambda: sigma_grid(5, 0.0), "0 < sigma_min"),
        (lambda: sigma_grid(5, 2.0, 1.0), "sigma_min < sigma_max"),
        (lambda: sigma_grid(5, sigma_max=math.inf), "both finite"),
        (lambda: sigma_grid(5, sigma_max=math.nan), "sigma_max is nan"),
        (lambda: sigma_grid(5, rho=0.0), "rho is 0.0"),
        (lambda: ve_grid(5, 3.0, 3.0), "sigma_min < sigma_max"),
        (lambda: vp_grid(5, 0.01, 80.0, epsilon_s=1.0), "epsilon_s is 1.0"),
        (lambda: vp_grid(5, 0.5, 80.0), "no VP process"),
        (lambda: iddpm_grid(50, 1.0, 1.01), "50 steps, but the iDDPM table"),
    ],
)
def test_wrong_grids_are_refused(grid, message):
    with pytest.raises(UsageError, match=message):
        grid()


@pytest.mark.parametrize("law", [Linear(), VE(), VP(), VP.through(0.01, 50)])
def test_a_time_law_is_inverted_and_differentiated(law):
    t = doubles(0.01, 0.1, 0.5, 1).requires_grad_()
    (derivative,) = torch.autograd.grad(law.sigma(t).sum(), t)
    assert torch.allclose(law.rate(t), derivative)
    assert torch.allclose(law.time(law.sigma(t)), t)


def test_the_vp_law_goes_through_its_two_levels():
    sigma = VP.through(0.01, 50, epsilon_s=0.1).sigma(doubles(0.1, 1))
    assert torch.allclose(sigma, doubles(0.01, 50))


def test_churn_raises_levels_in_its_range_only():
    sigmas = sigma_grid(18)
    lifts = Churn(s_churn=3.6, s_min=0.05, s_max=50, s_noise=1.1).lifts(sigmas)
    raised, noise = (torch.stack(column) for column in zip(*lifts, strict=True))
    inside = (sigmas[:-1] >= 0.05) & (sigmas[:-1] <= 50)
    assert torch.allclose(raised / sigmas[:-1], torch.where(inside, 1.2, 1.0).double())
    assert torch.allclose(noise, 1.1 * (raised**2 - sigmas[:-1] ** 2).sqrt())
    assert (noise[~inside] == 0).all()


def test_churn_is_bounded():
    lift = Churn(s_churn=1e6).lifts(sigma_grid(18))[3]
    assert torch.isclose(lift.sigma, math.sqrt(2) * sigma_grid(18)[3])


def test_raised_levels_are_rounded_as_the_network_asks():
    sigmas = sigma_grid(6).ceil()
    lifts = Churn(s_churn=1.0).lifts(sigmas, torch.ceil)
    assert all(lift.sigma == lift.sigma.ceil() for lift in lifts)


@pytest.mark.parametrize(
    "settings",
    [{"s_churn": -1.0}, {"s_noise": -1.0}, {"s_churn": math.nan}, {"s_min": 2.0, "s_max": 1.0}],
)
def test_wrong_churn_is_refused(settings):
    with pytest.raises(UsageError, match="expected"):
        Churn(**settings)


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
