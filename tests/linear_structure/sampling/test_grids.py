"""Grids and churn: the published levels, and that a slice changes no amount."""

import math

import pytest
import torch
from walks import doubles

from linear_structure.sampling.grids import (
    Churn,
    iddpm_grid,
    sigma_grid,
    ve_grid,
    vp_grid,
)
from linear_structure.sampling.processes import iddpm_levels
from linear_structure.system.errors import UsageError

PUBLISHED_18 = """80 57.586 40.7856 28.3746 19.3525 12.9101 8.40094 5.31519 3.25682 1.92334 1.08817
    .585348 .296442 .139516 .0599473 .0229345 .00752802 .002 0"""


def test_the_grid_is_the_published_one():
    grid = sigma_grid(18)
    assert grid.dtype == torch.float64
    assert torch.allclose(grid, doubles(*map(float, PUBLISHED_18.split())), rtol=5e-6)


@pytest.mark.parametrize("k", range(17))
def test_the_restarted_grid_is_its_own_tail(k):
    grid = sigma_grid(18)
    restarted = sigma_grid(18 - k, sigma_max=grid[k].item())
    assert torch.allclose(restarted, grid[k:], rtol=1e-13, atol=0)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0, 7.0, 100.0])
def test_every_rho_that_is_taken_keeps_both_ends(rho):
    assert torch.allclose(sigma_grid(6, rho=rho)[[0, -2]], doubles(80, 0.002), rtol=1e-6)


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
    table = iddpm_levels()
    assert table.shape == (1001,)
    assert torch.allclose(table[[0, 1000]], doubles(20291.17, 0), rtol=1e-6)
    assert math.isclose(table[999], 0.0064223, rel_tol=1e-4)


def test_an_iddpm_grid_is_made_of_table_entries():
    grid = iddpm_grid(20, 0.002, 81.0)
    assert torch.isin(grid, iddpm_levels()).all()
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
        (lambda: sigma_grid(5, rho=0.001), "rho is 0.001: float64 cannot hold a grid"),
        (lambda: sigma_grid(5, rho=0.2), "rho is 0.2: float64 cannot hold a grid"),
        (lambda: sigma_grid(5, rho=1e16), "from 80.0 to 0.002"),
        (lambda: sigma_grid(5, rho=5e-324), "rho is 5e-324"),
        (lambda: ve_grid(5, 3.0, 3.0), "sigma_min < sigma_max"),
        (lambda: vp_grid(5, 0.01, 80.0, epsilon_s=1.0), "epsilon_s is 1.0"),
        (lambda: vp_grid(5, 0.5, 80.0), "no VP process"),
        (lambda: iddpm_grid(50, 1.0, 1.01), "50 steps, but the iDDPM table"),
    ],
)
def test_wrong_grids_are_refused(grid, message):
    with pytest.raises(UsageError, match=message):
        grid()


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
