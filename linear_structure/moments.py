"""Streaming mean and covariance, in one pass, mergeable.

Pixels are integers: sums of v and of v v' stay exact in float64 below 2^53 (255^2 n, so n up to
1.3e11 images), whatever the block size, the order or the number of processes. The scaling to
[-1, 1] happens once, at the end. Floats are accumulated in float64 as centred moments and merged
by Chan, Golub and LeVeque (1979):

    S = S_a + S_b + (n_a n_b / n) (m_a - m_b)(m_a - m_b)'
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

from linear_structure.images import HALF_RANGE

ROWS = 500  # images converted to float64 at a time: 12 MB for CIFAR-10


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
        self._total = np.zeros(dim)
        self._products = np.zeros((dim, dim), order="F")  # the other triangle stays zero

    def add(self, images: Tensor) -> None:
        """Add uint8 images (n, *S) with prod(S) = dim.

        Raises:
            ValueError: the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images.dtype}")
        for rows in images.flatten(1).split(ROWS):
            pixels = rows.numpy().astype(np.float64)
            self.count += len(pixels)
            self._total += pixels.sum(0)
            self._products = dsyrk(
                1.0, pixels.T, beta=1.0, c=self._products, lower=1, overwrite_c=1
            )

    def merge(self, other: "PixelSums") -> None:
        """Add the sums of another process or part."""
        self.count += other.count
        self._total += other._total
        self._products += other._products

    def moments(self) -> Moments:
        """Moments of the pixels on the [-1, 1] scale.

        The scatter about c, the mean rounded to integers, is exact too:

            sum((v - c)(v - c)') = sum(v v') - t c' - c (t - n c)',   t = sum(v)

        and what is left, n (m - c)(m - c)' with |m - c| <= 1/2, is subtracted with one rounding.

        Raises:
            ValueError: no image was added.
        """
        if self.count == 0:
            raise ValueError("no image was added")
        total, products = torch.from_numpy(self._total), torch.from_numpy(self._products)
        center = (total / self.count).round()
        rest = total - self.count * center
        scatter = products.T + products
        scatter.diagonal().div_(2)
        scatter.addr_(total, center, alpha=-1).addr_(center, rest, alpha=-1)
        shift = rest / self.count**0.5
        scatter.addr_(shift, shift, alpha=-1).div_(HALF_RANGE**2)
        return Moments(self.count, total / (self.count * HALF_RANGE) - 1, scatter)
