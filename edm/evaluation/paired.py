"""The change of a Frechet distance between two settings that share seeds, and its standard error.

Images of the same seeds are alike, so the difference of two distances is known far better than
either. More weight on image i changes the distance, to first order, by its influence value

    psi_i = 2 (mu - mu_r)'x_i + x_i'(I - T) x_i - tr((I - T) S),    x_i = f_i - mu
    T     = S_r^1/2 (S_r^1/2 S S_r^1/2)^-1/2 S_r^1/2

(mu, S of the images, mu_r, S_r of the reference), and the standard error of a change is that of the
mean of psi_i(k) - psi_i(0): the infinitesimal jackknife (Jaeckel 1972). To second order the
distance of n images lies above that of endlessly many by

    tr S / n + 1/(2n) sum_jl s_j s_l / (s_j + s_l) (mean_i a_ij^2 a_il^2 - [j = l])

Rank. With S = A A', S_r = B B' over the directions that the project's rank rule keeps, and the
singular values s of A'B = U diag(s) V' that `fid.frechet` sums,

    x_i'T x_i = sum_j s_j a_ij^2,    a_i = U'(A'A)^-1 A'x_i

so no small s is divided by. A direction without variance in the reference has no part in T. In one
without variance in the images, such as a feature that is 0 in all, every x_i is 0 and stays so
however they are weighted: psi is the exact derivative. What other seeds would show there, these
images cannot tell.

With n <= D images, S is singular for want of images; then pairs of them are resampled. Resamples
are farther from the reference as a whole, so percentiles would lie beside the difference: their
standard deviation is taken, larger by a tenth to a half than what new draws of seeds showed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edm.evaluation import fid, kid
from edm.evaluation.fid import Statistics
from linear_structure.moments import HALF_WIDTH
from linear_structure.system.errors import UsageError

RESAMPLES = 200  # leave a standard error uncertain by 5 %
UNCHANGED = 0.1  # of the distance at skip 0: the knee is before the first change of that size


@dataclass(frozen=True, eq=False)
class Sample:
    """Features of one setting's images, against a reference; what is asked for is found once."""

    features: Tensor  # (n, D), row i from the i-th seed
    reference: Statistics  # of D features

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance; raises as `fid.measure`."""
        return fid.measure([self.features])

    @cached_property
    def distance(self) -> float:
        """Squared Frechet distance; raises as `fid.measure` and `fid.frechet`."""
        few = 1 < len(self.features) <= self.features.shape[1]
        if not (few and bool(torch.isfinite(self.features).all())):
            return fid.frechet(self.statistics, self.reference)
        self.reference.refuse_other(self.features.shape[1], None)
        spread = self.reference.gaussian.eigenvalues.sum()
        return max(float(_apart(*self._centred) + spread), 0.0)  # no covariance of few images

    @property
    def has_influence(self) -> bool:
        """Whether there are more images than features."""
        return len(self.features) > self.features.shape[1]

    @property
    def influence(self) -> Tensor:
        """Influence values psi (n,), float64, of mean 0; UsageError unless `has_influence`."""
        return self._expansion[0]

    @property
    def unbiased(self) -> float:
        """The distance less its bias to second order (maybe below 0); raises as `influence`."""
        return self.distance - self._expansion[1]

    @cached_property
    def resampled(self) -> Tensor:
        """Distances (R,), less tr S_r, of draws of n rows with replacement: of equal n, the same.

        This takes seconds to minutes.
        """
        count, (offsets, rooted) = len(self.features), self._centred
        draws = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
        return torch.stack([_apart(offsets[rows], rooted[rows]) for rows in draws])

    @property
    def _centred(self) -> tuple[Tensor, Tensor]:
        """f_i - mu_r (n, D), and B'(f_i - mu_r)."""
        target = self.reference.gaussian
        offsets = self.features.double() - target.mean
        return offsets, offsets @ (target.basis * target.eigenvalues.sqrt())

    @cached_property
    def _expansion(self) -> tuple[Tensor, float]:
        """Influence values and bias, in blocks of rows and the memory of a dozen (D, D)."""
        count, dim = self.features.shape
        if not self.has_influence:
            raise UsageError(f"{count} images of {dim} features: influence values need more images")
        own, target = self.statistics.gaussian, self.reference.gaussian
        u, s, _ = torch.linalg.svd(fid.cross(own, target), full_matrices=False)
        axes = (own.basis / own.eigenvalues.sqrt()) @ u
        values, fourth = [], -torch.eye(len(s), dtype=torch.float64)
        for block in self.features.split(fid.ROWS):
            x = block.double() - own.mean
            squares = (x @ axes).square()
            values.append(2 * x @ (own.mean - target.mean) + x.square().sum(1) - squares @ s)
            fourth.addmm_(squares.T, squares, alpha=1 / count)
        curvature = (1 / s[:, None] + 1 / s).reciprocal()  # 0 where an s is 0
        bias = float(self.statistics.sigma.trace() + (curvature * fourth).sum() / 2) / count
        psi = torch.cat(values)
        return psi - psi.mean(), bias


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """The distance, less tr S_r, of x (n, D) = f_i - mu_r and y = B'x, without a covariance."""
    mean, freedom = x.mean(0), len(x) - 1
    overlap = torch.linalg.svdvals(y - y.mean(0)).sum() / math.sqrt(freedom)
    return mean.square().sum() + (x - mean).square().sum() / freedom - 2 * overlap


@dataclass(frozen=True)
class Change:
    """How much a distance differs between two settings of the same `count` seeds."""

    difference: float
    standard_error: float  # over other draws of seeds
    count: int
    method: Literal["influence", "bootstrap", "jackknife"]

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval: 1.96 standard errors to each side, by any method."""
        reach = HALF_WIDTH * self.standard_error
        return self.difference - reach, self.difference + reach


def change(sample: Sample, baseline: Sample) -> Change:
    """The change of the distance from a baseline to a sample of the same seeds in the same order.

    The bootstrap's 200 draws are the same in every run.

    Raises:
        UsageError: the numbers of images or of features differ, there are fewer than two images,
            or the references differ.
        WorkError: a feature is NaN or infinite.
    """
    count = len(sample.features)
    fid.refuse_unequal([len(baseline.features), count])
    if sample.reference.digest != baseline.reference.digest:
        raise UsageError("distances to two references do not compare: expected the same for both")
    difference = sample.distance - baseline.distance
    if sample.has_influence:
        gaps = sample.influence - baseline.influence
        return Change(difference, float(gaps.std()) / math.sqrt(count), count, "influence")
    gaps = sample.resampled - baseline.resampled
    return Change(difference, float(gaps.std()), count, "bootstrap")


@dataclass(frozen=True, eq=False)
class Kernel:
    """KID of some images, and of all but each of them."""

    distance: float
    rest: np.ndarray  # (n,) float64

    @classmethod
    def of(cls, features: Tensor, reference: Tensor) -> "Kernel":
        """Of features (n, D) and of those of a reference (m, D), n > 2."""
        return cls(*kid.without_each(features.numpy(), reference.numpy()))

    def change(self, baseline: "Kernel") -> Change:
        """The change from a baseline of the same seeds, by the jackknife: too wide, if anything."""
        gaps, count = self.rest - baseline.rest, len(self.rest)
        error = math.sqrt((count - 1) * float(gaps.var()))
        return Change(self.distance - baseline.distance, error, count, "jackknife")


@dataclass(frozen=True)
class Knee:
    """Steps that can be skipped, by the intervals' upper ends and by the differences alone."""

    by_interval: int
    by_point: int


def knee(changes: Mapping[int, Change], distance: float) -> Knee:
    """The last skip before the distance first grows by 10 % of that at skip 0.

    A curve that dips again after that does not move the knee: a skip counts where it and all
    smaller ones that were measured stay below. Skip 0 always counts.

    Args:
        changes: skipped steps -> change against skip 0.
        distance: at skip 0, of all seeds together and not corrected for bias.
    """

    def last(end: Callable[[Change], float]) -> int:
        below = takewhile(lambda k: end(changes[k]) < UNCHANGED * distance, sorted(changes))
        return max(below, default=0)

    return Knee(last(lambda found: found.interval[1]), last(lambda found: found.difference))
