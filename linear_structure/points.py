"""The exact denoiser of a finite data set, blocked over the data.

For data points y_i of equal weight,

    D(x, sigma) = sum_i w_i y_i,    w = softmax_i(-|x - y_i|^2 / (2 sigma^2))

Blocks of points pass once, with a running maximum and sum of the weights (an online softmax), so
memory does not grow with the number of points. The distances of a block come from one float32
matrix product. Its error, about 2 eps (|x| + 2 |y|) |y|, is many nats once divided by a small
sigma^2; but there few points weigh anything. Where the error passes 1e-3 nats, every point of a
block that may be within 40 nats of the nearest so far is measured again, by differences in float64.
The products keep float32's factors, also where the process rounds them to TF32 or bfloat16.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import threshold

from linear_structure.denoise import Model, Posterior, expand
from linear_structure.images import values_of
from linear_structure.system.precision import factors_in_float32

TOLERANCE = 1e-3  # nats by which a weight that counts may be off
REACH = 40.0  # nats below the largest weight at which a weight counts: e^-40 = 4e-18
COLUMNS = 4  # points measured again at a time, for each query
ROWS = 256  # points at a time for what is done once, in float64


@dataclass(frozen=True)
class PointCloud(Model):
    """The uniform distribution over `points`; a ValueError where there is none.

    Points of any shape (N, *S), such as images (N, C, H, W), are taken as rows (N, D).
    uint8 stands for [-1, 1]; floats, which may be in any units, are taken as they are.
    """

    kind: ClassVar[str] = "pointcloud"
    files: ClassVar[tuple[str, ...]] = ("points.npy",)
    points: Tensor  # (N, D), floats in the units of x, or uint8 pixels that stand for [-1, 1]
    block: int = 4096  # points at a time, of which a copy is made if they are not float32

    def __post_init__(self) -> None:
        if self.points.ndim < 2 or not self.points.numel():
            shape = tuple(self.points.shape)
            raise ValueError(f"points of shape {shape}: expected (N, D) with at least one point")
        object.__setattr__(self, "points", self.points.flatten(1))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "PointCloud":
        points = tensors["points"]
        if points.dtype != torch.uint8 or points.ndim != 2 or not points.numel():
            raise ValueError("points: expected uint8 of shape (N, D), N >= 1")
        return cls(points)

    def tensors(self) -> dict[str, Tensor]:
        return {"points": self.points}

    @property
    def dim(self) -> int:
        return self.points.shape[1]

    def sample(
        self, count: int, sigma: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw (count, D) points with replacement, noised to sigma, in float32 at least."""
        index = torch.randint(len(self.points), (count,), generator=generator)
        drawn = values_of(self.points[index.to(self.points.device)], self._product_dtype)
        return drawn + sigma * torch.randn(drawn.shape, generator=generator).to(drawn)

    def posterior(self, x: Tensor, sigma: Tensor | float) -> Posterior:
        """Posterior mean, entropy, nearest point and log density in one pass over the points."""
        flat, variance = _query(x, sigma)
        running = _Running.empty(flat)
        with factors_in_float32():
            for first, points in self._blocks(self._product_dtype, flat.device):
                nearest = -running.top * variance
                half = self._half_distances(flat, variance, first, points, nearest)
                running = running.updated(half.div_(-variance), points, first)
        return running.finished(x, variance, len(self.points))

    def log_weights(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Log of the posterior weights of all points, in float64: (B, N); needs sigma > 0."""
        flat, variance = _query(x, sigma)
        blocks = self._blocks(torch.float64, flat.device)
        none = torch.full_like(variance, torch.inf)
        half = torch.cat([self._half_distances(flat, variance, *b, none) for b in blocks], 1)
        return torch.log_softmax(-half / variance, 1)

    def to(self, x: Tensor) -> "PointCloud":
        """The same points, in their own type, on the device of x; itself where they are there."""
        points = self.points.to(x.device)
        return self if points is self.points else PointCloud(points, self.block)

    @property
    def _product_dtype(self) -> torch.dtype:
        return torch.promote_types(self.points.dtype, torch.float32)

    @cached_property
    def _half_squares(self) -> Tensor:
        """|y|^2 / 2 of all points: (N,) float64."""
        rows = (values_of(points, torch.float64) for points in self.points.split(ROWS))
        return torch.cat([points.square().sum(1) / 2 for points in rows])

    def _blocks(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        for number, points in enumerate(self.points.split(self.block)):
            yield number * self.block, values_of(points.to(device), dtype)

    def _half_distances(
        self, flat: Tensor, variance: Tensor, first: int, points: Tensor, nearest: Tensor
    ) -> Tensor:
        """|x - y|^2 / 2 for x (B, D) and the block y (n, D) from `first` on: (B, n) float64.

        `nearest` (B, 1) is the smallest of the blocks before.
        """
        half_squares = self._half_squares[first : first + len(points)].to(flat.device)
        rough = half_squares.to(points) - flat.to(points.dtype) @ points.T
        half = rough.double() + flat.square().sum(1, keepdim=True) / 2
        unit, norms = 2 * torch.finfo(points.dtype).eps, (2 * half_squares).sqrt()
        scale = unit * flat.norm(dim=1, keepdim=True)
        largest = (scale + 2 * unit * norms.max()) * norms.max()
        if bool((largest <= TOLERANCE * variance).all()):
            return half
        lowest = torch.minimum(nearest, half.amin(1, keepdim=True) + largest)
        error = torch.addcmul(4 * unit * half_squares, scale, norms)
        close = (half - error <= lowest + REACH * variance) & (error > TOLERANCE * variance)
        count = int(close.sum(1).max())
        if count == 0:
            return half
        leading = torch.where(close, half, torch.inf).topk(count, dim=1, largest=False).indices
        return half.scatter_(1, leading, self._measured(flat, first + leading))

    def _measured(self, flat: Tensor, index: Tensor) -> Tensor:
        """|x - y|^2 / 2 by differences, for x (B, D) and the points at `index` (B, k): (B, k)."""
        parts = []
        for columns in index.split(COLUMNS, dim=1):
            nearest = self.points[columns.to(self.points.device)].to(flat.device)
            offsets = flat[:, None] - values_of(nearest, torch.float64)
            parts.append(torch.linalg.vector_norm(offsets, dim=2).square() / 2)
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class _Running:
    """An online softmax over the blocks seen so far; logits are -|x - y|^2 / (2 sigma^2)."""

    top: Tensor  # (B, 1), largest logit
    nearest: Tensor  # (B, 1), its index
    total: Tensor  # (B, 1), sum of exp(logit - top)
    energy: Tensor  # (B, 1), sum of exp(logit - top) (logit - top)
    weighted: Tensor  # (B, D), sum of exp(logit - top) y

    @classmethod
    def empty(cls, flat: Tensor) -> "_Running":
        zero = flat.new_zeros(len(flat), 1)
        lowest = zero + torch.finfo(zero.dtype).min  # finite, so that 0 * lowest stays 0
        return cls(lowest, zero.long(), zero, zero, torch.zeros_like(flat))

    def updated(self, logits: Tensor, points: Tensor, first: int) -> "_Running":
        """With one block more: logits (B, n) of points (n, D), numbered from `first`."""
        best, index = logits.max(1, keepdim=True)
        top = torch.maximum(self.top, best)
        keep = (self.top - top).exp()
        gap = (logits - top).to(points.dtype)
        weights = threshold(gap.exp(), torch.finfo(gap.dtype).tiny, 0)  # subnormals are slow
        energy = keep * (self.energy + self.total * (self.top - top))
        return _Running(
            top,
            torch.where(best > self.top, index + first, self.nearest),
            self.total * keep + weights.sum(1, keepdim=True),
            energy + (weights * gap).sum(1, keepdim=True),
            self.weighted * keep + weights @ points,
        )

    def finished(self, x: Tensor, variance: Tensor, count: int) -> Posterior:
        """What all `count` points say about x (B, *S), whose variance is (B, 1)."""
        log_total = self.total.log()
        dim = self.weighted.shape[1]
        log_prob = self.top + log_total - dim / 2 * (2 * torch.pi * variance).log()
        return Posterior(
            (self.weighted / self.total).to(x.dtype).view_as(x),
            log_prob.squeeze(1) - math.log(count),
            (log_total - self.energy / self.total).squeeze(1),
            self.nearest.squeeze(1),
        )


def _query(x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """x as (B, D) and sigma^2 as (B, 1), in float64."""
    flat = x.flatten(1).double()
    variance = expand(sigma, flat).expand(len(flat), 1) ** 2
    if not bool((variance > 0).all()):
        raise ValueError("a point cloud has no density at sigma = 0: sigma must be positive")
    return flat, variance
