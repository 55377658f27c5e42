"""A Gaussian of images of any size, whose basis is not stored.

The orthonormal cosine transform (DCT-II) of rows and columns, `z = K_H x K_W'` for each channel,
nearly decorrelates the frequencies of photographs. What is left is kept in blocks: one of C x C for
each frequency, the covariance of the channels there, and one dense block for the h x w lowest
frequencies, where most of the variance is. With `low` = max(H, W) it is the full covariance, with
0 nearly a stationary one. C x H x W values take C^2 H W + (C h w)^2 numbers, not (C H W)^2.

The axes are those of the blocks: onto them and back are two small matrix products for each channel,
and one for each block. The covariances are sums over images: one pass, in float64, in which sums of
consecutive blocks of images are merged in pairs, pairs of pairs, and so on. So each process may sum
any of the blocks, and the result has the same bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import ClassVar

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from linear_structure.gaussian import (
    ORTHONORMAL_TOLERANCE,
    RANK_TOLERANCE,
    EigenGaussian,
    check_variances,
    eigh_destroying,
)
from linear_structure.images import values_of

LOW = 8  # frequencies of rows and columns that are in the dense block
BLOCK = 1 << 22  # values that are summed at a time


@cache
def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II: (size, size) float64; rows are frequencies, from 0."""
    return torch.from_numpy(dct(np.eye(size), axis=0, norm="ortho"))


def transform(x: Tensor) -> Tensor:
    """Coefficients (..., H, W) of images (..., H, W) of floats, in their units and dtype.

    Frequencies of rows and of columns rise; the norm of an image is kept.
    """
    height, width = x.shape[-2:]
    return cosines(height).to(x) @ x @ cosines(width).to(x).T


def inverse(z: Tensor) -> Tensor:
    """Images (..., H, W) of coefficients (..., H, W), which `transform` gives back."""
    height, width = z.shape[-2:]
    return cosines(height).to(z).T @ z @ cosines(width).to(z)


@dataclass(frozen=True)
class SpectralMoments:
    """Count, mean and blocks of the scatter of coefficients; all float64."""

    count: int
    mean: Tensor  # (C, H, W)
    low: Tensor  # (C, h, w, C h w), sum of (z - mean)(z - mean)' over the low frequencies
    rest: Tensor  # (H, W, C, C), the same over the channels of each frequency

    @classmethod
    def of(cls, images: Tensor, low: int) -> "SpectralMoments":
        """Of images (n, C, H, W), n >= 1; uint8 stands for [-1, 1], floats are as they are."""
        z = transform(values_of(images, torch.float64))
        mean = z.mean(0)
        z -= mean
        lowest = z[:, :, :low, :low]
        flat, channels = lowest.flatten(1), z.permute(2, 3, 1, 0).contiguous()
        square = (flat.T @ flat).view(*lowest.shape[1:], flat.shape[1])
        return cls(len(z), mean, square, channels @ channels.mT)

    def merge(self, other: "SpectralMoments") -> "SpectralMoments":
        """Of both sets of images together (Chan, Golub and LeVeque 1979, as in `moments`)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        share = self.count * other.count / count
        _, height, width, _ = self.low.shape
        lowest, channels = shift[:, :height, :width].flatten(), shift.permute(1, 2, 0)
        low = self.low + other.low + share * torch.outer(lowest, lowest).view_as(self.low)
        between = channels[..., :, None] * channels[..., None, :]
        mean = self.mean + shift * (other.count / count)
        return SpectralMoments(count, mean, low, self.rest + other.rest + share * between)

    @property
    def sigma_data(self) -> float:
        """Standard deviation over all values of all images: EDM's sigma_data."""
        within = self.rest.diagonal(dim1=-2, dim2=-1).mean() / self.count
        return float((within + inverse(self.mean).var(correction=0)).sqrt())


class SpectralSums:
    """Moments of blocks of images that come in any order, or from several processes."""

    def __init__(self, low: int) -> None:
        self._low = low
        self._parts: dict[tuple[int, int], SpectralMoments] = {}  # i: blocks i 2^l to (i + 1) 2^l

    def add(self, images: Tensor, block: int) -> None:
        """Add images (n, C, H, W), which are block number `block` of all."""
        self._put(0, block, SpectralMoments.of(images, self._low))

    def merge(self, other: "SpectralSums") -> None:
        """Add the sums of other blocks."""
        for (level, index), part in other._parts.items():
            self._put(level, index, part)

    def _put(self, level: int, index: int, part: SpectralMoments) -> None:
        while sibling := self._parts.pop((level, index ^ 1), None):
            part = sibling.merge(part) if index % 2 else part.merge(sibling)
            level, index = level + 1, index // 2
        self._parts[level, index] = part

    def moments(self) -> SpectralMoments:
        """Of all blocks, merged in their order; a ValueError if no image was added."""
        if not self._parts:
            raise ValueError("no image was added")
        ordered = sorted(self._parts.items(), key=lambda item: item[0][1] << item[0][0])
        return reduce(SpectralMoments.merge, (part for _, part in ordered))


def block_size(shape: tuple[int, ...]) -> int:
    """How many images of a shape are summed at a time."""
    return max(1, BLOCK // math.prod(shape))


@dataclass(frozen=True)
class Spectral(EigenGaussian):
    """A Gaussian by the axes of the blocks of its covariance between cosines."""

    kind: ClassVar[str] = "spectral"
    files: ClassVar[tuple[str, ...]] = ("mu.pt", "low.pt", "rest.pt", "lambdas.pt")
    mean: Tensor  # (D,), D = C H W
    low: Tensor  # (C, h, w, C h w), orthonormal columns: axes of the low frequencies
    rest: Tensor  # (H, W, C, C), orthonormal columns: axes of the channels at each frequency
    eigenvalues: Tensor  # (D,), as (C, H, W), those of the low block in its place; 0 by rank rule

    @classmethod
    def from_samples(cls, samples: Tensor, low: int = LOW) -> "Spectral":
        """Of images (n, C, H, W); uint8 stands for [-1, 1], floats may be in any units.

        Raises:
            ValueError: there is no image, or one holds NaN or infinity.
        """
        sums = SpectralSums(low)
        for block, images in enumerate(samples.split(block_size(samples.shape[1:]))):
            if len(images):
                sums.add(images, block)
        return cls.from_moments(sums.moments())

    @classmethod
    def from_moments(cls, moments: SpectralMoments) -> "Spectral":
        """Decompose each block of the covariance (over n - 1), once, in float64.

        Raises:
            ValueError: the moments hold NaN or infinity.
        """
        if not bool(torch.isfinite(moments.rest.sum() + moments.low.sum())):
            raise ValueError("the images hold NaN or infinity, or values too large to be squared")
        freedom = max(moments.count - 1, 1)
        values, axes = torch.linalg.eigh(moments.rest / freedom)
        eigenvalues = values.permute(2, 0, 1).contiguous()
        low, (channels, height, width, size) = moments.low, moments.low.shape
        if size:
            found, columns = eigh_destroying(low.reshape(size, size) / freedom)
            low = columns.reshape(low.shape)
            eigenvalues[:, :height, :width] = found.view(channels, height, width)
        mean = inverse(moments.mean).flatten()
        spread = eigenvalues > RANK_TOLERANCE * eigenvalues.max()
        return cls(mean, low, axes, torch.where(spread, eigenvalues, 0.0).flatten())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Spectral":
        """Raises ValueError: the shapes do not fit, a variance is negative, axes are not axes."""
        mean, lam, low, rest = (tensors[name] for name in ("mu", "lambdas", "low", "rest"))
        shapes = [tuple(value.shape) for value in (mean, lam, low, rest)]
        height, width, channels, _ = rest.shape if rest.ndim == 4 else (0, 0, 0, 0)
        dim, inner = height * width * channels, low.shape[1:3]
        fitting = [(dim,), (dim,), (channels, *inner, channels * inner.numel())]
        if not dim or shapes != [*fitting, (height, width, channels, channels)]:
            raise ValueError(
                "mu {}, lambdas {}, low {} and rest {} do not fit: expected (D,), (D,), "
                "(C, h, w, C h w) and (H, W, C, C)".format(*shapes)
            )
        check_variances(lam)
        for name, axes in (("low", low.flatten(0, 2)), ("rest", rest)):
            error = axes.mT @ axes - torch.eye(axes.shape[-1], dtype=axes.dtype)
            if not bool((error.abs() <= ORTHONORMAL_TOLERANCE).all()):
                raise ValueError(f"the columns of {name} are not orthonormal")
        return cls(mean.double(), low.float(), rest.float(), lam.double().clamp(min=0))

    def tensors(self) -> dict[str, Tensor]:
        """As `from_tensors` takes them: low and rest are float32, mu and lambdas float64."""
        return {
            "mu": self.mean.double(),
            "low": self.low.float(),
            "rest": self.rest.float(),
            "lambdas": self.eigenvalues.double(),
        }

    def rescale(self, factor: float) -> "Spectral":
        return Spectral(self.mean, self.low, self.rest, self.eigenvalues * factor)

    def to(self, x: Tensor) -> "Spectral":
        return Spectral(*(t.to(x) for t in (self.mean, self.low, self.rest, self.eigenvalues)))

    def onto_axes(self, offset: Tensor) -> Tensor:
        z = transform(offset.view(-1, *self.shape))
        return self._by_blocks(z, self.low.flatten(0, 2), self.rest).flatten(1)

    def from_axes(self, inside: Tensor) -> Tensor:
        inside = inside.view(-1, *self.shape)
        return inverse(self._by_blocks(inside, self.low.flatten(0, 2).T, self.rest.mT)).flatten(1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        height, width, channels, _ = self.rest.shape
        return channels, height, width

    def _by_blocks(self, z: Tensor, low: Tensor, rest: Tensor) -> Tensor:
        """Row vectors of z (B, C, H, W) times the matrix of their block."""
        made = (z.permute(2, 3, 0, 1).contiguous() @ rest).permute(2, 3, 0, 1)
        _, height, width, _ = self.low.shape
        lowest = z[:, :, :height, :width]
        made[:, :, :height, :width] = (lowest.flatten(1) @ low).view(lowest.shape)
        return made
