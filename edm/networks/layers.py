"""Layers whose tensors carry the names and shapes of the published checkpoints.

Weights are float32 and cast to the input's dtype in each call, so that one set of weights serves
float32, bfloat16 and float16. Initial values: `gain * u * scale`, with fan-in `in * k^2` and
fan-out `out * k^2`; a bias is drawn like its weight, after it, even where its scale is zero. The
arithmetic on draws is in place: out of place, torch loads a symbolic engine for the meta device,
on which networks are built before they get their weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linear_structure.system.errors import UsageError

MAX_GROUPS = 32
MIN_CHANNELS_PER_GROUP = 4


def xavier_uniform(shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
    """Uniform with variance `2 / (fan_in + fan_out)` (Glorot and Bengio 2010)."""
    return torch.rand(shape).mul_(2).sub_(1).mul_(math.sqrt(6 / (fan_in + fan_out)))


def kaiming_uniform(shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
    """Uniform with variance `1 / fan_in` (He et al. 2015, without their factor for ReLU)."""
    return torch.rand(shape).mul_(2).sub_(1).mul_(math.sqrt(3 / fan_in))


def kaiming_normal(shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
    """Normal with variance `1 / fan_in`."""
    return torch.randn(shape).mul_(math.sqrt(1 / fan_in))


@dataclass(frozen=True)
class Init:
    """How a layer's weight and bias are drawn, and what each draw is multiplied by."""

    draw: Callable[[Sequence[int], int, int], Tensor] = xavier_uniform
    weight: float = 1.0
    bias: float = 0.0

    def parameter(self, shape: Sequence[int], fans: tuple[int, int], scale: float) -> nn.Parameter:
        """A draw times a scale."""
        return nn.Parameter(self.draw(shape, *fans).mul_(scale))


class Linear(nn.Module):
    """`x W^T + b`: (N, in) -> (N, out)."""

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True) -> None:
        super().__init__()
        fans = (in_features, out_features)
        self.weight = init.parameter((out_features, in_features), fans, init.weight)
        self.bias = init.parameter((out_features,), fans, init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.to(x.dtype) if self.bias is not None else None
        return F.linear(x, self.weight.to(x.dtype), bias)


class GroupNorm(nn.Module):
    """Group normalisation over `min(32, C // 4)` groups of channels (Wu and He 2018)."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups = min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP)
        if self.groups == 0 or channels % self.groups:
            raise UsageError(
                f"{channels} channels cannot be normalised in {self.groups} equal groups: "
                f"choose a multiple of {MIN_CHANNELS_PER_GROUP}, above 128 of {MAX_GROUPS}"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.groups, weight, bias, self.eps)


class Resample(nn.Module):
    """Resampling by two, "up" or "down", with a separable filter and zero padding.

    Each channel is convolved with `outer(taps, taps) / sum(taps)^2`; taps (1, 1) are the 2x2 mean
    downwards and the nearest neighbour upwards. Their number is even.
    """

    resample_filter: Tensor

    def __init__(self, direction: str, taps: Sequence[int]) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("resample_filter", outer_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return resample(x, self.direction, self.resample_filter)


class Conv2d(nn.Module):
    """A 3x3 or 1x1 convolution that keeps the size, after resampling by two if so told.

    Args:
        direction, taps: of the resampling as in `Resample`; None for no resampling.
        filter_last: downwards, convolve before resampling; zeros surround the image once, for both.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        direction: str | None = None,
        taps: Sequence[int] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.direction, self.filter_last = out_channels, direction, filter_last
        self.padding = kernel // 2 + ((len(taps) - 1) // 2 if filter_last else 0)
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = init.parameter(shape, fans, init.weight)
        self.bias = init.parameter((out_channels,), fans, init.bias)
        if direction:
            self.register_buffer("resample_filter", outer_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        if self.direction and not self.filter_last:
            x = resample(x, self.direction, self.resample_filter)
        x = F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=self.padding)
        return resample(x, "down", self.resample_filter, padding=0) if self.filter_last else x


def outer_filter(taps: Sequence[int]) -> Tensor:
    """`outer(taps, taps) / sum(taps)^2`: (1, 1, n, n) float32."""
    total = sum(taps) ** 2
    return torch.tensor([[[[a * b / total for b in taps] for a in taps]]], dtype=torch.float32)


def resample(x: Tensor, direction: str, kernel: Tensor, padding: int | None = None) -> Tensor:
    """(N, C, H, W) -> (N, C, 2 H, 2 W) if "up", (N, C, H / 2, W / 2) if "down".

    Upwards, zeros come between the pixels and the filter is four times as strong: the mean stays.
    """
    padding = (kernel.shape[-1] - 1) // 2 if padding is None else padding
    channels, up = x.shape[1], direction == "up"
    weight = (4 * kernel if up else kernel).to(x.dtype).expand(channels, -1, -1, -1)
    convolve = F.conv_transpose2d if up else F.conv2d
    return convolve(x, weight, stride=2, padding=padding, groups=channels)


class PositionalEmbedding(nn.Module):
    """(N,) -> (N, channels): `cos, sin` of the label times `10000^(-i / (h - e))`, i < h = C / 2.

    `endpoint` (e = 1) makes the slowest frequency exactly 1 / 10000; else e = 0.
    """

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, labels: Tensor) -> Tensor:
        i = torch.arange(self.count, dtype=torch.float32, device=labels.device)
        return _waves(labels, (1 / 10000) ** (i / (self.count - self.endpoint)))


class FourierEmbedding(nn.Module):
    """(N,) -> (N, channels): `cos, sin` of the label times fixed frequencies, 2 pi N(0, 16^2)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2).mul_(scale))

    def forward(self, labels: Tensor) -> Tensor:
        return _waves(labels, 2 * math.pi * self.freqs)


def _waves(labels: Tensor, frequencies: Tensor) -> Tensor:
    angles = labels[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
