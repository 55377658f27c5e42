"""Noise levels: grids from the highest down to 0, and churn.

A grid holds N decreasing levels and a final 0, float64. Grids and lifts are computed once, from the
full grid, and then sliced (`sigmas[k:]`, `lifts[k:]`): a skip changes no amount.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from linear_structure.sampling.processes import VP, ended, geometric, iddpm_levels
from linear_structure.system.errors import UsageError
from linear_structure.system.options import option

END_TOLERANCE = 1e-6  # relative, of the ends of a grid

Rounding = Callable[[Tensor], Tensor]
"""Maps noise levels (n,) to the nearest ones that a network was trained on."""


def exact(sigma: Tensor) -> Tensor:
    """The rounding of a network that takes every noise level."""
    return sigma


def sigma_grid(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Levels evenly spaced in sigma^(1/rho) from sigma_max to sigma_min, then 0: (steps + 1,).

    Restarted at its own level k with `steps - k` steps it is its own tail. One step is
    `[sigma_max, 0]`. Karras et al. 2022, equation 5.

    Raises:
        UsageError: no step, a range that is not `0 < sigma_min < sigma_max < inf`, rho <= 0, or a
            rho so small or large that float64 loses an end of the range.
    """
    fractions = _fractions(steps, sigma_min, sigma_max)
    if not 0 < rho < math.inf:
        raise UsageError(f"rho is {rho}: expected a positive number")
    top, bottom = _roots(sigma_min, sigma_max, rho)
    return ended((top + fractions * (bottom - top)) ** rho)


def _roots(sigma_min: float, sigma_max: float, rho: float) -> tuple[float, float]:
    """sigma_max^(1/rho) and sigma_min^(1/rho), if the levels between them keep both ends."""
    try:
        top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        ends = top**rho, (top + (bottom - top)) ** rho
    except OverflowError:
        ends = math.nan, math.nan
    wanted = zip(ends, (sigma_max, sigma_min), strict=True)
    if not all(math.isclose(*pair, rel_tol=END_TOLERANCE) for pair in wanted):
        raise UsageError(
            f"rho is {rho}: float64 cannot hold a grid from {sigma_max} to {sigma_min} with it; "
            "expected a number nearer to 7"
        )
    return top, bottom


def ve_grid(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels evenly spaced in log sigma, then 0: (steps + 1,). Raises as `sigma_grid`."""
    fractions = _fractions(steps, sigma_min, sigma_max)
    return ended(geometric(fractions, sigma_max, sigma_min))


def vp_grid(steps: int, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> Tensor:
    """Levels evenly spaced in VP time, from 1 to epsilon_s, then 0: (steps + 1,).

    Raises:
        UsageError: as `sigma_grid`, or epsilon_s is not between 0 and 1.
    """
    fractions = _fractions(steps, sigma_min, sigma_max)
    vp = VP.through(sigma_min, sigma_max, epsilon_s)
    return ended(vp.sigma(1 + fractions * (epsilon_s - 1)))


def iddpm_grid(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    c_1: float = 0.001,
    c_2: float = 0.008,
    m: int = 1000,
) -> Tensor:
    """Entries evenly spaced in the part of the iDDPM table in the range, then 0: (steps + 1,).

    Raises:
        UsageError: as `sigma_grid`, or the range holds fewer levels than steps.
    """
    fractions = _fractions(steps, sigma_min, sigma_max)
    table = iddpm_levels(m, c_1, c_2)
    table = table[(sigma_min <= table) & (table <= sigma_max)]
    if len(table) < steps:
        raise UsageError(
            f"{steps} steps, but the iDDPM table of {m} levels has {len(table)} "
            f"from {sigma_min} to {sigma_max}: expected at most as many steps"
        )
    return ended(table[(fractions * (len(table) - 1)).round().long()])


def _fractions(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The positions i / (N - 1) of the N levels between the ends of a valid range."""
    if steps < 1:
        raise UsageError(f"steps is {steps}: expected at least 1")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(
            f"sigma_min is {sigma_min} and sigma_max is {sigma_max}: "
            "expected 0 < sigma_min < sigma_max, both finite"
        )
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def check_levels(sigmas: Tensor) -> None:
    """Raise a ValueError unless sigmas (M,), a full grid or the tail of one, decrease to 0."""
    if not bool((sigmas.diff() < 0).all()) or sigmas[-1] != 0:
        raise ValueError("sigmas: expected levels that decrease, and a final 0")


class Lift(NamedTuple):
    """What churn does before one step: up to a level, by adding noise.

    Attributes:
        sigma: (), the raised level sigma_hat, at which the step starts.
        noise: (), standard deviation of the noise that is added; 0 where nothing is raised.
    """

    sigma: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Churn:
    """Settings of the stochastic sampler, named as published (Karras et al. 2022, algorithm 2).

    A level sigma is raised to `(1 + gamma) sigma`, `gamma = min(s_churn / N, sqrt(2) - 1)`.

    Attributes:
        s_churn: gamma, summed over all N steps of the full grid.
        s_min, s_max: only levels in this range are raised.
        s_noise: factor of the noise, a little above 1 for a network that removes too much.

    Raises:
        UsageError: a negative amount, or an empty range of levels.
    """

    s_churn: float = option(0.0, meaning="noise added, as a sum over all steps (default: 0)")
    s_min: float = option(0.0, meaning="lowest level at which noise is added (default: 0)")
    s_max: float = option(math.inf, meaning="highest level of these (default: infinite)")
    s_noise: float = option(1.0, meaning="factor of the noise that is added (default: 1)")

    def __post_init__(self) -> None:
        if not (0 <= self.s_churn < math.inf and 0 <= self.s_noise < math.inf):
            raise UsageError(
                f"s_churn is {self.s_churn} and s_noise is {self.s_noise}: "
                "expected finite numbers, not negative"
            )
        if not 0 <= self.s_min <= self.s_max:
            raise UsageError(
                f"s_min is {self.s_min} and s_max is {self.s_max}: expected 0 <= s_min <= s_max"
            )

    def lifts(self, sigmas: Tensor, round_sigma: Rounding = exact) -> tuple[Lift, ...]:
        """The lift before each of the N steps of the full grid, (N + 1,): slice it as the grid."""
        levels = sigmas[:-1]
        gamma = min(self.s_churn / max(len(levels), 1), math.sqrt(2) - 1)
        inside = (self.s_min <= levels) & (levels <= self.s_max)
        raised = round_sigma(torch.where(inside, levels * (1 + gamma), levels))
        noise = self.s_noise * (raised**2 - levels**2).clamp(min=0).sqrt()
        return tuple(map(Lift, raised, noise))
