"""Noise scales of annealed Langevin dynamics from the data (Song and Ermon 2020, arXiv 2006.09011).

1. sigma_max is the largest distance between two data points.
2. The ratio gamma of neighbouring levels is such that the shells where D-dimensional noise of the
   two has its mass share C of it: `Phi(a (gamma - 1) + 3 gamma) - Phi(a (gamma - 1) - 3 gamma) = C`
   with a = sqrt(2 D). Where the first term is 1, as it is for every C that is published,
   `gamma = (a - Phi^-1(C)) / (a - 3)`. In 4 dimensions or fewer there is none.
4. Of data that are a point, T steps of ratio r at sigma take the variance gamma^2 sigma^2 to
   `q sigma^2`, `q = a^T (gamma^2 - c) + c`, `a = (1 - r)^2`, `c = 2 r / (1 - a) = 2 / (2 - r)`.
   The r that minimises q, which is never below 1, is the one to use.

Technique 3 is a preconditioning, 5 an average of weights and the last step of `langevin.annealed`.
Published numbers are for pixels in [0, 1]: in [-1, 1] sigma is twice and r sigma^2 four times as
large; gamma, r and q are the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from linear_structure.sampling.grids import ve_grid
from linear_structure.sampling.langevin import check_ratio
from linear_structure.sampling.processes import check_steps
from linear_structure.system.options import parse, plain
from linear_structure.system.precision import factors_in_float32

SMALLEST_DIM = 5  # the shells of wider noise lie apart only where sqrt(2 D) > 3
SMALLEST_RATIO = 1e-6  # of a step to the variance of its level
EXACT = 1e-15  # of a root, relative and absolute


Progress = Callable[[Sequence[Tensor]], Iterable[Tensor]]
"""Goes through what it is given and may show how far it is, as `tqdm` does."""


def largest_distance(points: Tensor, block: int = 512, progress: Progress = iter) -> float:
    """The largest distance between two of the points (n, D), over all pairs, `block` at a time.

    Distances come from float32 products of the centred points, n^2 D / 2 of them; the largest of
    each point is measured again in float64, by differences. Pairs that float32 does not tell apart
    count as equal: 1e-6 of the distance. `progress` goes through the blocks.

    Raises:
        ValueError: there is no point.
    """
    if not len(points):
        raise ValueError("the largest distance of no points: at least one is needed")
    with factors_in_float32():
        return max(_largest(points, *pair) for pair in _farthest(points, block, progress))


def _farthest(points: Tensor, block: int, progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    """For each block of rows their numbers, and that of the farthest later point of each."""
    centred = (points - points.mean(0, dtype=torch.float64)).float()
    half_squares = centred.square().sum(1) / 2
    for rows in progress(torch.arange(len(points), device=points.device).split(block)):
        first = int(rows[0])
        half = half_squares[first:] - centred[rows] @ centred[first:].T
        yield rows, first + half.argmax(1)


def _largest(points: Tensor, rows: Tensor, others: Tensor) -> float:
    offsets = points[rows].double() - points[others].double()
    return float(offsets.norm(dim=1).max())


def ratio(dim: int, overlap: float = 0.5) -> float:
    """gamma, the ratio above 1 of neighbouring levels (technique 2).

    Args:
        dim: D, 5 or more.
        overlap: C. Published is 0.5; their numbers of levels are those of 0.567.

    Raises:
        ValueError: there is no such ratio.
    """
    if dim < SMALLEST_DIM:
        raise ValueError(
            f"dim is {dim}: technique 2 gives a ratio of levels in 5 dimensions or more; "
            "in fewer, choose one"
        )
    if not 0 < overlap < _overlap(1.0, dim):
        raise ValueError(f"overlap is {overlap}: expected a number above 0 and below 0.9973")
    root = math.sqrt(2 * dim)
    highest = (root - ndtri(overlap)) / (root - 3)
    if _overlap(highest, dim) >= overlap:
        return highest
    return _root(lambda gamma: _overlap(gamma, dim) - overlap, 1, highest)


def _overlap(gamma: float, dim: int) -> float:
    between = math.sqrt(2 * dim) * (gamma - 1)
    return ndtr(between + 3 * gamma) - ndtr(between - 3 * gamma)


class StepSize(NamedTuple):
    """r, of a step to the variance of its level, and q, the variance that it leads to over it."""

    ratio: float
    variance: float


def variance_after(ratio: float, gamma: float, steps: int) -> float:
    """q, the variance after T steps at a level over that of the level (technique 4).

    Raises:
        ValueError: a ratio outside (0, 1), or no step.
    """
    check_ratio(ratio)
    check_steps(steps)
    end = 2 / (2 - ratio)
    return (1 - ratio) ** (2 * steps) * (gamma**2 - end) + end


def step_ratio(gamma: float, steps: int) -> StepSize:
    """The r in (1e-6, 1) at which q is smallest, and that q (technique 4).

    Raises:
        ValueError: gamma is not above 1, no step, or the smallest q is at a smaller r.
    """
    check_steps(steps)
    _check_gamma(gamma)

    def change(r: float) -> float:
        """dq/dr over 2."""
        kept, end = (1 - r) ** (2 * steps - 1), 2 / (2 - r)
        return (1 - kept * (1 - r)) / (2 - r) ** 2 - steps * kept * (gamma**2 - end)

    if change(SMALLEST_RATIO) >= 0:
        raise ValueError(f"gamma is {gamma}: levels so close ask for steps below 1e-6 of each")
    best = _root(change, SMALLEST_RATIO, 1)
    return StepSize(best, variance_after(best, gamma, steps))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq  # takes a tenth of a second

    return brentq(function, low, high, xtol=EXACT)


def _check_gamma(gamma: float) -> None:
    if not 1 < gamma < 1e100:  # whose square float64 holds
        raise ValueError(f"gamma is {gamma}: expected a number above 1 and below 1e100")


@dataclass(frozen=True)
class Scales:
    """A geometric grid of levels and the steps of annealed Langevin dynamics on it.

    Attributes:
        sigma_max, sigma_min: the ends of the grid, in units of x.
        gamma: ratio of neighbouring levels.
        levels: L.
        steps: T, at each level.
        ratio: r of technique 4.
        variance: its q.
    """

    sigma_max: float
    sigma_min: float
    gamma: float
    levels: int
    steps: int
    ratio: float
    variance: float

    @classmethod
    def between(cls, sigma_max: float, sigma_min: float, gamma: float, steps: int) -> "Scales":
        """The most levels whose ratio is not below gamma, as published; `gamma` becomes theirs.

        Raises:
            ValueError: as `step_ratio`, or not 0 < sigma_min < sigma_max.
        """
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"levels from {sigma_max} to {sigma_min}: expected 0 < low < high")
        _check_gamma(gamma)
        length = math.log(sigma_max / sigma_min)
        levels = 1 + max(1, math.floor(length / math.log(gamma)))
        own = math.exp(length / (levels - 1))
        return cls(sigma_max, sigma_min, own, levels, steps, *step_ratio(own, steps))

    @classmethod
    def of(
        cls,
        points: Tensor,
        sigma_min: float = 0.02,
        steps: int = 5,
        overlap: float = 0.5,
        gamma: float | None = None,
    ) -> "Scales":
        """The scales for data points (n, D): techniques 1, 2 and 4.

        Args:
            sigma_min: 0.01 for pixels in [0, 1], as published, is 0.02 for those in [-1, 1].
            steps: T.
            overlap: C of technique 2.
            gamma: the ratio of levels instead of technique 2's.

        Raises:
            ValueError: as `largest_distance`, `ratio` and `between`.
        """
        wanted = ratio(points[0].numel(), overlap) if gamma is None else gamma
        return cls.between(largest_distance(points), sigma_min, wanted, steps)

    def grid(self) -> Tensor:
        """The levels and a final 0: (L + 1,) float64."""
        return ve_grid(self.levels, self.sigma_min, self.sigma_max)

    def to_json(self) -> dict[str, float | int]:
        """All values by name."""
        return plain(self)

    @classmethod
    def from_json(cls, values: dict[str, float | int]) -> "Scales":
        """What `to_json` gave.

        Raises:
            UsageError: a value is missing, unknown or of another type.
        """
        return parse(cls, values, "noise scales")
