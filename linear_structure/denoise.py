"""The one interface: a denoiser, and the score and ODE slope that are views of it.

With `x_sigma = x_0 + sigma * eps` and sigma as the only time (Karras et al. 2022), the denoiser
`D(x, sigma) = E[x_0 | x_sigma = x]` determines everything else:

    score  s(x, sigma)   = (D(x, sigma) - x) / sigma^2          (Tweedie)
    slope  dx / d sigma  = (x - D(x, sigma)) / sigma = -sigma s (probability-flow ODE)
"""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`D(x, sigma)`: x (B, *S), sigma () or (B,) -> (B, *S) in x's shape, dtype and device."""


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


def score(denoise: Denoiser, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Gradient of the log density of the noised data, `(D - x) / sigma^2`: (B, *S)."""
    sigma = _exactly(sigma)
    return (denoise(x, sigma) - x) / expand(sigma, x) ** 2


def slope(denoise: Denoiser, x: Tensor, sigma: Tensor | float) -> Tensor:
    """Right-hand side `dx/dsigma = (x - D) / sigma` of the probability-flow ODE: (B, *S)."""
    sigma = _exactly(sigma)
    return (x - denoise(x, sigma)) / expand(sigma, x)


def _exactly(sigma: Tensor | float) -> Tensor:
    """A tensor that keeps all digits of a Python number, which torch would round to float32."""
    return sigma if isinstance(sigma, Tensor) else torch.tensor(sigma, dtype=torch.float64)
