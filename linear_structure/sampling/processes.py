"""Time laws: schedules sigma(t) of a sampling ODE in time (Karras et al. 2022, table 1)."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from linear_structure.system.errors import UsageError


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
