"""Geometric augmentation whose labels the network sees, so that it does not leak into samples.

Non-leaking augmentation (Karras et al. 2020, 2022 appendix F.2): each image is mirrored, flipped,
scaled, rotated, stretched along an axis and moved at random, and nine numbers say how; zeros mean
"as it was", which is what sampling asks for.

    label   0       1     2      3, 4                   5, 6                7, 8
    of      mirror  flip  scale  cos w - 1, sin w       w cos r, w sin r    shift / (W, H) / 0.125
            0 or 1  0, 1  log2 / 0.2   of the angle w   stretch and axis

All but the flips are one affine map G for each image, which takes centred pixel coordinates of the
result to those of the source. It is applied at twice the resolution, between two passes of the
12-tap sym6 wavelet low-pass, so that little is lost: with G = I the image returns to 1e-5.

What changes is decided on the CPU: how far the images are padded depends on it, and a GPU that had
to say so would be waited for.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LABELS = 9
SCALE = 0.2  # standard deviation of log2 of a scale or stretch
SHIFT = 0.125  # standard deviation of a shift, as a share of the image
MARGIN = 3  # pixels that the low-pass needs around the image
LOW_PASS = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)


@dataclass(frozen=True)
class Augment:
    """The pipe of nine labels, each change but the mirror made with a probability.

    The mirror is not a choice: half of the images are seen in it, and the labels say so.
    """

    probability: float

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Change images (n, C, H, W) at random: the changed ones, and labels (n, 9)."""
        n, (height, width), device = len(images), images.shape[2:], images.device
        mirror = torch.randint(2, (n,)).float()
        flip = self._gate(torch.randint(2, (n,)).float())
        scale = self._gate(torch.randn(n))
        angle = self._gate(_any_angle(n))
        stretch, axis = torch.randn(n), _any_angle(n)
        stretch = self._gate(stretch)
        axis = torch.where(torch.rand(n) < 0.5, axis, 0)
        right, down = self._gate(torch.randn(2, n))
        grow, pull = 2 ** (SCALE * scale), 2 ** (SCALE * stretch)
        matrices = (
            scaling(1 / grow, 1 / grow)
            @ rotation(angle)
            @ (rotation(-axis) @ scaling(1 / pull, pull) @ rotation(axis))
            @ translation(-SHIFT * width * right, -SHIFT * height * down)
        )
        turn = (angle.cos() - 1, angle.sin())
        pulls = (stretch * axis.cos(), stretch * axis.sin())
        labels = torch.stack([mirror, flip, scale, *turn, *pulls, right, down], 1)
        labels = labels.to(device, non_blocking=True)
        for dim, chosen in ((3, labels[:, 0]), (2, labels[:, 1])):
            images = torch.where(chosen.reshape(-1, 1, 1, 1) == 1, images.flip(dim), images)
        with unmeasured():
            return transform(images, matrices), labels

    def _gate(self, values: Tensor) -> Tensor:
        """Values (..., n), zero where one draw for each sample says no change."""
        drawn = torch.rand(values.shape[-1])
        return torch.where(drawn < self.probability, values, 0)


@contextmanager
def unmeasured() -> Iterator[None]:
    """No search for the fastest convolution, which would be anew for each batch's margins."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, False
    try:
        yield
    finally:
        cudnn.benchmark = before


def _any_angle(n: int) -> Tensor:
    return math.pi * (2 * torch.rand(n) - 1)


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Matrices (n, 3, 3) of (x, y) factors (n,)."""
    return torch.stack([x, y, torch.ones_like(x)], 1).diag_embed()


def rotation(angle: Tensor) -> Tensor:
    """Matrices (n, 3, 3) of angles (n,) in radians."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = (cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1)
    return torch.stack(rows, 1).unflatten(1, (3, 3))


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Matrices (n, 3, 3) of shifts (n,)."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack((one, zero, x, zero, one, y, zero, zero, one), 1).unflatten(1, (3, 3))


def transform(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (n, C, H, W) whose pixel at p shows what was at `matrix p`; reflected beyond edges.

    Args:
        matrices: (n, 3, 3) on the CPU, from the result's pixel coordinates to the source's; the
            origin is the centre of the image, x goes right, y down.
    """
    n, channels, height, width = images.shape
    ones = torch.ones(n)
    left, top, right, bottom = _margins(matrices, height, width)
    images = F.pad(images, (left, right, top, bottom), mode="reflect")
    matrices = translation((left - right) / 2 * ones, (top - bottom) / 2 * ones) @ matrices
    taps = torch.tensor(LOW_PASS, dtype=images.dtype).to(images.device, non_blocking=True)
    taps = taps.expand(channels, 1, 1, -1)  # depthwise
    x = F.conv_transpose2d(images, taps, stride=(1, 2), padding=(0, 5), groups=channels)
    x = F.conv_transpose2d(x, taps.mT, stride=(2, 1), padding=(5, 0), groups=channels)
    # The low-pass puts pixel j at 2 j, near enough; its centre would be at 2 j + 1/2.
    half, double = translation(0.5 * ones, 0.5 * ones), scaling(2 * ones, 2 * ones)
    matrices = half.inverse() @ double @ matrices @ double.inverse() @ half
    x = _sampled(x, matrices, (2 * (height + 2 * MARGIN), 2 * (width + 2 * MARGIN)))
    x = F.conv2d(x[:, :, 1:-1, 1:-1], taps, stride=(1, 2), groups=channels)
    return F.conv2d(x, taps.mT, stride=(2, 1), groups=channels)


def _margins(matrices: Tensor, height: int, width: int) -> list[int]:
    """What the results need beyond the left, top, right and bottom edges of the sources."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    reached = (matrices @ corners)[:, :2].transpose(0, 1).flatten(1)
    most = torch.cat([-reached, reached]).amax(1)
    beyond = most + 2 * MARGIN - torch.tensor([x, y, x, y])
    limit = torch.tensor([width - 1, height - 1] * 2)
    return beyond.clamp(min=0).minimum(limit).ceil().int().tolist()


def _sampled(images: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear at the mapped pixels of a result of a size; zero outside the source."""
    n, channels, height, width = images.shape
    ones = torch.ones(n)
    inwards = scaling(ones * 2 / width, ones * 2 / height)
    outwards = scaling(ones * size[1] / 2, ones * size[0] / 2)
    theta = (inwards @ matrices @ outwards)[:, :2].to(images.device, non_blocking=True)
    where = F.affine_grid(theta, [n, channels, *size], align_corners=False)
    return F.grid_sample(images, where, align_corners=False)
