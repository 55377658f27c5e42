"""ADM, the ablated diffusion model (Dhariwal and Nichol 2021), as trained by Karras et al. 2022."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edm.networks.block import BlockStyle, UNetBlock
from edm.networks.layers import (
    Conv2d,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    kaiming_normal,
    kaiming_uniform,
)
from edm.networks.unet import UNet, UNetOptions, added, contracting, expanding, label_layer
from linear_structure.system.options import count

EPS = 1e-5
GENERAL = Init(kaiming_uniform, math.sqrt(1 / 3), math.sqrt(1 / 3))
ZERO = Init(kaiming_uniform, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class ADMOptions(UNetOptions):
    """Options of ADM under their published names and with the published defaults."""

    model_channels: int = count(192)
    channel_mult: tuple[int, ...] = count((1, 2, 3, 4), high=1024)
    num_blocks: int = count(3, high=32)
    attn_resolutions: tuple[int, ...] = count((32, 16, 8))

    @property
    def style(self) -> BlockStyle:
        """What all blocks of this kind of network have in common."""
        return BlockStyle(
            embedding_channels=self.embedding_channels,
            channels_per_head=64,
            dropout=self.dropout,
            skip_scale=1.0,
            eps=EPS,
            taps=(1, 1),
            project_resampled=False,
            scale_and_shift=True,
            init=GENERAL,
            init_zero=ZERO,
            init_attention=GENERAL,
        )


class ADM(UNet):
    """The network F of ADM."""

    def __init__(self, options: ADMOptions, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.options = o = options
        features, width = o.embedding_channels, o.levels[0][1]
        init_label = Init(kaiming_normal, math.sqrt(o.label_dim))
        self.map_noise = PositionalEmbedding(o.model_channels, endpoint=False)
        self.map_augment = label_layer(o.augment_dim, o.model_channels, ZERO)
        self.map_layer0 = Linear(o.model_channels, features, GENERAL)
        self.map_layer1 = Linear(features, features, GENERAL)
        self.map_label = label_layer(o.label_dim, features, init_label)
        encoder = dict(contracting(o, o.style, in_channels, width))
        skips = [block.out_channels for block in encoder.values()]
        self.enc = nn.ModuleDict(encoder)
        self.dec = nn.ModuleDict(dict(expanding(o, o.style, skips, attention_everywhere=True)))
        self.out_norm = GroupNorm(width, EPS)
        self.out_conv = Conv2d(width, out_channels, 3, ZERO)

    def _embed(self, noise: Tensor, classes: Tensor | None, augment: Tensor | None) -> Tensor:
        embedding = added(self.map_noise(noise), self.map_augment, augment)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        return F.silu(added(embedding, self.map_label, classes))

    def _map(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, embedding) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
            x = block(x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))
