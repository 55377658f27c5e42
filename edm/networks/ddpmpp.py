"""DDPM++ and NCSN++ (Song et al. 2021), as trained by Karras et al. 2022.

Two configurations of one network: DDPM++ has a positional embedding and box resampling; NCSN++ has
a Fourier embedding twice as wide, (1, 3, 3, 1) resampling, and the "residual" encoder, which takes
the image in again at every resolution. The "skip" encoder and decoder do so by plain resampling.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks.block import BlockStyle, UNetBlock
from edm.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    Resample,
)
from edm.networks.unet import UNet, UNetOptions, added, contracting, expanding, label_layer
from linear_structure.system.errors import UsageError
from linear_structure.system.options import choice, count

EPS = 1e-6
GENERAL, ZERO, ATTENTION = Init(), Init(weight=1e-5), Init(weight=math.sqrt(0.2))


@dataclass(frozen=True, kw_only=True)
class DDPMppOptions(UNetOptions):
    """Options of DDPM++ and NCSN++ under their published names and with the published defaults."""

    model_channels: int = count(128)
    channel_mult: tuple[int, ...] = count((1, 2, 2, 2), high=1024)
    num_blocks: int = count(4, high=32)
    attn_resolutions: tuple[int, ...] = count((16,))
    embedding_type: str = choice("positional", "fourier")
    channel_mult_noise: int = count(1)
    encoder_type: str = choice("standard", "skip", "residual")
    decoder_type: str = choice("standard", "skip")
    resample_filter: tuple[int, ...] = count((1, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.resample_filter) not in (2, 4, 6, 8):
            raise UsageError(
                f"option 'resample_filter' has {len(self.resample_filter)} taps: "
                "expected an even number from 2 to 8"
            )

    @property
    def style(self) -> BlockStyle:
        """What all blocks of this kind of network have in common."""
        return BlockStyle(
            embedding_channels=self.embedding_channels,
            channels_per_head=None,
            dropout=self.dropout,
            skip_scale=math.sqrt(0.5),
            eps=EPS,
            taps=self.resample_filter,
            project_resampled=True,
            scale_and_shift=False,
            init=GENERAL,
            init_zero=ZERO,
            init_attention=ATTENTION,
        )


class Half(UNet):
    """The network without its decoder.

    Args:
        style: of its blocks, `options.style` by default.
    """

    def __init__(
        self, options: DDPMppOptions, in_channels: int, style: BlockStyle | None = None
    ) -> None:
        super().__init__()
        self.options = o = options
        positional = o.embedding_type == "positional"
        noise, features = o.model_channels * o.channel_mult_noise, o.embedding_channels
        self.map_noise = (
            PositionalEmbedding(noise, endpoint=True) if positional else FourierEmbedding(noise)
        )
        self.map_label = label_layer(o.label_dim, noise, GENERAL, bias=True)
        self.map_augment = label_layer(o.augment_dim, noise, GENERAL)
        self.map_layer0 = Linear(noise, features, GENERAL)
        self.map_layer1 = Linear(features, features, GENERAL)
        self.enc, self.skips = _encoder(o, style or o.style, in_channels)

    @property
    def out_features(self) -> int:
        return self.skips[-1]

    def features(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """x (N, in, H, W), labels as a `UNet` takes them -> their mean (N, out_features)."""
        embedding = self._embed(noise_labels, class_labels, None)
        return self._contract(x, embedding)[-1].mean((2, 3))

    def _embed(self, noise: Tensor, classes: Tensor | None, augment: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(noise).chunk(2, dim=1)
        if classes is not None:
            classes = classes * math.sqrt(self.options.label_dim)
        embedding = added(torch.cat([sin, cos], dim=1), self.map_label, classes)
        embedding = added(embedding, self.map_augment, augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def _map(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self._contract(x, embedding)[-1]

    def _contract(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Every output that the decoder takes; it takes the last one first."""
        image = x
        skips: list[Tensor] = []
        for name, block in self.enc.items():
            if name.endswith("aux_down"):
                image = block(image)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + block(image)
            elif name.endswith("aux_residual"):
                x = skips[-1] = image = (x + block(image)) * math.sqrt(0.5)
            else:
                x = block(x, embedding) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)
        return skips


class DDPMpp(Half):
    """The network F of DDPM++ and NCSN++."""

    def __init__(self, options: DDPMppOptions, in_channels: int, out_channels: int) -> None:
        super().__init__(options, in_channels)
        self.dec = _decoder(options, self.skips, out_channels)

    def _map(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips = self._contract(x, embedding)
        x, image = skips[-1], x.new_zeros(())
        for name, block in self.dec.items():
            if name.endswith("aux_up"):
                image = block(image)
            elif name.endswith("aux_norm"):
                features = F.silu(block(x))
            elif name.endswith("aux_conv"):
                image = image + block(features)
            elif "_block" in name:
                x = block(torch.cat([x, skips.pop()], dim=1), embedding)
            else:
                x = block(x, embedding)
        return image


def _encoder(
    o: DDPMppOptions, style: BlockStyle, in_channels: int
) -> tuple[nn.ModuleDict, list[int]]:
    """The encoder, and the channels of each output that the decoder takes."""
    blocks, skips, image = nn.ModuleDict(), list[int](), in_channels
    for name, block in contracting(o, style, in_channels, o.model_channels):
        blocks[name] = block
        skips.append(block.out_channels)
        level, _, part = name.partition("_")
        if part == "down" and o.encoder_type == "skip":
            blocks[f"{level}_aux_down"] = Resample("down", o.resample_filter)
            blocks[f"{level}_aux_skip"] = Conv2d(image, block.out_channels, 1, GENERAL)
        elif part == "down" and o.encoder_type == "residual":
            blocks[f"{level}_aux_residual"] = Conv2d(
                image, block.out_channels, 3, GENERAL, "down", o.resample_filter, filter_last=True
            )
            image = block.out_channels
    return blocks, skips


def _decoder(o: DDPMppOptions, skips: list[int], out_channels: int) -> nn.ModuleDict:
    blocks = nn.ModuleDict()
    finest, coarsest = (f"{level[0]}x{level[0]}" for level in (o.levels[0], o.levels[-1]))
    for name, block in expanding(o, o.style, skips, attention_everywhere=False):
        blocks[name] = block
        level, _, part = name.partition("_")
        if part != f"block{o.num_blocks}" or (o.decoder_type != "skip" and level != finest):
            continue
        if o.decoder_type == "skip" and level != coarsest:
            blocks[f"{level}_aux_up"] = Resample("up", o.resample_filter)
        blocks[f"{level}_aux_norm"] = GroupNorm(block.out_channels, EPS)
        blocks[f"{level}_aux_conv"] = Conv2d(block.out_channels, out_channels, 3, ZERO)
    return blocks
