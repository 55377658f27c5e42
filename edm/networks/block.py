"""The residual block that all published networks are made of, with its self-attention."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks.layers import Conv2d, GroupNorm, Init, Linear, Resample
from linear_structure.system.errors import UsageError


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of one network have in common."""

    embedding_channels: int
    channels_per_head: int | None  # None: one head
    dropout: float
    skip_scale: float  # multiplies each sum of a branch and its skip connection
    eps: float  # of the normalisations
    taps: tuple[int, ...]  # of the resampling filter
    project_resampled: bool  # a 1x1 convolution after resampling the skip, even if widths agree
    scale_and_shift: bool  # the embedding scales and shifts the normalised features; else it adds
    init: Init
    init_zero: Init  # of what ends a branch
    init_attention: Init


class UNetBlock(nn.Module):
    """Two convolutions with a skip connection and the noise embedding, then self-attention.

    Args:
        direction: "up" or "down" by two in the first convolution and the skip, or None.
        attention: between all pixels, after the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        direction: str | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.style, self.out_channels = style, out_channels
        self.heads = out_channels // (style.channels_per_head or out_channels) if attention else 0
        if self.heads and out_channels % self.heads:
            raise UsageError(f"{out_channels} channels cannot be split between {self.heads} heads")
        features = out_channels * (2 if style.scale_and_shift else 1)
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, style.init, direction, style.taps)
        self.affine = Linear(style.embedding_channels, features, style.init)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, style.init_zero)
        self.skip: nn.Module | None = Resample(direction, style.taps) if direction else None
        if in_channels != out_channels or (direction and style.project_resampled):
            self.skip = Conv2d(in_channels, out_channels, 1, style.init, direction, style.taps)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, style.init_attention)
            self.proj = Conv2d(out_channels, out_channels, 1, style.init_zero)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, in, H, W), embedding (N, E), or (1, E) for all -> (N, out, H', W')."""
        h = self.conv0(F.silu(self.norm0(x)))
        features = self.affine(embedding)[:, :, None, None].to(x.dtype)
        if self.style.scale_and_shift:
            scale, shift = features.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + features)
        h = self.conv1(F.dropout(F.silu(h), self.style.dropout, self.training))
        x = (h + (self.skip(x) if self.skip else x)) * self.style.skip_scale
        return (self._attend(x) + x) * self.style.skip_scale if self.heads else x

    def _attend(self, x: Tensor) -> Tensor:
        """Attention between pixels, on rows of channels whatever the memory format of x.

        The published weights interleave queries, keys and values: output channel
        `3 (head * c + i) + j` of `qkv` is channel i of a head's query, key or value (j). Ordered by
        j, then head, then i, each is contiguous.
        """
        n, channels, height, width = x.shape
        pixels = self.norm2(x).flatten(2).mT
        weight = self.qkv.weight.flatten(1).unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
        bias = self.qkv.bias.unflatten(0, (-1, 3)).mT.flatten()
        projected = F.linear(pixels, weight.to(x.dtype), bias.to(x.dtype))
        q, k, v = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, channels)
        return self.proj(mixed.mT.unflatten(2, (height, width)))
