"""Langevin dynamics: moves along the score with noise that keep p(x; sigma) as it is.

One step of size h, in squared units of x, is

    x' = x + h s(x, sigma) + sqrt(2 h) n,    s = (D(x, sigma) - x) / sigma^2,    n ~ N(0, I)

`langevin` stays at one level, `annealed` goes down a grid of them (Song and Ermon 2020, arXiv
2006.09011), and a `Corrector` takes its steps before each step of a chain (Song et al. 2021, arXiv
2011.13456, algorithms 2 to 5). Each Step but the last is one evaluation, and each move draws noise
once: whoever skips k levels draws and drops that of the k T moves there (`samplers.discard`).

A mixture has a score also at sigma = 0, but (D - x) / sigma^2 is 0/0 there: sigma = 1e-4 for data
of unit size is near enough (7e-8 of the score) and far enough from cancellation.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser
from linear_structure.sampling.grids import check_levels
from linear_structure.sampling.processes import check_steps
from linear_structure.sampling.samplers import Noise, Step


def langevin(
    denoise: Denoiser, x: Tensor, sigma: Tensor, steps: Tensor, noise: Noise
) -> Iterator[Step]:
    """K steps at one level: K + 1 Steps, the last of them `Step(x, sigma, x)`, made without a call.

    Args:
        x: (B, *S).
        sigma: (), above 0.
        steps: (K,), the sizes h_k.
    """
    x = x.to(torch.float64)
    for h in steps:
        denoised = denoise(x, sigma)
        yield Step(x, sigma, denoised)
        x = _moved(x, _score(x, sigma, denoised), h, noise(x))
    yield Step(x, sigma, x)


def cosine_steps(count: int) -> Tensor:
    """Sizes from 1 towards 0, `h_k = (1 + cos(pi k / K)) / 2` for k = 0 to K - 1: (K,) float64.

    Raises:
        ValueError: count is below 1.
    """
    check_steps(count)
    return (1 + torch.cos(math.pi / count * torch.arange(count, dtype=torch.float64))) / 2


def annealed(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, steps: int, ratio: float, noise: Noise
) -> Iterator[Step]:
    """Annealed Langevin dynamics: L T + 1 calls for L levels and a final 0.

    At each level `x += r (D - x) + sqrt(2 r) sigma n`, T times: h = r sigma^2. At the end x becomes
    D at the lowest level (Song and Ermon 2020, algorithm 1 and technique 5).

    Args:
        x: (B, *S) at level sigmas[0].
        sigmas: (L + 1,) decreasing to 0.
        steps: T, at each level.
        ratio: r, of the step to the variance of the level.

    Raises:
        ValueError: no step, a ratio outside (0, 1), or sigmas that do not decrease to 0.
    """
    check_steps(steps)
    check_ratio(ratio)
    check_levels(sigmas)
    x, levels = x.to(torch.float64), sigmas[:-1]
    for sigma in levels.repeat_interleave(steps):
        denoised = denoise(x, sigma)
        yield Step(x, sigma, denoised)
        x = x + ratio * (denoised - x) + math.sqrt(2 * ratio) * sigma * noise(x)
    for sigma in levels[-1:]:
        denoised = denoise(x, sigma)
        yield Step(x, sigma, denoised)
        x = denoised
    yield Step(x, sigmas[-1], x)


@dataclass(frozen=True)
class Corrector:
    """Langevin steps before each step of a chain, at its level.

    With `norms="level"` a step is `h = 2 alpha (r sigma)^2`. With "batch" it is the published
    `h = 2 alpha (r |n| / |s|)^2`, both norms averaged over the batch, so that a sample depends on
    its batch. Norms of the sample's own would bias it: they depend on its noise.

    Attributes:
        ratio: r, between 0 and 1.
        steps: M, at each level.
        norms: "level" or "batch".
        alphas: (N,), one for each rule of the chain and sliced as they are, or None, all 1; of VP
            they are `chains.alphas`.

    Raises:
        ValueError: a ratio outside (0, 1), no step, or an unknown word.
    """

    ratio: float = 0.16
    steps: int = 1
    norms: str = "level"
    alphas: Tensor | None = None

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_steps(self.steps)
        if self.norms not in ("level", "batch"):
            raise ValueError(f"norms is {self.norms!r}: expected 'level' or 'batch'")

    def walk(
        self, denoise: Denoiser, x: Tensor, sigma: Tensor, alpha: Tensor, noise: Noise
    ) -> Generator[Step, None, Tensor]:
        """Yield the M evaluations from x (B, *S) float64 on; return where they lead."""
        for _ in range(self.steps):
            denoised = denoise(x, sigma)
            yield Step(x, sigma, denoised)
            score, drawn = _score(x, sigma, denoised), noise(x)
            size = sigma if self.norms == "level" else _norm(drawn) / _norm(score)
            x = _moved(x, score, 2 * alpha * (self.ratio * size) ** 2, drawn)
        return x


def check_ratio(ratio: float) -> None:
    """Refuse a step that is none, or as large as its level.

    Raises:
        ValueError: the ratio is outside (0, 1).
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio is {ratio}: expected a number between 0 and 1")


def _score(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    return (denoised - x) / sigma**2


def _moved(x: Tensor, score: Tensor, h: Tensor, drawn: Tensor) -> Tensor:
    return x + h * score + (2 * h).sqrt() * drawn


def _norm(values: Tensor) -> Tensor:
    """The norm of a sample, averaged over the batch: ()."""
    return values.flatten(1).norm(dim=1).mean()
