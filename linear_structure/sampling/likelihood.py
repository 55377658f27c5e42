"""Log densities along the probability-flow ODE, and what the loss says of the entropy.

In ln sigma the flow is `dx / d ln sigma = x - D(x, sigma)`. Along it, in d dimensions,

    log p(x; low) = log p(x_high; high) + int (d - tr dD/dx) d ln sigma

(Chen et al. 2018; Song et al. 2021, arXiv 2011.13456, section 4.3.) A trace is exact, of d
vector-Jacobian products, or Hutchinson's, `v' dD/dx v` of random probes v; one probe of signs has
the variance 2 (|J|^2 - sum J_ii^2), J symmetric, a normal one 2 |J|^2. Steps are fixed, so that a
sample does not depend on its batch.

The entropy of the noised data changes by `dh / d ln sigma = d - loss`, with the loss
`E |D - x_0|^2 / sigma^2` of the exact denoiser (de Bruijn; Guo, Shamai and Verdu 2005). It needs no
samples of the flow, and with the loss of any other denoiser it is an upper bound, of its cross
entropy.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser

Trace = Callable[[Denoiser, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Denoiser, x (B, *S), sigma () -> `D(x, sigma)` (B, *S) and `tr dD/dx` (B,), both detached."""


def exact_trace(denoise: Denoiser, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """D (B, *S) and `tr dD/dx` (B,), by one vector-Jacobian product for each of the d values."""
    with torch.inference_mode(False), torch.enable_grad():
        x, denoised = _tracked(denoise, x, sigma)
        columns = [
            torch.autograd.grad(value, x, retain_graph=True)[0].flatten(1)[:, index]
            for index, value in enumerate(denoised.flatten(1).sum(0))
        ]
    return denoised.detach(), torch.stack(columns).sum(0)


def hutchinson(probes: Tensor) -> Trace:
    """The trace estimated by probes (P, B, *S) of mean 0 and variance 1, kept along the path."""
    return partial(_estimated, probes=probes)


def _estimated(
    denoise: Denoiser, x: Tensor, sigma: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        x, denoised = _tracked(denoise, x, sigma)
        products = [
            probe * torch.autograd.grad(denoised, x, probe, retain_graph=True)[0]
            for probe in probes.clone()
        ]
    return denoised.detach(), torch.stack(products).flatten(2).sum(2).mean(0)


def _tracked(denoise: Denoiser, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf of the graph, and D there; copies, for autograd keeps no inference tensors."""
    x = x.detach().clone().requires_grad_()
    return x, denoise(x, sigma.clone())


def log_prob(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, end: Callable[[Tensor], Tensor], trace: Trace
) -> Tensor:
    """Log density in nats at sigmas[0] of x (B, *S), by Heun's method in ln sigma: (B,) float64.

    2 (M - 1) calls, of second order in the steps.

    Args:
        sigmas: (M,) ascending, above 0.
        end: log density (B,) at sigmas[-1] of the data noised to it, of x (B, *S). That of
            N(mu, Sigma + sigma^2 I) is near; N(0, sigma^2 I) leaves the mean out.
        trace: `exact_trace`, or what `hutchinson` gives.

    Raises:
        ValueError: sigmas do not ascend from above 0.
    """
    _check_ascending(sigmas)
    x, total = x.to(torch.float64), x.new_zeros(len(x), dtype=torch.float64)
    for sigma, sigma_next in pairwise(sigmas):
        h = (sigma_next / sigma).log()
        slope, rate = _rates(denoise, x, sigma, trace)
        slope_next, rate_next = _rates(denoise, x + h * slope, sigma_next, trace)
        x = x + h / 2 * (slope + slope_next)
        total = total + h / 2 * (rate + rate_next)
    return end(x) + total


def _rates(denoise: Denoiser, x: Tensor, sigma: Tensor, trace: Trace) -> tuple[Tensor, Tensor]:
    """What x (B, *S) and the logarithm of a volume (B,) there change by, for each ln sigma."""
    denoised, traced = trace(denoise, x, sigma)
    return x - denoised, x[0].numel() - traced


def _check_ascending(sigmas: Tensor) -> None:
    if not bool((sigmas.diff() > 0).all()) or not sigmas[0] > 0:
        raise ValueError("sigmas: expected levels that ascend, from above 0")


def bits_per_dimension(nats: Tensor, shape: Sequence[int], bins_per_unit: float = 127.5) -> Tensor:
    """`-log p / (d ln 2) + log2(bins per unit)`: the bits that a value cut into bins costs.

    Args:
        nats: log density of x, any shape.
        shape: of one sample, d values.
        bins_per_unit: 127.5 for 8-bit pixels in [-1, 1]. They are made continuous by
            `x = (v + u - 1/2) / 127.5 - 1` with u uniform in [0, 1).
    """
    return -nats / (math.prod(shape) * math.log(2)) + math.log2(bins_per_unit)


def entropy_from_losses(
    entropy: float, losses_gaussian: Tensor, sigmas: Tensor, losses: Tensor
) -> float:
    """Entropy in nats of the data noised to sigmas[0], or a bound on a cross entropy.

    `h = h_G - int (loss_G - loss) d ln sigma`, by the trapezoidal rule; above sigmas[-1] the two
    losses are taken to be equal.

    Args:
        entropy: h_G, of the Gaussian of the data's mean and covariance, noised to sigmas[0].
        losses_gaussian: (M,), `E |D - x_0|^2 / sigma^2` of that Gaussian's own data.
        sigmas: (M,) ascending, above 0.
        losses: (M,), the same of a denoiser on the data.

    Raises:
        ValueError: sigmas do not ascend from above 0.
    """
    _check_ascending(sigmas)
    gap = (losses_gaussian - losses).double()
    return entropy - float(torch.trapezoid(gap, sigmas.double().log()))
