"""Streaming mean and covariance, in one pass, mergeable.

Pixels are integers: sums of u = v - 128 and of u u' stay exact in float64 below 2^53 (128^2 n, so n
up to 5e11 images), whatever the block size, the order or the number of processes. The products are
summed in float32 as long as they are exact there: no partial sum exceeds the largest sum of squares
(Cauchy and Schwarz), which may not pass 2^24. The factors have 8 bits, which bfloat16 holds: CPUs
with units for it multiply several times faster, to the same bits. The scaling to [-1, 1] happens
once, at the end. Floats are accumulated in float64 as centred moments and merged by Chan, Golub and
LeVeque (1979):

    S = S_a + S_b + (n_a n_b / n) (m_a - m_b)(m_a - m_b)'
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from linear_structure.images import HALF_RANGE
from linear_structure.rounding import factors_in_bfloat16

OFFSET = 128
ROWS = 256  # images at a time: even of extreme pixels, their squares sum to 2^22 at most
ROOM = 2.0**24 - ROWS * OFFSET**2  # a sum up to here takes another block exactly, in float32
PANEL = 256  # columns of a symmetric matrix at a time, each from its diagonal block down


def _panels(dim: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that cover the lower triangle of a (dim, dim) matrix."""
    return ((slice(i, dim), slice(i, min(i + PANEL, dim))) for i in range(0, dim, PANEL))


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of samples; all float64.

    Attributes:
        count: number of samples n.
        mean: (D,).
        scatter: (D, D), sum of (x - mean)(x - mean)'.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> "Moments":
        """Moments of samples (n, D), n >= 1, computed in float64."""
        samples = samples.double()
        mean = samples.mean(0)
        centred = samples - mean
        return cls(len(samples), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of samples together."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(D, D), scatter / (n - 1); zero for a single sample."""
        return self.scatter / max(self.count - 1, 1)

    @property
    def sigma_data(self) -> float:
        """Standard deviation over all entries of all samples: EDM's sigma_data."""
        variance = self.scatter.diagonal().mean() / self.count
        return float((variance + self.mean.var(correction=0)).sqrt())


class PixelSums:
    """Exact running sums of uint8 images: `add` blocks in any order, `merge` what others summed."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._total = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)  # its lower panels
        self._recent = torch.zeros(dim, dim)  # likewise, not yet in the products

    def add(self, images: Tensor) -> None:
        """Add uint8 images (n, *S) with prod(S) = dim.

        Raises:
            ValueError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images.dtype}")
        with factors_in_bfloat16():
            for rows in images.flatten(1).split(ROWS):
                self._add(rows.float().sub_(OFFSET))

    def _add(self, pixels: Tensor) -> None:
        if self._recent.diagonal().max() > ROOM:
            self._settle()
        self.count += len(pixels)
        self._total += pixels.sum(0)
        for rows, columns in _panels(pixels.shape[1]):
            self._recent[rows, columns].addmm_(pixels[:, rows].T, pixels[:, columns])

    def _settle(self) -> None:
        """Move the recent products to float64."""
        for panel in _panels(len(self._total)):
            self._products[panel] += self._recent[panel]
        self._recent.zero_()

    def merge(self, other: "PixelSums") -> None:
        """Add the sums of another part of the images."""
        self._settle()
        self.count += other.count
        self._total += other._total
        self._products += other._products
        self._products += other._recent

    def moments(self) -> Moments:
        """Moments of the pixels on the [-1, 1] scale.

        The scatter about c, the mean rounded to integers, is exact too:

            sum((u - c)(u - c)') = sum(u u') - t c' - c (t - n c)',   t = sum(u)

        and what is left, n (m - c)(m - c)' with |m - c| <= 1/2, is subtracted to a few roundings.

        Raises:
            ValueError: no image was added.
        """
        if self.count == 0:
            raise ValueError("no image was added")
        self._settle()
        total = self._total
        center = (total / self.count).round()
        rest = total - self.count * center
        scatter = self._products.clone()
        scatter.addr_(total, center, alpha=-1).addr_(center, rest, alpha=-1)
        shift = rest / self.count**0.5
        for rows, columns in _panels(len(total)):
            scatter[rows, columns] -= torch.outer(shift[rows], shift[columns])
            below = slice(columns.stop, None)
            scatter[columns, below] = scatter[below, columns].T
        scatter /= HALF_RANGE**2
        mean = (total + OFFSET * self.count) / (self.count * HALF_RANGE) - 1
        return Moments(self.count, mean, scatter)
