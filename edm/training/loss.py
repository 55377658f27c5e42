"""The denoising loss and the noise levels it is taken at (Karras et al. 2022, table 1).

    loss = w(sigma) (D(y + sigma eps, sigma) - y)^2,   eps ~ N(0, I)

                sigma                                   weight w
    EDM         exp(mean + std N(0, 1))                 1 / sigma^2 + 1 / sigma_data^2
    VP          sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t ~ U(epsilon_t, 1)    1 / sigma^2
    VE          sigma_min (sigma_max / sigma_min)^U(0, 1)                          1 / sigma^2
    LogUniform  as VE, between any two levels           as EDM or VE
    Levels      any of a list of levels                 1 / sigma^2

EDM's weight makes the loss of a network that predicts nothing 1 at every sigma. Its sigmas lie
above 20 or below 0.005 five to six times in ten thousand: a small network learns little there, so
`log_uniform_share` is the share of sigmas drawn log-uniformly in [0.002, 80] instead.

With the weight 1 / sigma^2 the loss is the squared error of the noise that D finds in x. On the
levels of a geometric grid it is NCSN's (Song and Ermon 2019), on those of a DDPM chain its "simple"
one (Ho et al. 2020); log-uniform levels make it a bound of the likelihood.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm.training.augment import Augment
from linear_structure.denoise import Denoiser, expand
from linear_structure.sampling.processes import PublishedVP, geometric
from linear_structure.system.errors import UsageError

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0


class Loss(Protocol):
    """Where the loss is taken and how it is weighted."""

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw `count` noise levels from the global generator: (count,) float32."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error at sigma, in sigma's shape."""


@dataclass(frozen=True)
class EDM:
    """Log-normal sigmas; a share of them log-uniform in [0.002, 80] on request."""

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 0.5
    log_uniform_share: float = 0.0

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        sigma = torch.exp(self.mean + self.std * torch.randn(count, device=device))
        if self.log_uniform_share == 0:
            return sigma
        # Where u is below 1, it is chosen, and U(0, 1).
        u = torch.rand(count, device=device) / self.log_uniform_share
        return torch.where(u < 1, geometric(u, SIGMA_MIN, SIGMA_MAX), sigma)

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class NoiseError(Loss):
    """The squared error of the noise, at whatever levels."""

    def weight(self, sigma: Tensor) -> Tensor:
        """`1 / sigma^2`."""
        return sigma**-2


@dataclass(frozen=True)
class VP(NoiseError):
    """Sigmas of the variance-preserving process at uniform times (Song et al. 2021)."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        t = 1 + torch.rand(count, device=device) * (self.epsilon_t - 1)
        return PublishedVP(self.beta_d, self.beta_min).sigma(t)


@dataclass(frozen=True)
class LogUniform(NoiseError):
    """Log-uniform sigmas between two levels, with EDM's weight where `sigma_data` is finite."""

    low: float
    high: float
    sigma_data: float = math.inf

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        return geometric(torch.rand(count, device=device), self.low, self.high)

    def weight(self, sigma: Tensor) -> Tensor:
        """`1 / sigma^2 + 1 / sigma_data^2`."""
        return super().weight(sigma) + self.sigma_data**-2


@dataclass(frozen=True)
class VE(LogUniform):
    """Log-uniform sigmas in the range of the VE process (Song et al. 2021)."""

    low: float = 0.02
    high: float = 100.0


@dataclass(frozen=True, eq=False)
class Levels(NoiseError):
    """Every one of some levels (L,) as likely as the others."""

    levels: Tensor

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        chosen = torch.randint(len(self.levels), (count,), device=device)
        return self.levels.float().to(device, non_blocking=True)[chosen]

    def within(self, low: float, high: float) -> "Levels":
        """Those of the levels that lie in [low, high].

        Raises:
            UsageError: none does.
        """
        if not len(kept := self.levels[(low <= self.levels) & (self.levels <= high)]):
            raise UsageError(
                f"none of the {len(self.levels)} noise levels from {float(self.levels.min()):g} to "
                f"{float(self.levels.max()):g} lies in the network's range, {low:g} to {high:g}"
            )
        return Levels(kept)


def denoising_loss(
    loss: Loss,
    network: Callable[..., Tensor],
    images: Tensor,
    class_labels: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    augment: Augment | None = None,
) -> Tensor:
    """Weighted squared error of one noisy copy of each image, not reduced.

    Random numbers come from global generators: of sigma and noise from that of the images' device,
    of the augmentation from the CPU's.

    Args:
        loss: noise levels and weight.
        network: `network(x, sigma, class_labels=..., augment_labels=...)`.
        images: clean y in [-1, 1], (B, C, H, W).
        class_labels: (B, label_dim), or a function that makes them of the augmented y and sigma
            (B,), such as an encoder that learns along; None without labels.
        augment: alters the images and labels what it did.

    Returns:
        `w (D(y + n, sigma) - y)^2`: (B, C, H, W).
    """
    sigma = loss.sigmas(len(images), images.device)
    clean, augment_labels = augment(images) if augment else (images, None)
    noisy = clean + expand(sigma, clean) * torch.randn_like(clean)
    labels = class_labels(clean, sigma) if callable(class_labels) else class_labels
    denoised = network(noisy, sigma, class_labels=labels, augment_labels=augment_labels)
    return expand(loss.weight(sigma), clean) * (denoised - clean) ** 2


@torch.no_grad()
def loss_at(loss: Loss, denoise: Denoiser, images: Tensor, sigma: float) -> float:
    """Mean weighted squared error per pixel of a denoiser at one sigma.

    The noise is that of seed 0: denoisers compared on equal images see equal noise.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    level = torch.tensor(sigma)
    noisy = images + level * noise.to(images)
    error = (denoise(noisy, level) - images).double().square().mean()
    return float(loss.weight(level).double() * error)
