"""The exact denoiser of a finite data set, blocked over the data.

For data points y_i of equal weight,

    D(x, sigma) = sum_i w_i y_i,    w = softmax_i(-|x - y_i|^2 / (2 sigma^2))

Blocks of points pass once, with a running maximum and sum of the weights (an online softmax), so
memory does not grow with the number of points. Squared distances come from one float32 matrix
product of centred points; its error, about 1e-6 of |x||y|, is many nats once divided by a small
sigma^2. The few leading points of each block are therefore measured again by direct differences
in float64: the others weigh nothing where that error matters.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from linear_structure.denoise import expand
from linear_structure.images import from_uint8

BLOCK = 4096  # points at a time: 50 MB of float32 for CIFAR-10
LEADING = 8  # points of a block whose distance is measured again


@dataclass(frozen=True)
class PointPosterior:
    """What the data set says about one noised batch.

    Attributes:
        denoised: (B, *S), posterior mean.
        entropy: (B,) float64, of the weights, in nats: 0 (one point) to log N (all alike).
        nearest: (B,) int64, index of the nearest point.
        log_prob: (B,) float64, log density in nats of the noised data.
    """

    denoised: Tensor
    entropy: Tensor
    nearest: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class PointCloud:
    """The uniform distribution over `points`.

    Attributes:
        points: (N, D), floats in the units of x, or uint8 pixels that stand for [-1, 1].
    """

    points: Tensor

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Posterior mean of the data: x (B, *S), sigma > 0, () or (B,) -> (B, *S)."""
        return self.posterior(x, sigma).denoised

    def posterior(self, x: Tensor, sigma: Tensor | float) -> PointPosterior:
        """Posterior mean, entropy, nearest point and log density in one pass over the points.

        Raises:
            ValueError: sigma is not positive.
        """
        flat = x.flatten(1).double()
        variance = expand(sigma, flat).expand(len(flat), 1) ** 2
        if not bool((variance > 0).all()):
            raise ValueError("a point cloud has no density at sigma = 0: sigma must be positive")
        center = _as_float(self.points[:BLOCK], flat.device).mean(0)
        running = _Running.empty(flat)
        for first, exact in self._blocks(flat.device):
            half = _half_distances(flat, exact, center)
            running = running.updated(-half / variance, exact, first)
        return running.finished(x, variance, len(self.points))

    def log_weights(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Log of the posterior weights of all points: (B, N) float64.

        The leading ones are exact to rounding; those that weigh less than float32 can tell from
        zero carry the error of the matrix product.
        """
        flat = x.flatten(1).double()
        variance = expand(sigma, flat).expand(len(flat), 1) ** 2
        center = _as_float(self.points[:BLOCK], flat.device).mean(0)
        blocks = [_half_distances(flat, exact, center) for _, exact in self._blocks(flat.device)]
        return torch.log_softmax(-torch.cat(blocks, 1) / variance, 1)

    def _blocks(self, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, len(self.points), BLOCK):
            yield first, _as_float(self.points[first : first + BLOCK], device)


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
        best, index = logits.max(1, keepdim=True)
        top = torch.maximum(self.top, best)
        keep = (self.top - top).exp()
        gap = logits - top
        weights = gap.exp()
        energy = keep * (self.energy + self.total * (self.top - top))
        return _Running(
            top,
            torch.where(best > self.top, index + first, self.nearest),
            self.total * keep + weights.sum(1, keepdim=True),
            energy + (weights * gap).sum(1, keepdim=True),
            self.weighted * keep + (weights.to(points.dtype) @ points).double(),
        )

    def finished(self, x: Tensor, variance: Tensor, count: int) -> PointPosterior:
        log_total = self.total.log()
        dim = self.weighted.shape[1]
        log_prob = self.top + log_total - dim / 2 * (2 * torch.pi * variance).log()
        return PointPosterior(
            (self.weighted / self.total).to(x.dtype).view_as(x),
            (log_total - self.energy / self.total).squeeze(1),
            self.nearest.squeeze(1),
            log_prob.squeeze(1) - math.log(count),
        )


def _as_float(points: Tensor, device: torch.device) -> Tensor:
    points = points.to(device)
    return from_uint8(points) if points.dtype == torch.uint8 else points


def _half_distances(flat: Tensor, points: Tensor, center: Tensor) -> Tensor:
    """|x - y|^2 / 2 for x (B, D) float64 and one block y (n, D): (B, n) float64."""
    centred = points - center
    query = (flat - center).to(points.dtype)
    squares = centred.square().sum(1).double() + query.double().square().sum(1, keepdim=True)
    half = squares / 2 - (query @ centred.T).double()
    leading = half.topk(min(LEADING, len(points)), dim=1, largest=False).indices
    exact = (flat[:, None] - points[leading].double()).square().sum(2) / 2
    return half.scatter(1, leading, exact)
