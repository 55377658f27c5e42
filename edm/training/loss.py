"""The denoising loss and the noise levels it is taken at (Karras et al. 2022, table 1).

    loss = w(sigma) (D(y + sigma eps, sigma) - y)^2,   eps ~ N(0, I)

          sigma                                   weight w
    EDM   exp(mean + std N(0, 1))                 (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    VP    sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t ~ U(epsilon_t, 1)         1 / sigma^2
    VE    sigma_min (sigma_max / sigma_min)^U(0, 1)                               1 / sigma^2

EDM's weight makes the loss of a network that predicts nothing 1 at every sigma. Its sigmas lie
above 20 or below 0.005 five to six times in ten thousand: a small network learns little there, so
`log_uniform_share` is the share of sigmas drawn log-uniformly in [0.002, 80] instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm.training.augment import Augment
from linear_structure.denoise import Denoiser, expand
from linear_structure.sampling.processes import PublishedVP, geometric

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
class VP:
    """Sigmas of the variance-preserving process at uniform times (Song et al. 2021)."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw (count,) noise levels."""
        t = 1 + torch.rand(count, device=device) * (self.epsilon_t - 1)
        return PublishedVP(self.beta_d, self.beta_min).sigma(t)

    def weight(self, sigma: Tensor) -> Tensor:
        """`1 / sigma^2`."""
        return sigma**-2


@dataclass(frozen=True)
class VE:
    """Log-uniform sigmas (Song et al. 2021)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigmas(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw (count,) noise levels."""
        return geometric(torch.rand(count, device=device), self.sigma_min, self.sigma_max)

    def weight(self, sigma: Tensor) -> Tensor:
        """`1 / sigma^2`."""
        return sigma**-2


def denoising_loss(
    loss: Loss,
    network: Callable[..., Tensor],
    images: Tensor,
    class_labels: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    augment: Augment | None = None,
) -> Tensor:
    """Weighted squared error of one noisy copy of each image, not reduced.

    Random numbers come from the global generator of the images' device: sigma, augmentation, noise.

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
