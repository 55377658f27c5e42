"""What DDPM++, NCSN++ and ADM share: options, how they are called, and the two paths of blocks.

Level l works at resolution `img_resolution / 2^l` and width `model_channels * channel_mult[l]`.
The contracting path goes down the levels, the expanding path up again; each `block{i}` of the
latter also takes the newest output of the former that is still unused.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edm.networks.block import BlockStyle, UNetBlock
from edm.networks.layers import Conv2d, Init, Linear
from linear_structure.system.errors import UsageError
from linear_structure.system.options import count, option

MAX_LEVELS = 12


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """Options of both kinds of network, under their published names."""

    img_resolution: int = count()
    label_dim: int = count(0, low=0)
    augment_dim: int = count(0, low=0)
    model_channels: int = count()
    channel_mult: tuple[int, ...] = count(high=1024)
    channel_mult_emb: int = count(4)
    num_blocks: int = count(high=32)
    attn_resolutions: tuple[int, ...] = count()
    dropout: float = option(0.1, high=1)
    label_dropout: float = option(0.0, high=1)

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        if not 1 <= levels <= MAX_LEVELS or self.img_resolution % 2 ** (levels - 1):
            raise UsageError(
                f"option 'img_resolution' is {self.img_resolution}, which cannot be halved for the "
                f"{levels} levels of 'channel_mult' (1 to {MAX_LEVELS})"
            )
        if self.model_channels % 2:
            raise UsageError(f"option 'model_channels' is {self.model_channels}: expected even")

    @property
    def embedding_channels(self) -> int:
        return self.model_channels * self.channel_mult_emb

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(resolution, width) from the finest to the coarsest."""
        widths = [self.model_channels * factor for factor in self.channel_mult]
        return [(self.img_resolution >> level, width) for level, width in enumerate(widths)]


class UNet(nn.Module, ABC):
    """A network F; `edm.precondition` makes a denoiser of it."""

    options: UNetOptions
    map_label: Linear | None
    map_augment: Linear | None

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x (N, in, H, W), noise labels (N,), or (1,) for all -> (N, out, H, W) in x's dtype.

        class_labels are one-hot (N or 1, label_dim), augment_labels (N, augment_dim).
        """
        classes, dropout = class_labels, self.options.label_dropout
        if classes is not None and self.map_label is not None and self.training and dropout:
            classes = drop_labels(classes, dropout, x.shape[0])
        return self._map(x, self._embed(noise_labels, classes, augment_labels))

    @abstractmethod
    def _embed(self, noise: Tensor, classes: Tensor | None, augment: Tensor | None) -> Tensor:
        """What every block is told, (N or 1, E)."""

    @abstractmethod
    def _map(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The encoder, and the decoder on its outputs."""


def label_layer(dim: int, channels: int, init: Init, bias: bool = False) -> Linear | None:
    """What takes labels in, if there are any."""
    return Linear(dim, channels, init, bias) if dim else None


def added(x: Tensor, layer: Linear | None, labels: Tensor | None) -> Tensor:
    """x (N or 1, C) and what a layer makes of labels, where there are both."""
    return x if layer is None or labels is None else x + layer(labels)


def contracting(
    options: UNetOptions, style: BlockStyle, in_channels: int, channels: int
) -> Iterator[tuple[str, Conv2d | UNetBlock]]:
    """The encoder with its names, in order: a convolution to so many channels, then blocks."""
    size = options.img_resolution
    yield f"{size}x{size}_conv", Conv2d(in_channels, channels, 3, style.init)
    for resolution, width in options.levels:
        name = f"{resolution}x{resolution}"
        if resolution < options.img_resolution:
            yield f"{name}_down", UNetBlock(channels, channels, style, "down")
        attention = resolution in options.attn_resolutions
        for i in range(options.num_blocks):
            yield f"{name}_block{i}", UNetBlock(channels, width, style, attention=attention)
            channels = width


def expanding(
    options: UNetOptions, style: BlockStyle, skips: list[int], attention_everywhere: bool
) -> Iterator[tuple[str, UNetBlock]]:
    """Blocks of the decoder with their names, in order.

    Args:
        skips: channels of each output of the encoder.
        attention_everywhere: at an attention resolution, in all blocks; else in the last only.
    """
    skips, channels = list(skips), skips[-1]
    for level, (resolution, width) in reversed(list(enumerate(options.levels))):
        name = f"{resolution}x{resolution}"
        if level == len(options.levels) - 1:
            yield f"{name}_in0", UNetBlock(channels, channels, style, attention=True)
            yield f"{name}_in1", UNetBlock(channels, channels, style)
        else:
            yield f"{name}_up", UNetBlock(channels, channels, style, "up")
        for i in range(options.num_blocks + 1):
            attention = resolution in options.attn_resolutions and (
                attention_everywhere or i == options.num_blocks
            )
            block = UNetBlock(channels + skips.pop(), width, style, attention=attention)
            yield f"{name}_block{i}", block
            channels = width


def drop_labels(labels: Tensor, probability: float, batch: int) -> Tensor:
    """Zero each of the `batch` rows with a probability: (n or 1, label_dim) -> (batch, label_dim).

    What the network learns for zeros is the unconditional model (Ho and Salimans 2021).
    """
    return labels * (torch.rand(batch, 1, device=labels.device) >= probability)
