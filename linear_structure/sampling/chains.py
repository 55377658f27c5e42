"""Markov chains down a grid of noise levels, each step one linear rule.

From level s to the next lower one n, every published chain of DDPM and of score SDEs is

    x' = keep x + pull D(x, s) + spread n,    n ~ N(0, I)

in unscaled x, with numbers that depend on the grid alone:

    |                  | keep          | spread^2                    | source                     |
    | `posterior`      | n^2/s^2       | n^2 (s^2-n^2)/s^2           | Ho 2020, small variance    |
    | `beta`           | n^2/s^2       | (s^2-n^2)(1+n^2)/(1+s^2)    | Ho 2020, large variance    |
    | `reverse`        | n^2/s^2       | s^2-n^2                     | Song 2021, VE predictor    |
    | `ddim`           | sqrt(n^2-v)/s | v = eta^2 n^2 (s^2-n^2)/s^2 | Song 2020, arXiv 2010.02502|
    | `vp_reverse`     |               |                             | Song 2021, VP predictor    |
    | `euler_maruyama` |               |                             | Song 2021, any process     |

pull is 1 - keep but in the last two. `posterior` is the ancestral sampler of VE, and DDIM with
eta = 1; `beta` is the ancestral sampler of VP; eta = 0 is `samplers.euler`. (Ho et al. 2020, arXiv
2006.11239; Song et al. 2021, arXiv 2011.13456, appendices E and F.) Nothing is added in the step
to 0, which gives D, or what the published predictor of VP has in its place.

Rules are made once, from the full grid, and then sliced (`rules[k:]`): a skip changes no amount.
Every step draws noise, also one that adds none: whoever skips k steps draws and drops that of k, or
with M corrector steps a level of k (1 + M) (`samplers.discard`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser
from linear_structure.sampling.grids import check_levels
from linear_structure.sampling.langevin import Corrector
from linear_structure.sampling.processes import VP, Process, times
from linear_structure.sampling.samplers import Noise, Step


class Rule(NamedTuple):
    """One step `x' = keep x + pull D(x, sigma) + spread n`; all are () float64."""

    sigma: Tensor
    keep: Tensor
    pull: Tensor
    spread: Tensor


def posterior(sigmas: Tensor) -> tuple[Rule, ...]:
    """The variance of x_n given x_s and x_0, which is right for data that are a point.

    Args:
        sigmas: (N + 1,) decreasing to 0.

    Returns:
        N rules.

    Raises:
        ValueError: sigmas do not decrease to 0.
    """
    s, n = _pairs(sigmas)
    keep = (n / s) ** 2
    return _rules(s, n, keep, 1 - keep, n * (1 - keep).sqrt())


def beta(sigmas: Tensor) -> tuple[Rule, ...]:
    """The variance that is right for data N(0, I). Arguments, result and errors of `posterior`."""
    s, n = _pairs(sigmas)
    keep = (n / s) ** 2
    return _rules(s, n, keep, 1 - keep, ((s**2 - n**2) * _alphas(s, n)).sqrt())


ANCESTRAL = {"beta": beta, "posterior": posterior}
"""The chains of DDPM, by the name of their variance."""


def reverse(sigmas: Tensor) -> tuple[Rule, ...]:
    """The variance that is right for data without bounds. Else as `posterior`."""
    s, n = _pairs(sigmas)
    keep = (n / s) ** 2
    return _rules(s, n, keep, 1 - keep, (s**2 - n**2).sqrt())


def ddim(sigmas: Tensor, eta: float) -> tuple[Rule, ...]:
    """A share of the posterior's noise: none at eta = 0, all of it at eta = 1. Else as `posterior`.

    Raises:
        ValueError: also, eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: expected a number from 0 to 1")
    s, n = _pairs(sigmas)
    spread = eta * n * (1 - (n / s) ** 2).sqrt()
    keep = (n**2 - spread**2).sqrt() / s
    return _rules(s, n, keep, 1 - keep, spread)


def vp_reverse(sigmas: Tensor) -> tuple[Rule, ...]:
    """VP's reverse-diffusion predictor. Arguments, result and errors of `posterior`.

    `x_t' = (2 - sqrt(1 - beta)) x_t + beta score + sqrt(beta) n`, divided by the scale at n.
    """
    s, n = _pairs(sigmas)
    before, after = VP().scale(s), VP().scale(n)
    noised = (s**2 - n**2) / (1 + s**2)
    pull = noised / (before * s**2)
    keep = (2 - _alphas(s, n).sqrt()) * before - pull
    return _rules(s, n, keep / after, pull / after, noised.sqrt() / after)


def euler_maruyama(process: Process, steps: int, end: float) -> tuple[Rule, ...]:
    """Euler's steps along a process's reverse SDE, on its own grid, and one from `end` to D.

    `x_t' = x_t - (f x_t - g^2 score) dt + g sqrt(dt) n`, divided by the scale at the next time.

    Args:
        steps: number of rules; the levels are those of `process.grid(steps, end)`.
        end: the lowest time.

    Raises:
        ValueError: no step, or an end outside (0, 1).
    """
    t = times(steps, end)
    sigma = process.sigma(t)
    scale, variance = process.scale(sigma), process.diffusion(t)[:-1] * -t.diff()
    after = scale[1:]
    pull = variance / (scale * sigma**2)[:-1]
    keep = scale[:-1] * (1 + process.drift(t)[:-1] * t.diff()) - pull
    last = Rule(sigma[-1], *torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    walked = map(Rule, sigma[:-1], keep / after, pull / after, variance.sqrt() / after)
    return (*walked, last)


def alphas(sigmas: Tensor) -> Tensor:
    """The factor 1 - beta of each step of VP, `(1 + n^2) / (1 + s^2)`: (N,) for (N + 1,) levels.

    Raises:
        ValueError: sigmas do not decrease to 0.
    """
    return _alphas(*_pairs(sigmas))


def chain(
    denoise: Denoiser,
    x: Tensor,
    rules: Sequence[Rule],
    noise: Noise,
    corrector: Corrector | None = None,
) -> Iterator[Step]:
    """Walk down N rules: N calls, or N (1 + M) with M corrector steps before each.

    Every evaluation is a Step; the last Step, `Step(x, 0, x)`, is made without a call.

    Args:
        x: (B, *S) at level rules[0].sigma.
        rules: made from the full grid, or what is left of them; down to 0.
        noise: draws what is added.

    Raises:
        ValueError: the corrector has not as many alphas as there are rules.
    """
    x = x.to(torch.float64)
    for rule, alpha in zip(rules, _factors(corrector, len(rules)), strict=True):
        if corrector is not None:
            x = yield from corrector.walk(denoise, x, rule.sigma, alpha, noise)
        denoised = denoise(x, rule.sigma)
        yield Step(x, rule.sigma, denoised)
        x = rule.keep * x + rule.pull * denoised + rule.spread * noise(x)
    yield Step(x, torch.zeros((), dtype=torch.float64), x)


def _factors(corrector: Corrector | None, count: int) -> Tensor:
    """The corrector's alphas for `count` rules: (count,)."""
    if corrector is None or corrector.alphas is None:
        return torch.ones(count, dtype=torch.float64)
    if len(corrector.alphas) != count:
        raise ValueError(f"{len(corrector.alphas)} alphas for {count} rules: slice both alike")
    return corrector.alphas


def _pairs(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """The level that each step leaves and the one it goes to, (N,) float64 each."""
    check_levels(sigmas)
    sigmas = sigmas.to(torch.float64)
    return sigmas[:-1], sigmas[1:]


def _alphas(s: Tensor, n: Tensor) -> Tensor:
    return (1 + n**2) / (1 + s**2)


def _rules(s: Tensor, n: Tensor, keep: Tensor, pull: Tensor, spread: Tensor) -> tuple[Rule, ...]:
    return tuple(map(Rule, s, keep, pull, spread * (n > 0)))
