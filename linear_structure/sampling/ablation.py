"""The published ablation sampler as one linear rule for each step.

Karras et al. 2022 write the sampling ODE with a schedule sigma(t) and a scaling s(t), for the
scaled state s x. With the slope d(x, sigma) = (x - D(x, sigma)) / sigma it reads

    d(s x) / dt = s' x + s sigma' d(x, sigma),

so that a step of any two-stage Runge-Kutta method, divided by the scaling where it ends, is linear
in x and in two slopes,

    x_next = keep x + first d(x, sigma) + second d(x_trial, sigma_trial),
    x_trial = trial_keep x + trial_first d(x, sigma),

with weights that depend on the grid alone. A `Stage` holds them, a `Schedule` all N of them: the
state stays unscaled, and solver, schedule, scaling and alpha are no more than numbers. They are
computed once from the full grid and then sliced (`schedule[k:]`): a skip changes no amount.
`linear_structure.sampling.samplers.ablation` walks along them.
"""

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from linear_structure.sampling.grids import (
    Churn,
    Lift,
    Rounding,
    exact,
    iddpm_grid,
    sigma_grid,
    ve_grid,
    vp_grid,
)
from linear_structure.sampling.processes import VE, VP, Power, Process, ended
from linear_structure.system.errors import UsageError
from linear_structure.system.options import choice, option

Clock = Power | VP
"""sigma(t), increasing, with sigma(0) = 0; its rate; its inverse."""


class Stage(NamedTuple):
    """One step: the lift before it and the weights of the module's rule, all () float64.

    `second` is 0 where a step has one slope only: every Euler step, and always the one to 0.
    """

    lift: Lift
    keep: Tensor
    first: Tensor
    second: Tensor
    trial_sigma: Tensor
    trial_keep: Tensor
    trial_first: Tensor


@dataclass(frozen=True)
class Schedule:
    """A grid and the weights of its steps; `schedule[k:]` is what remains after k skipped steps.

    Attributes:
        sigmas: (N + 1,) float64, the last one 0.
        stages: one for each of the N steps.
    """

    sigmas: Tensor
    stages: tuple[Stage, ...]

    @property
    def lifts(self) -> tuple[Lift, ...]:
        """The lift before each step."""
        return tuple(stage.lift for stage in self.stages)

    def __getitem__(self, part: slice) -> "Schedule":
        """The grid points in `part`, consecutive ones, and the steps between them."""
        if part.step not in (None, 1):
            raise ValueError("the weights of a step hold from one level to the next: no stride")
        sigmas = self.sigmas[part]
        return Schedule(sigmas, self.stages[part][: len(sigmas) - 1])


@dataclass(frozen=True)
class Ablation:
    """Settings of the ablation sampler, named as published (Karras et al. 2022, algorithm 3).

    Attributes:
        sigma_min, sigma_max: None is the end that belongs to the discretization.
        epsilon_s: the time of sigma_min in the "vp" discretization and schedule.
        c_1, c_2, m: of the "iddpm" table.

    Raises:
        UsageError: an unknown name, or alpha outside (0, 1].
    """

    steps: int = option(18, meaning="steps of the grid (default: the preset's, or 18)")
    solver: str = choice("heun", "euler")
    discretization: str = choice("edm", "vp", "ve", "iddpm", meaning="of the grid (default: edm)")
    schedule: str = choice("linear", "vp", "ve", meaning="sigma(t) (default: linear)")
    scaling: str = choice("none", "vp", meaning="s(t) (default: none)")
    alpha: float = option(1.0, meaning="where in a step the second slope is (default: 1, Heun)")
    sigma_min: float | None = option(None, meaning="lowest noise level (default: 0.002)")
    sigma_max: float | None = option(None, meaning="highest noise level (default: 80)")
    rho: float = option(7.0, meaning="exponent of the edm grid (default: 7)")
    epsilon_s: float = 1e-3
    c_1: float = 1e-3
    c_2: float = 8e-3
    m: int = 1000
    churn: Churn = field(default_factory=Churn)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata.get("words")
            if choices and value not in choices:
                raise UsageError(f"{each.name} is {value!r}: expected one of {', '.join(choices)}")
        if not 0 < self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha}: expected 0 < alpha <= 1")

    def plan(
        self, lowest: float = 0.0, highest: float = math.inf, round_sigma: Rounding = exact
    ) -> Schedule:
        """The frozen schedule for a network that knows the levels from `lowest` to `highest`.

        Raises:
            UsageError: the grid or the VP process cannot be made.
        """
        sigmas = self.grid(lowest, highest, round_sigma)
        lifts = self.churn.lifts(sigmas, round_sigma)
        law: Clock = Power(0.5 if self.schedule == "ve" else 1.0)
        if self.schedule == "vp":
            law = VP.through(*self._ends(lowest, highest), self.epsilon_s)
        return Schedule(sigmas, self._stages(sigmas, lifts, law))

    def grid(
        self, lowest: float = 0.0, highest: float = math.inf, round_sigma: Rounding = exact
    ) -> Tensor:
        """The levels of the schedule that `plan` makes, (N + 1,) float64; raises as it does."""
        levels = self._levels(*self._ends(lowest, highest))[:-1]
        return ended(round_sigma(levels))

    def _ends(self, lowest: float, highest: float) -> tuple[float, float]:
        """The range of the grid, within that of a network."""
        ends = torch.tensor([self.epsilon_s, 1.0], dtype=torch.float64)
        low, high = {
            "edm": (0.002, 80.0),
            "vp": VP().sigma(ends).tolist(),
            "ve": (0.02, 100.0),
            "iddpm": (0.002, 81.0),
        }[self.discretization]
        low = max(low if self.sigma_min is None else self.sigma_min, lowest)
        return low, min(high if self.sigma_max is None else self.sigma_max, highest)

    def _levels(self, low: float, high: float) -> Tensor:
        match self.discretization:
            case "vp":
                return vp_grid(self.steps, low, high, self.epsilon_s)
            case "ve":
                return ve_grid(self.steps, low, high)
            case "iddpm":
                return iddpm_grid(self.steps, low, high, self.c_1, self.c_2, self.m)
            case _:
                return sigma_grid(self.steps, low, high, self.rho)

    def _stages(self, sigmas: Tensor, lifts: tuple[Lift, ...], law: Clock) -> tuple[Stage, ...]:
        """The weights of all steps; every name is (N,)."""
        ends = sigmas[1:]
        above_zero = (ends > 0).to(ends)
        start = law.time(torch.stack([lift.sigma for lift in lifts]))
        h = law.time(ends) * above_zero - start
        reach = self.alpha * h * above_zero
        share = (0.5 / self.alpha if self.solver == "heun" else 0.0) * above_zero

        scaled: Process = VP() if self.scaling == "vp" else VE()
        here, trial = _Point.at(start, law, scaled), _Point.at(start + reach, law, scaled)
        trial_keep = here.scale / trial.scale * (1 + reach * here.growth)
        trial_first = here.scale / trial.scale * reach * here.rate

        from_here = here.scale / scaled.scale(ends)
        from_trial = trial.scale / scaled.scale(ends) * h * share
        rest = h * (1 - share)
        keep = from_here * (1 + rest * here.growth) + from_trial * trial.growth * trial_keep
        first = from_here * rest * here.rate + from_trial * trial.growth * trial_first
        second = from_trial * trial.rate
        weights = (keep, first, second, trial.sigma, trial_keep, trial_first)
        return tuple(map(Stage, lifts, *weights))


class _Point(NamedTuple):
    """sigma, sigma', s and s' / s at times (n,), each (n,)."""

    sigma: Tensor
    rate: Tensor
    scale: Tensor
    growth: Tensor

    @classmethod
    def at(cls, t: Tensor, law: Clock, scaled: Process) -> "_Point":
        sigma, rate = law.sigma(t), law.rate(t)
        shrinks = isinstance(scaled, VP)
        growth = -sigma * rate / (1 + sigma**2) if shrinks else torch.zeros_like(t)
        return cls(sigma, rate, scaled.scale(sigma), growth)
