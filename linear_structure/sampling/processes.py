"""Clocks and scales: noise levels as functions of time, and tables of them.

A diffusion process in the coordinates of its papers is `dx_t = f(t) x_t dt + g(t) dW`. Divided by
its scale s it is one random walk for all, `x = x_t / s`, `dx = sqrt(d sigma^2) dW`, read at
different clocks sigma(t). With b = beta_min + beta_d t and B its integral from 0 to t:

    |       | sigma(t)                                | s(sigma)                            | f    |
    | VE    | sigma_min (sigma_max / sigma_min)^t     | 1                                   | 0    |
    | VP    | sqrt(e^B - 1)                           | 1 / sqrt(1 + sigma^2) = e^(-B/2)    | -b/2 |
    | SubVP | 2 sinh(B / 2)                           | e^(-asinh(sigma / 2)) = e^(-B/2)    | -b/2 |

For all of them `f = s'/s` and `g^2 = s^2 d(sigma^2)/dt` (Song et al. 2021, arXiv 2011.13456,
appendix B). A process is used to make a grid, and to read and write scaled states: samplers know
sigma alone. Karras et al. 2022 (table 1) call a clock of their own, sqrt(t), VE: it is a `Power`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser, Position, expand
from linear_structure.system.errors import UsageError


@dataclass(frozen=True)
class Power:
    """sigma(t) = t^p: time itself, or with p = 1/2 Karras' VE in continuous time."""

    exponent: float = 1.0

    def sigma(self, t: Tensor) -> Tensor:
        return t**self.exponent

    def rate(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        return self.exponent / t ** (1 - self.exponent)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma ** (1 / self.exponent)


class Process(Protocol):
    """A clock and a scale; t is a time in (0, 1], and every result has its argument's shape."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t, increasing."""

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the level is reached."""

    def scale(self, sigma: Tensor) -> Tensor:
        """s = x_t / x where the level is sigma."""

    def position(self, sigma: Tensor) -> Position:
        """Where x_t is on its way when the level is sigma: `x_t = s x_0 + s sigma eps`."""
        scale = self.scale(sigma)
        return Position(scale, scale * sigma)

    def drift(self, t: Tensor) -> Tensor:
        """f(t), the relative rate of change of the scale."""

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)^2, the variance of the noise that x_t receives in a unit of time."""

    def grid(self, steps: int, end: float) -> Tensor:
        """Levels evenly spaced in time, 1 to `end`, then 0: (steps + 1,). Raises as `times`."""
        return ended(self.sigma(times(steps, end)))


def times(steps: int, end: float) -> Tensor:
    """The times of a process's grid, evenly spaced from 1 to `end`: (steps,) float64.

    Raises:
        ValueError: no step, or an end outside (0, 1).
    """
    check_steps(steps)
    if not 0 < end < 1:
        raise ValueError(f"end is {end}: expected a time between 0 and 1")
    return torch.linspace(1, end, steps, dtype=torch.float64)


def check_steps(steps: int) -> None:
    """Raise a ValueError unless there is at least one step."""
    if steps < 1:
        raise ValueError(f"steps is {steps}: expected at least 1")


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding process (Song et al. 2021); at time 0 its level is sigma_min, not 0.

    Published for pixels in [0, 1] with levels from 0.01 to 50: twice that in [-1, 1].
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, t: Tensor) -> Tensor:
        return geometric(t, self.sigma_min, self.sigma_max)

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / self._growth

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return 2 * self._growth * self.sigma(t) ** 2

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class LinearBeta:
    """The rate b(t) = beta_min + beta_d t at which a process forgets, and its integral."""

    beta_d: float = 19.9
    beta_min: float = 0.1

    def beta(self, t: Tensor) -> Tensor:
        """b(t)."""
        return self.beta_min + self.beta_d * t

    def exponent(self, t: Tensor) -> Tensor:
        """B(t), the integral of b from 0 to t."""
        return self.beta_d / 2 * t**2 + self.beta_min * t

    def inverse(self, exponent: Tensor) -> Tensor:
        """The time at which B(t) is `exponent`."""
        root = (self.beta_min**2 + 2 * self.beta_d * exponent).sqrt()
        return (root - self.beta_min) / self.beta_d

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = -b(t) / 2."""
        return -self.beta(t) / 2


@dataclass(frozen=True)
class VP(LinearBeta, Process):
    """The variance-preserving process (Song et al. 2021): sigma(t)^2 = exp(B(t)) - 1."""

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
        return torch.expm1(self.exponent(t)).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        sigma = self.sigma(t)
        return self.beta(t) / 2 * (sigma + 1 / sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.inverse(torch.log1p(sigma**2))

    def scale(self, sigma: Tensor) -> Tensor:
        """Keeps the variance of unit data at 1."""
        return (1 + sigma**2).rsqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t)


@dataclass(frozen=True)
class PublishedVP(VP):
    """VP rounded as in the published training, in float32.

    `expm1` and `log1p` would shift the smallest levels.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return (self.exponent(t).exp() - 1).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.inverse((1 + sigma**2).log())


@dataclass(frozen=True)
class SubVP(LinearBeta, Process):
    """The sub-VP process (Song et al. 2021): the scale of VP with less noise, s sigma = 1 - s^2."""

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * torch.sinh(self.exponent(t) / 2)

    def time(self, sigma: Tensor) -> Tensor:
        return self.inverse(2 * torch.asinh(sigma / 2))

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.exp(-torch.asinh(sigma / 2))

    def diffusion(self, t: Tensor) -> Tensor:
        return -self.beta(t) * torch.expm1(-2 * self.exponent(t))


def ddpm_grid(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """Levels of a DDPM chain of T steps, then 0: (steps + 1,) float64.

    `sigma^2 = (1 - abar) / abar`, `abar_i = prod (1 - beta_j)` over j <= i, and beta evenly spaced
    from beta_min / T to beta_max / T (Ho et al. 2020: T = 1000, 1e-4 to 0.02).

    Raises:
        ValueError: no step, or so few that a beta is not below 1.
    """
    check_steps(steps)
    if not 0 < beta_min <= beta_max < steps:
        raise ValueError(
            f"beta_min is {beta_min} and beta_max is {beta_max}: "
            f"expected 0 < beta_min <= beta_max < {steps}, the number of steps"
        )
    betas = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64) / steps
    exponents = -torch.log1p(-betas).cumsum(0)
    return ended(torch.expm1(exponents).sqrt().flip(0))


NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""`eps(x_t, t)` in a process's own coordinates: (B, *S), () or (B,) -> (B, *S)."""


def scaled(network: NoisePredictor, process: Process) -> Denoiser:
    """The denoiser of a network that predicts the noise: `D = x - sigma eps(s x, t(sigma))`."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = expand(sigma, x)
        return x - level * network(process.scale(level) * x, process.time(sigma))

    return denoise


def noise_predictor(denoise: Denoiser, process: Process) -> NoisePredictor:
    """The inverse of `scaled`: `eps = (x - D(x, sigma(t))) / sigma(t)` with `x = x_t / s`."""

    def network(scaled_x: Tensor, t: Tensor) -> Tensor:
        sigma = process.sigma(t)
        level = expand(sigma, scaled_x)
        x = scaled_x / process.scale(level)
        return (x - denoise(x, sigma)) / level

    return network


def geometric(fraction: Tensor, first: float, last: float) -> Tensor:
    """`first (last / first)^fraction`: from first to last, evenly spaced in the logarithm."""
    return first * (last / first) ** fraction


def ended(levels: Tensor) -> Tensor:
    """The levels and a final 0."""
    return torch.cat([levels, levels.new_zeros(1)])


def iddpm_levels(
    count: int = 1000, c_1: float = 0.001, c_2: float = 0.008, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The M + 1 levels u_0, ..., u_M = 0 of the iDDPM cosine schedule, on the CPU: (count + 1,).

    `u_{j-1}^2 + 1 = (u_j^2 + 1) / max(a_{j-1} / a_j, c_1)`, `a_j = sin^2(pi/2 j / (M (c_2 + 1)))`
    (Karras et al. 2022, table 1). The cosine terms are float32, as published, whatever the dtype of
    the levels: that moves the lowest ones by 5e-4 of themselves.
    """
    j = torch.arange(count + 1, dtype=torch.float32, device="cpu")
    a = (math.pi / 2 * j / count / (c_2 + 1)).sin() ** 2
    ratios = (a[:-1] / a[1:]).clamp(min=c_1).flip(0)
    double = dtype == torch.float64  # each type with the square root that its tables were made with
    sqrt: Callable[[Any], Any] = math.sqrt if double else torch.sqrt
    levels = [0.0]
    for ratio in ratios.tolist() if double else ratios:
        levels.append(sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return torch.tensor(levels[::-1], dtype=dtype, device="cpu")
