"""Streaming mean and covariance, in one pass, mergeable.

Pixels are integers: sums of u = v - 128 and of u u' stay exact in float64 below 2^53 (128^2 n, so n
up to 5e11 images), whatever the block size, the order or the number of processes. The scaling to
[-1, 1] happens once, at the end. Floats are accumulated in float64 as centred moments and merged by
Chan, Golub and LeVeque (1979):

    S = S_a + S_b + (n_a n_b / n) (m_a - m_b)(m_a - m_b)'
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linear_structure.images import HALF_RANGE
from linear_structure.products import add_products, mirror

HALF_WIDTH = 1.96  # of a 95 % interval, in standard errors
OFFSET = 128
WAITING = 8000  # images that are summed together; fewer would mean more additions to the sums


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of samples; all float64."""

    count: int
    mean: Tensor  # (D,)
    scatter: Tensor  # (D, D), sum of (x - mean)(x - mean)'

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


class FloatSums:
    """Moments of blocks of floats, merged as they come."""

    def __init__(self) -> None:
        self._moments: Moments | None = None

    def add(self, images: Tensor) -> None:
        """Add images (n, *S), n >= 1."""
        found = Moments.of(images.flatten(1))
        self._moments = self._moments.merge(found) if self._moments else found

    def moments(self) -> Moments:
        """Of all of them; a ValueError if no image was added."""
        if self._moments is None:
            raise ValueError("no image was added")
        return self._moments


class PixelSums:
    """Exact running sums of uint8 images: `add` blocks in any order, `merge` what others summed."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._total = np.zeros(dim)
        self._products = np.zeros((dim, dim))  # its lower triangle counts
        self._waiting: list[np.ndarray] = []  # u of images that are counted, but not yet summed

    def add(self, images: Tensor) -> None:
        """Add images (n, *S); a ValueError unless they are uint8 and prod(S) = dim."""
        if images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, got {images.dtype}")
        flat, dim = images.flatten(1), len(self._total)
        if flat.shape[1] != dim:
            raise ValueError(f"expected images of {dim} values, got {flat.shape[1]}")
        self.count += len(flat)
        for rows in flat.split(WAITING):
            self._waiting.append((rows ^ OFFSET).view(torch.int8).cpu().numpy())  # v - 128
            if sum(map(len, self._waiting)) >= WAITING:
                self._settle()

    def _settle(self) -> None:
        if self._waiting:
            pixels = np.concatenate(self._waiting)
            self._waiting.clear()
            self._total += pixels.sum(0, dtype=np.int32)
            add_products(self._products, pixels)

    def merge(self, other: "PixelSums") -> None:
        """Add the sums of another part of the images."""
        self._settle()
        other._settle()
        self.count += other.count
        self._total += other._total
        self._products += other._products

    def moments(self) -> Moments:
        """Moments of the pixels on the [-1, 1] scale.

        The scatter about c, the mean rounded to integers, is exact too:

            sum((u - c)(u - c)') = sum(u u') - t c' - c (t - n c)',   t = sum(u)

        and what is left, n (m - c)(m - c)' with |m - c| <= 1/2, is subtracted to a few roundings.
        A ValueError if no image was added.
        """
        if self.count == 0:
            raise ValueError("no image was added")
        self._settle()
        total = torch.from_numpy(self._total)
        center = (total / self.count).round()
        rest = total - self.count * center
        scatter = torch.from_numpy(self._products).clone()
        scatter.addr_(total, center, alpha=-1).addr_(center, rest, alpha=-1)
        shift = rest / self.count**0.5
        scatter.addr_(shift, shift, alpha=-1)
        mirror(scatter)
        scatter /= HALF_RANGE**2
        mean = (total + OFFSET * self.count) / (self.count * HALF_RANGE) - 1
        return Moments(self.count, mean, scatter)
