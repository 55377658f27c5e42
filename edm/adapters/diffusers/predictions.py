"""What a diffusers network predicts: F(y, t) of y = a x_0 + b eps, read as a denoiser, and back.

    F = alpha eps + beta D,    D = (alpha y - b F) / (alpha a - beta b)

    | prediction                     | alpha | beta   |
    | epsilon                        | 1     | 0      |
    | sample                         | 0     | 1      |
    | flow_prediction                | 1     | -1     |
    | v_prediction                   | s a   | -b / s |    s = 1, but in EDM's schedulers sigma_data
    | EDM's, which is called epsilon | -s a  | b / s  |

    | inputs | a, b                             | t                               |
    | VP     | 1 / sqrt(1 + sigma^2), sigma a   | position of ln sigma in a table |
    | flow   | 1 / (1 + sigma), sigma a         | T sigma / (1 + sigma)           |
    | EDM    | 1 / sqrt(s^2 + sigma^2), sigma a | ln(sigma) / 4                   |

The table is `ln sqrt((1 - abar_t) / abar_t)` of the T steps of training, linear between them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from edm.adapters.diffusers.schedules import Family, class_of
from linear_structure.denoise import Position, coefficients
from linear_structure.system.errors import UsageError

SLACK = 1e-6  # of a level: what float32 takes from the ends of a table
PREDICTIONS = {name: name for name in ("epsilon", "sample", "v_prediction", "flow_prediction")}
EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "v_prediction"}


class Inputs(Protocol):
    """What a network is told of a level sigma, each in sigma's shape, float64."""

    @property
    def sigma_min(self) -> float:
        """The lowest level that it knows."""

    @property
    def sigma_max(self) -> float:
        """The highest one."""

    def position(self, sigma: Tensor) -> Position:
        """Of y, the state that it takes."""

    def time(self, sigma: Tensor) -> Tensor:
        """t at the level."""

    def sigma(self, t: Tensor) -> Tensor:
        """The level at t; infinite where no signal is left."""


@dataclass(frozen=True, eq=False)
class TabledInputs:
    """VP's, with times that are positions in a table."""

    log_sigmas: Tensor  # (T,) float64, rising; the last one may be infinite

    @property
    def _finite(self) -> Tensor:
        return self.log_sigmas[self.log_sigmas.isfinite()]

    @property
    def sigma_min(self) -> float:
        return float(self._finite[0].exp())

    @property
    def sigma_max(self) -> float:
        return float(self._finite[-1].exp())

    def position(self, sigma: Tensor) -> Position:
        return Position(1 / (1 + sigma**2).sqrt(), 1 / (1 + sigma**-2).sqrt())

    def time(self, sigma: Tensor) -> Tensor:
        table, wanted = self._finite.to(sigma.device), sigma.log()
        low = (torch.searchsorted(table, wanted, right=True) - 1).clamp(0, len(table) - 2)
        share = (wanted - table[low]) / (table[low + 1] - table[low])
        return low + share.clamp(0, 1)  # beyond by rounding alone: other levels are refused

    def sigma(self, t: Tensor) -> Tensor:
        table = self.log_sigmas.to(t.device)
        low, share = t.floor().long(), t.frac()
        between = table[low] + share * (table[t.ceil().long()] - table[low])
        return torch.where(share == 0, table[low], between).exp()


@dataclass(frozen=True)
class FlowInputs:
    """Flow matching's: at t = T there is noise alone."""

    train_steps: int
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def position(self, sigma: Tensor) -> Position:
        return Position(1 / (1 + sigma), 1 / (1 + 1 / sigma))

    def time(self, sigma: Tensor) -> Tensor:
        return self.train_steps / (1 + 1 / sigma)

    def sigma(self, t: Tensor) -> Tensor:
        return t / (self.train_steps - t)


@dataclass(frozen=True)
class ScaledInputs:
    """EDM's, and those of Euler with continuous times."""

    sigma_min: float
    sigma_max: float
    sigma_data: float

    def position(self, sigma: Tensor) -> Position:
        scale = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        return Position(scale, sigma * scale)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def sigma(self, t: Tensor) -> Tensor:
        return (4 * t).exp()


@dataclass(frozen=True, eq=False)
class Prediction:
    """How a network is called, and how its output is read; made by `prediction_of`."""

    inputs: Inputs
    kind: str
    sigma_data: float = 1.0

    def parts(self, a: Tensor, b: Tensor) -> tuple[Any, Any]:
        """alpha and beta of a state at (a, b)."""
        s = self.sigma_data
        return {
            "epsilon": (1, 0),
            "sample": (0, 1),
            "flow_prediction": (1, -1),
            "v_prediction": (s * a, -b / s),
            "edm": (-s * a, b / s),
        }[self.kind]

    def check(self, sigma: Tensor) -> None:
        """Raise a UsageError for levels that the network does not know: t would be a wrong one."""
        low, high = self.inputs.sigma_min, self.inputs.sigma_max
        known = (sigma >= low * (1 - SLACK)) & (sigma <= high * (1 + SLACK)) & sigma.isfinite()
        if not bool(known.all()):
            wrong = float(sigma[~known].flatten()[0])
            raise UsageError(
                f"sigma {wrong:.4g} is outside of the levels that the network was trained on: "
                f"expected {low:.4g} to {high:.4g}"
            )

    def read(self, y: Tensor, at: Position, output: Tensor) -> Tensor:
        """D of what the network made of y (B, *S), in y's dtype: the first channels of it count."""
        a, b = coefficients(at, y)
        alpha, beta = self.parts(a, b)
        return (alpha * y - b * output[:, : y.shape[1]].to(y)) / (alpha * a - beta * b)

    def told(self, y: Tensor, at: Position, denoised: Tensor) -> Tensor:
        """F of y (B, *S), such that `read` gives D."""
        a, b = coefficients(at, y)
        alpha, beta = self.parts(a, b)
        return alpha * (y - a * denoised) / b + beta * denoised


def prediction_of(scheduler: Any) -> Prediction:
    """What the network of a scheduler predicts, and from what.

    Raises:
        UsageError: the scheduler, or the prediction, is not known here.
    """
    family, config = Family.of(scheduler), scheduler.config
    if family is Family.FLOW:
        return Prediction(FlowInputs(config.num_train_timesteps), "flow_prediction")
    if class_of(scheduler).startswith("EDM"):
        kind = _known(config, EDM_PREDICTIONS)
        levels = config.sigma_min, config.sigma_max, config.sigma_data
        return Prediction(ScaledInputs(*levels), kind, config.sigma_data)
    kind = _known(config, PREDICTIONS)
    if config.get("use_flow_sigmas"):
        return Prediction(FlowInputs(config.num_train_timesteps), kind)
    kept = scheduler.alphas_cumprod.double()
    table = TabledInputs(((1 - kept) / kept).log() / 2)
    if config.get("timestep_type") != "continuous" or kind != "v_prediction":
        return Prediction(table, kind)
    low, high = config.sigma_min or table.sigma_min, config.sigma_max or table.sigma_max
    return Prediction(ScaledInputs(low, high, 1.0), kind)


def _known(config: Any, kinds: Mapping[str, str]) -> str:
    if config.prediction_type not in kinds:
        raise UsageError(f"prediction {config.prediction_type!r}: expected {', '.join(kinds)}")
    return kinds[config.prediction_type]
