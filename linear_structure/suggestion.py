"""The largest number of steps to skip, from a few trajectories and no distance at all.

The teleport misses the network's state x_k at level k by e_k. What that does to finished samples is
asked of the network itself, from states that are pushed along this miss, farther than it goes:

    x_k    Heun on the network, whose end is y                 e_k = g_k - x_k
    g_k    Heun on the teleport's denoiser, from the same noise on the same grid
    y_k    the network's Heun tail from x_k + `STRESS` e_k     V = sum_i |y_i - mean y|^2 / (n - 1)
    S(k)^2 = mean over the n samples i of |y_k,i - y_i|^2 / V

and the suggestion is the largest k with S(k) <= `TOLERANCE`. Finished samples, so pixels that stay
constant add nothing, and one sample that changes its mode counts with its whole distance. A mean
over samples, so a few of them decide. Stress, since a share q of samples that changes its mode
shows up as about `STRESS` q: without it, most sets of 64 seeds meet none where 0.3 % change. Heun
against Heun, so the sampler's own error is not the teleport's.

What no such rule can see is a mode that none of the n samples is near: it is absent from all with
probability (1 - p)^n, p its weight. And S counts every change, one to the better as well.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser
from linear_structure.sampling.samplers import final, heun
from linear_structure.teleport import Teleport

TOLERANCE = 0.24
STRESS = 6.0
PART = 8  # samples that are finished at a time, so that a skip far too large costs few calls


@dataclass(frozen=True)
class Effect:
    """What a teleport of `skip` steps does to finished samples.

    Attributes:
        sigma: noise level where it ends.
        size: S; where not all samples were needed to tell that it is above the tolerance, at least.
    """

    skip: int
    sigma: float
    size: float


class Comparison(ABC):
    """A network beside what would take the place of its first steps, from the same noise.

    Attributes:
        sigmas: (N + 1,), what the levels are called in an `Effect`.
    """

    sigmas: Tensor

    @property
    @abstractmethod
    def reached(self) -> Sequence[Tensor]:
        """The network's states (n, *S) at the N + 1 levels: the last are its samples."""

    @property
    @abstractmethod
    def carried(self) -> Sequence[Tensor]:
        """Those of the teleport's model, by the same sampler: no call of the network."""

    @abstractmethod
    def finished(self, skip: int, x: Tensor, part: slice) -> Tensor:
        """Samples (b, *S) that the network makes of the states x (b, *S) at level `skip`.

        Args:
            part: which of the n samples they are.
        """

    @property
    def variance(self) -> Tensor:
        """V of the network's samples; above 0, that a constant network changes by nothing."""
        ends = self.reached[-1].flatten(1)
        return ends.var(0).sum().clamp(min=torch.finfo(ends.dtype).tiny)

    def effect(self, skip: int, tolerance: float) -> Effect:
        """S of a skip, or the least that it can be as soon as that is above the tolerance.

        S counts in spreads of the samples, sqrt(V), so it has no unit: 0 or more.
        """
        count, square = len(self.reached[-1]), torch.zeros((), dtype=torch.float64)
        sigma = float(self.sigmas[skip])
        for first in range(0, count, PART):
            square = square + self._moved(skip, slice(first, first + PART)).cpu()
            size = sqrt(float(square / self.variance.cpu()) / count)
            if size > tolerance:
                break
        return Effect(skip, sigma, size)

    def _moved(self, skip: int, part: slice) -> Tensor:
        """Sum of |y_k - y|^2 over some samples."""
        x, end = self.reached[skip][part], self.reached[-1][part]
        miss = self.carried[skip][part] - x
        return (self.finished(skip, x + STRESS * miss, part) - end).square().sum()


@dataclass(frozen=True, eq=False)
class Trial(Comparison):
    """A network in Heun's hands, beside a teleport.

    Attributes:
        bind: the network as a denoiser of some of the samples, which may have classes.
        x: (n, *S) float64, at sigmas[0].
        sigmas: (N + 1,), ending in 0.
        labels: classes (n,) of the samples, where the network has any.

    Raises:
        WorkError: the network gave NaN or infinity.
    """

    bind: Callable[[Tensor | None], Denoiser]
    teleport: Teleport
    x: Tensor
    sigmas: Tensor
    labels: Tensor | None = None

    @cached_property
    def reached(self) -> list[Tensor]:
        """The network's states (n, *S) by Heun's method at all N + 1 levels; computed once.

        Raises:
            WorkError: the network gave NaN or infinity.
        """
        steps = list(heun(self.bind(self.labels), self.x, self.sigmas))
        final(steps)
        return [step.x for step in steps]

    @cached_property
    def carried(self) -> list[Tensor]:
        """The states (n, *S) of the teleport's model, likewise, from the same x."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.teleport.denoise(x, sigma, self.labels)

        return [step.x for step in heun(denoise, self.x, self.sigmas)]

    def finished(self, skip: int, x: Tensor, part: slice) -> Tensor:
        """The end (b, *S) of Heun's method on the network from the states x at level `skip`.

        Raises:
            WorkError: the network gave NaN or infinity.
        """
        denoise = self.bind(None if self.labels is None else self.labels[part])
        return final(heun(denoise, x, self.sigmas[skip:]))


def effects(trial: Comparison, tolerance: float = TOLERANCE) -> Iterator[Effect]:
    """From the largest skip down to the first one within the tolerance, as skip 0 always is.

    Raises:
        WorkError: the network gave NaN or infinity.
    """
    for skip in reversed(range(1, len(trial.sigmas) - 1)):
        yield (found := trial.effect(skip, tolerance))
        if found.size <= tolerance:
            return
    yield Effect(0, float(trial.sigmas[0]), 0.0)
