"""Clocks: noise levels as functions of time, and tables of them (Karras et al. 2022, table 1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linear_structure.system.errors import UsageError


@dataclass(frozen=True)
class Linear:
    """sigma(t) = t: a schedule, which increases over the times of a grid, with sigma(0) = 0."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t."""
        return t

    def rate(self, t: Tensor) -> Tensor:
        """Its derivative d sigma / dt."""
        return torch.ones_like(t)

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the level is reached."""
        return sigma


@dataclass(frozen=True)
class RootTime(Linear):
    """sigma(t) = sqrt(t): VE's in continuous time."""

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def rate(self, t: Tensor) -> Tensor:
        return 0.5 / t.sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma**2


@dataclass(frozen=True)
class VP(Linear):
    """sigma(t)^2 = exp(B(t)) - 1 with B(t) = beta_d t^2 / 2 + beta_min t (Song et al. 2021)."""

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
        return torch.expm1(self.exponent(t)).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return (self.beta_min + self.beta_d * t) / 2 * (sigma + 1 / sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.inverse(torch.log1p(sigma**2))

    def exponent(self, t: Tensor) -> Tensor:
        """B(t) = log(1 + sigma(t)^2)."""
        return self.beta_d / 2 * t**2 + self.beta_min * t

    def inverse(self, exponent: Tensor) -> Tensor:
        """The time at which B(t) is `exponent`."""
        root = (self.beta_min**2 + 2 * self.beta_d * exponent).sqrt()
        return (root - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class PublishedVP(VP):
    """VP rounded as in the published training, in float32.

    `expm1` and `log1p` would shift the smallest levels.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return (self.exponent(t).exp() - 1).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.inverse((1 + sigma**2).log())


def geometric(fraction: Tensor, first: float, last: float) -> Tensor:
    """`first (last / first)^fraction`: from first to last, evenly spaced in the logarithm."""
    return first * (last / first) ** fraction


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
