"""Noise levels: grids, churn, and the published ablation sampler as one linear rule for each step.

A grid holds N decreasing levels and a final 0, float64. Everything here is computed once from the
full grid and then sliced (`sigmas[k:]`, `lifts[k:]`, `schedule[k:]`): a skip changes no amount.

Karras et al. 2022 write the sampling ODE with a schedule sigma(t) and a scaling s(t), for the
scaled state s x. With the slope d(x, sigma) = (x - D(x, sigma)) / sigma it reads

    d(s x) / dt = s' x + s sigma' d(x, sigma),

so that a step of any two-stage Runge-Kutta method, divided by the scaling where it ends, is linear
in x and in two slopes,

    x_next = keep x + first d(x, sigma) + second d(x_trial, sigma_trial),
    x_trial = trial_keep x + trial_first d(x, sigma),

with weights that depend on the grid alone. A `Stage` holds them, a `Schedule` all N of them: the
state stays unscaled, and solver, schedule, scaling and alpha are no more than numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from linear_structure.errors import UsageError

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
        UsageError: no step, a range that is not `0 < sigma_min < sigma_max < inf`, or rho <= 0.
    """
    fractions = _fractions(steps, sigma_min, sigma_max)
    if not 0 < rho < math.inf:
        raise UsageError(f"rho is {rho}: expected a positive number")
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _ended((top + fractions * (bottom - top)) ** rho)


def ve_grid(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels evenly spaced in log sigma, then 0: (steps + 1,). Raises as `sigma_grid`."""
    fractions = _fractions(steps, sigma_min, sigma_max)
    return _ended(sigma_max * (sigma_min / sigma_max) ** fractions)


def vp_grid(steps: int, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> Tensor:
    """Levels evenly spaced in VP time, from 1 to epsilon_s, then 0: (steps + 1,).

    Raises:
        UsageError: as `sigma_grid`, or epsilon_s is not between 0 and 1.
    """
    fractions = _fractions(steps, sigma_min, sigma_max)
    vp = VP.through(sigma_min, sigma_max, epsilon_s)
    return _ended(vp.sigma(1 + fractions * (epsilon_s - 1)))


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
    table = iddpm_table(c_1, c_2, m)
    table = table[(sigma_min <= table) & (table <= sigma_max)]
    if len(table) < steps:
        raise UsageError(
            f"{steps} steps, but the iDDPM table of {m} levels has {len(table)} "
            f"from {sigma_min} to {sigma_max}: expected at most as many steps"
        )
    return _ended(table[(fractions * (len(table) - 1)).round().long()])


def iddpm_table(c_1: float = 0.001, c_2: float = 0.008, m: int = 1000) -> Tensor:
    """Noise levels of the iDDPM cosine schedule, decreasing to 0: (m + 1,) float64.

    The cosine terms are float32, as published: that moves the lowest levels by 5e-4 of themselves.
    """
    signal = (math.pi / 2 * torch.arange(m + 1, dtype=torch.float32) / m / (c_2 + 1)).sin() ** 2
    levels = [0.0]
    for ratio in (signal[:-1] / signal[1:]).clip(min=c_1).flip(0).tolist():
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return torch.tensor(levels[::-1], dtype=torch.float64)


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


def _ended(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


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

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

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


class TimeLaw(Protocol):
    """A schedule sigma(t), increasing over the times of a grid, with sigma(0) = 0."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t."""

    def rate(self, t: Tensor) -> Tensor:
        """Its derivative d sigma / dt."""

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the level is reached."""


@dataclass(frozen=True)
class Linear:
    """sigma(t) = t."""

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class VE:
    """sigma(t) = sqrt(t)."""

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return 0.5 / t.sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma**2


@dataclass(frozen=True)
class VP:
    """sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1."""

    beta_d: float = 19.9
    beta_min: float = 0.1

    @classmethod
    def through(cls, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> "VP":
        """The process with `sigma(epsilon_s) = sigma_min` and `sigma(1) = sigma_max`.

        Raises:
            UsageError: epsilon_s is not between 0 and 1, or there is no such process.
        """
        if not 0 < epsilon_s < 1:
            raise UsageError(f"epsilon_s is {epsilon_s}: expected a time between 0 and 1")
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        if low >= epsilon_s * high:
            raise UsageError(
                f"no VP process has sigma_min {sigma_min} at time {epsilon_s} and sigma_max "
                f"{sigma_max} at 1: expected a smaller sigma_min or a larger epsilon_s"
            )
        beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
        return cls(beta_d, high - beta_d / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(self.beta_d / 2 * t**2 + self.beta_min * t).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return (self.beta_min + self.beta_d * t) / 2 * (sigma + 1 / sigma)

    def time(self, sigma: Tensor) -> Tensor:
        root = (self.beta_min**2 + 2 * self.beta_d * torch.log1p(sigma**2)).sqrt()
        return (root - self.beta_min) / self.beta_d


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

    def __getitem__(self, part: slice) -> "Schedule":
        """The grid points in `part`, consecutive ones, and the steps between them."""
        if part.step not in (None, 1):
            raise ValueError("the weights of a step hold from one level to the next: no stride")
        sigmas = self.sigmas[part]
        return Schedule(sigmas, self.stages[part][: len(sigmas) - 1])


OPTIONS = {
    "solver": ("heun", "euler"),
    "discretization": ("edm", "vp", "ve", "iddpm"),
    "schedule": ("linear", "vp", "ve"),
    "scaling": ("none", "vp"),
}
"""The named choices of the ablation sampler, the default first."""


@dataclass(frozen=True)
class Ablation:
    """Settings of the ablation sampler, named as published (Karras et al. 2022, algorithm 3).

    Attributes:
        alpha: where in its step the second slope is taken: 1 Heun, 2/3 Ralston, 1/2 midpoint.
        sigma_min, sigma_max: None is the end that belongs to the discretization.
        rho: of the "edm" discretization.
        epsilon_s: the time of sigma_min in the "vp" discretization and schedule.
        c_1, c_2, m: of the "iddpm" table.

    Raises:
        UsageError: an unknown name, or alpha outside (0, 1].
    """

    steps: int = 18
    solver: str = "heun"
    discretization: str = "edm"
    schedule: str = "linear"
    scaling: str = "none"
    alpha: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    epsilon_s: float = 1e-3
    c_1: float = 1e-3
    c_2: float = 8e-3
    m: int = 1000
    churn: Churn = Churn()

    def __post_init__(self) -> None:
        for name, choices in OPTIONS.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"{name} is {value!r}: expected one of {', '.join(choices)}")
        if not 0 < self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha}: expected 0 < alpha <= 1")

    def plan(
        self, lowest: float = 0.0, highest: float = math.inf, round_sigma: Rounding = exact
    ) -> Schedule:
        """The frozen schedule for a network that knows the levels from `lowest` to `highest`.

        Raises:
            UsageError: the grid or the VP process cannot be made.
        """
        low, high = self._range()
        low, high = max(low, lowest), min(high, highest)
        sigmas = _ended(round_sigma(self._grid(low, high)[:-1]))
        lifts = self.churn.lifts(sigmas, round_sigma)
        return Schedule(sigmas, self._stages(sigmas, lifts, self._law(low, high)))

    def _range(self) -> tuple[float, float]:
        """The ends of the grid before the network's limits."""
        ends = torch.tensor([self.epsilon_s, 1.0], dtype=torch.float64)
        low, high = {
            "edm": (0.002, 80.0),
            "vp": VP().sigma(ends).tolist(),
            "ve": (0.02, 100.0),
            "iddpm": (0.002, 81.0),
        }[self.discretization]
        return (
            low if self.sigma_min is None else self.sigma_min,
            high if self.sigma_max is None else self.sigma_max,
        )

    def _grid(self, low: float, high: float) -> Tensor:
        match self.discretization:
            case "vp":
                return vp_grid(self.steps, low, high, self.epsilon_s)
            case "ve":
                return ve_grid(self.steps, low, high)
            case "iddpm":
                return iddpm_grid(self.steps, low, high, self.c_1, self.c_2, self.m)
            case _:
                return sigma_grid(self.steps, low, high, self.rho)

    def _law(self, low: float, high: float) -> TimeLaw:
        match self.schedule:
            case "vp":
                return VP.through(low, high, self.epsilon_s)
            case "ve":
                return VE()
            case _:
                return Linear()

    def _stages(self, sigmas: Tensor, lifts: tuple[Lift, ...], law: TimeLaw) -> tuple[Stage, ...]:
        """The weights of all steps; every name is (N,)."""
        ends = sigmas[1:]
        above_zero = (ends > 0).to(ends)
        start = law.time(torch.stack([lift.sigma for lift in lifts]))
        h = law.time(ends) * above_zero - start
        reach = self.alpha * h * above_zero
        share = (0.5 / self.alpha if self.solver == "heun" else 0.0) * above_zero

        here = _Point.at(start, law, self.scaling)
        trial = _Point.at(start + reach, law, self.scaling)
        trial_keep = here.scale / trial.scale * (1 + reach * here.growth)
        trial_first = here.scale / trial.scale * reach * here.rate

        from_here = here.scale / _scale(ends, self.scaling)
        from_trial = trial.scale / _scale(ends, self.scaling) * h * share
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
    def at(cls, t: Tensor, law: TimeLaw, scaling: str) -> "_Point":
        sigma, rate = law.sigma(t), law.rate(t)
        growth = -sigma * rate / (1 + sigma**2) if scaling == "vp" else torch.zeros_like(t)
        return cls(sigma, rate, _scale(sigma, scaling), growth)


def _scale(sigma: Tensor, scaling: str) -> Tensor:
    """s where the level is sigma; that of VP keeps the variance of unit data at 1."""
    return (1 + sigma**2).rsqrt() if scaling == "vp" else torch.ones_like(sigma)
