"""The one interface: a denoiser, the score and ODE slope that are views of it, and a model.

With `x_sigma = x_0 + sigma * eps` and sigma as the only time (Karras et al. 2022), the denoiser
`D(x, sigma) = E[x_0 | x_sigma = x]` determines everything else:

    score  s(x, sigma)   = (D(x, sigma) - x) / sigma^2          (Tweedie)
    slope  dx / d sigma  = (x - D(x, sigma)) / sigma = -sigma s (probability-flow ODE)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from linear_structure.system.errors import UsageError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`D(x, sigma)`: x (B, *S), sigma () or (B,) -> (B, *S) in x's shape, dtype and device."""


class Position(NamedTuple):
    """Where a state `x = scale x_0 + noise eps` is on its way; each is () or (B,), 0 or more.

    Its level is sigma = noise / scale, which is infinite where no signal is left: scale 0.
    """

    scale: Tensor | float
    noise: Tensor | float


Level = Tensor | float | Position
"""Of a state: sigma, () or (B,), stands for `Position(1, sigma)`."""


@dataclass(frozen=True)
class Posterior:
    """What a model says about a noised batch; None is what its kind does not say.

    Attributes:
        denoised: (B, *S), posterior mean of the data.
        log_prob: (B,), log density in nats of the noised data.
        entropy: (B,), of the weights of the data points, in nats: 0 (one point) to log N.
        nearest: (B,) int64, index of the nearest data point.
        responsibilities: (B, K), posterior probability of each component.
    """

    denoised: Tensor
    log_prob: Tensor
    entropy: Tensor | None = None
    nearest: Tensor | None = None
    responsibilities: Tensor | None = None


class Model(Protocol):
    """A distribution of data whose denoiser and density are formulas.

    Attributes:
        kind: its name on the command line and in files.
        files: what it is kept in, for each of its tensors NAME.pt (floats) or NAME.npy (uint8).
    """

    kind: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Model":
        """The model of finite tensors; raises ValueError, in one sentence, where they make none."""

    def tensors(self) -> dict[str, Tensor]:
        """Its values by file name, in the precision that files keep."""

    def rescale(self, factor: float) -> "Model":
        """The same model with all eigenvalues times a factor; raises UsageError without any."""
        raise UsageError(f"a model of kind {self.kind} has no eigenvalues to rescale")

    @property
    def dim(self) -> int:
        """Number of values D of one sample."""

    def to(self, x: Tensor) -> "Model":
        """The same model in the dtype and on the device of x."""

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) noised data with a CPU generator, in the model's dtype and device."""

    def posterior(self, x: Tensor, sigma: Tensor | float) -> Posterior:
        """What is known from x (B, *S), noised to sigma, () or (B,).

        Raises:
            ValueError: sigma is 0 and the model has no density.
        """

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Posterior mean of the data: x (B, *S), sigma () or (B,) -> (B, *S)."""
        return self.posterior(x, sigma).denoised

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density in nats of the noised data at x (B, *S): (B,). Raises as `posterior`."""
        return self.posterior(x, sigma).log_prob


def expand(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Give sigma, () or (B,), the dtype, device and trailing dimensions that broadcast over x.

    Args:
        sigma: noise level(s) in units of x; one for the batch or one for each sample.
        x: (B, *S).

    Returns:
        () or (B, 1, ..., 1).

    Raises:
        ValueError: sigma is neither () nor (B,).
    """
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}: expected () or ({x.shape[0]},), "
            f"one for each of the {x.shape[0]} samples"
        )
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def single(x: Tensor) -> Tensor:
    """x in float32 where it has half precision, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def coefficients(level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of a level, `x = a x_0 + b eps`, each as `expand` gives it."""
    scale, noise = level if isinstance(level, Position) else Position(1.0, level)
    return expand(scale, x), expand(noise, x)


def score(denoise: Denoiser, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Gradient of the log density of the noised data, `(D - x) / sigma^2`: (B, *S).

    It is in x's dtype; of half precision, whose squares of sigma overflow, computed in float32.
    """
    sigma, wide = _exactly(sigma), single(x)
    return ((denoise(x, sigma) - wide) / expand(sigma, wide) ** 2).to(x.dtype)


def slope(denoise: Denoiser, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Right-hand side `dx/dsigma = (x - D) / sigma` of the probability-flow ODE: (B, *S)."""
    sigma = _exactly(sigma)
    return (x - denoise(x, sigma)) / expand(sigma, x)


def _exactly(sigma: Tensor | float) -> Tensor:
    """A tensor that keeps all digits of a Python number, which torch would round to float32."""
    return sigma if isinstance(sigma, Tensor) else torch.tensor(sigma, dtype=torch.float64)
