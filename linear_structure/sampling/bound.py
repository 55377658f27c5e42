"""The bound on the likelihood that a DDPM chain gives, term by term.

With S = sigma_t, n = sigma_{t-1} and D = D(x_0 + S noise, S), in nats for a sample of d values,

    L_T = KL(N(sqrt(abar_T) x_0, 1 - abar_T) || N(0, I)),    abar = 1 / (1 + sigma^2)
    L_t = d/2 (v_q/v_p - 1 - ln(v_q/v_p)) + (1 - n^2/S^2)^2 |D - x_0|^2 / (2 v_p)
    L_0 = -log N(x_0; D, v_1)

where v_q is the variance of `chains.posterior` and v_p the chain's own; where v_p = v_q, L_t is
`(1/n^2 - 1/S^2) |D - x_0|^2 / 2`. Their sum is -log p(x_0) or more, on average over the noise
(Sohl-Dickstein et al. 2015, arXiv 1503.03585; Ho et al. 2020, arXiv 2006.11239, equation 5). All of
it is in unscaled x: a divergence does not depend on the scale, and L_0 is of x_0 itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.special import log_ndtr

from linear_structure.denoise import Denoiser
from linear_structure.sampling.chains import ANCESTRAL, Rule, posterior
from linear_structure.sampling.likelihood import bits_per_dimension
from linear_structure.sampling.samplers import Noise


@dataclass(frozen=True)
class Terms:
    """The bound's terms in nats for each of B samples.

    Attributes:
        prior: L_T, (B,).
        steps: L_t from t = T down to 2, (T - 1, B).
        data: L_0, (B,).
    """

    prior: Tensor
    steps: Tensor
    data: Tensor

    @property
    def total(self) -> Tensor:
        """Bound on -log p(x_0): (B,)."""
        return self.prior + self.steps.sum(0) + self.data

    def bits(self, shape: Sequence[int], bins_per_unit: float = 1.0) -> Tensor:
        """The bound in bits for each of the values of a sample of this shape: (B,).

        Terms made with `bins` count bits already; else as `bits_per_dimension`.
        """
        return bits_per_dimension(-self.total, shape, bins_per_unit)


def terms(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    variance: str,
    noise: Noise,
    bins: float | None = None,
) -> Terms:
    """All terms, with one draw of the noise for each: T calls.

    Args:
        x: clean data x_0 (B, *S).
        sigmas: (T + 1,) decreasing to 0, T at least 2: `processes.ddpm_grid`.
        variance: of the chain: "beta" or "posterior". The posterior's v_1 is 0: v_2 stands for it,
            and the bound has a gap that more steps do not close.
        bins: for values that are the middle of bins, as many a unit: L_0 is the probability of
            the bin. None: the density.

    Raises:
        ValueError: another word, fewer than two steps, or sigmas that do not decrease to 0.
    """
    if variance not in ANCESTRAL:
        raise ValueError(f"variance is {variance!r}: expected one of {', '.join(ANCESTRAL)}")
    if len(sigmas) < 3:
        raise ValueError(f"{len(sigmas) - 1} steps: a bound needs 2 or more")
    x = x.to(torch.float64)
    exact, chosen = posterior(sigmas), ANCESTRAL[variance](sigmas)
    steps = []
    for of_data, rule in zip(exact[:-1], chosen[:-1], strict=True):
        error = _denoised(denoise, x, rule, noise) - x
        steps.append(_divergence(error, of_data.spread, rule))
    mean = _denoised(denoise, x, chosen[-1], noise)
    last = _last_variance(chosen[-1].sigma, chosen[-2], variance)
    log_prob = _log_density if bins is None else partial(discretized_log_prob, bins_per_unit=bins)
    return Terms(_prior(x, chosen[0].sigma), torch.stack(steps), -log_prob(x, mean, last))


def _denoised(denoise: Denoiser, x: Tensor, rule: Rule, noise: Noise) -> Tensor:
    return denoise(x + rule.sigma * noise(x), rule.sigma)


def _divergence(error: Tensor, spread: Tensor, rule: Rule) -> Tensor:
    """L_t (B,) of D - x_0 (B, *S) and the posterior's standard deviation."""
    ratio = (spread / rule.spread) ** 2
    moved = (rule.pull / rule.spread) ** 2 * error.flatten(1).square().sum(1)
    return (error[0].numel() * (ratio - 1 - ratio.log()) + moved) / 2


def _last_variance(sigma: Tensor, before: Rule, variance: str) -> Tensor:
    """v_1: what the chain's formula gives at n = 0, or v_2 where that is 0."""
    return sigma**2 / (1 + sigma**2) if variance == "beta" else before.spread**2


def _prior(x: Tensor, sigma: Tensor) -> Tensor:
    """L_T (B,) of x_0 (B, *S)."""
    left = 1 / (1 + sigma**2)
    square = x.flatten(1).square().sum(1)
    return (left * square - x[0].numel() * (left + torch.log1p(-left))) / 2


def _log_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance I): (B,)."""
    square = (x - mean).flatten(1).square().sum(1) / variance
    return -(square + x[0].numel() * (2 * math.pi * variance).log()) / 2


def discretized_log_prob(
    x: Tensor, mean: Tensor, variance: Tensor, bins_per_unit: float = 127.5
) -> Tensor:
    """Log probability of the bins around x under N(mean, variance I): (B,).

    A bin is 1 / bins_per_unit wide; those of -1 and 1 are open (Ho et al. 2020, equation 13).

    Args:
        x: (B, *S), middles of bins from -1 to 1.
        mean: (B, *S).
        variance: ().
        bins_per_unit: 127.5 for 8-bit pixels.
    """
    half, width = 0.5 / bins_per_unit, variance.sqrt()
    lower = torch.where(x - half < -1, -torch.inf, (x - half - mean) / width)
    upper = torch.where(x + half > 1, torch.inf, (x + half - mean) / width)
    mirrored = lower > 0  # the tail above is as the one below, which float64 holds
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    below = log_ndtr(high)
    return (below + torch.log(-torch.expm1(log_ndtr(low) - below))).flatten(1).sum(1)
