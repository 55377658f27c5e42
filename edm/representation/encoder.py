"""Encoders: what a denoiser should be told of a clean image at a noise level.

    z = E(x_0, sigma),   as W features(x_0, ln(sigma) / 4) + b

The features are those of an MLP, or the mean over the pixels of the encoder half of a U-Net. All
layers are drawn with ordinary weights: with branches that start at zero, codes of an encoder that
has learnt nothing would not depend on sigma, and compare with nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from edm.networks import DDPMppOptions, Half, MLPOptions, Trunk
from edm.networks.layers import Init, Linear
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_state
from linear_structure.system.options import choice, count, parse, plain

BLOCK = 500  # images that are encoded together
GENERAL = Init()

Encode = Callable[[Tensor, Tensor], Tensor]
"""Clean images (B, C, H, W) and sigma, () or (B,) -> codes (B, d)."""


def _half(options: DDPMppOptions, in_channels: int) -> Half:
    return Half(options, in_channels, replace(options.style, init_zero=GENERAL))


BODIES: dict[str, tuple[Any, Any]] = {
    "MLP": (Trunk, MLPOptions),
    "SongUNet": (_half, DDPMppOptions),
}


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What every encoder is told, whatever its features."""

    model_type: str = choice("MLP", "SongUNet")
    img_channels: int = count()
    outputs: int = count()


class Encoder(nn.Module):
    """An encoder; what learns along with it gives `outputs` numbers their meaning."""

    def __init__(self, options: EncoderOptions, body: Trunk | Half) -> None:
        super().__init__()
        self.options, self.body = options, body
        self.head = Linear(body.out_features, options.outputs, GENERAL)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Encoder":
        """An encoder with initial weights, of plain JSON values.

        Args:
            config: `model_type`, "MLP" for images of a few pixels or "SongUNet"; `img_channels`;
                `outputs`, numbers it gives; and the options of that network by their names.

        Raises:
            UsageError: a name is unknown or missing, or a value has the wrong type or range.
        """
        own = {each.name for each in fields(EncoderOptions)} & config.keys()
        options = parse(EncoderOptions, {name: config[name] for name in own}, "the encoder")
        body, body_options = BODIES[options.model_type]
        rest = {name: value for name, value in config.items() if name not in own}
        return cls(options, body(parse(body_options, rest, "the encoder"), options.img_channels))

    @property
    def config(self) -> dict[str, Any]:
        """All options, as JSON values: `of` makes the same encoder of it."""
        return {**plain(self.options), **plain(self.body.options)}

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of options and weights."""
        return digest_of_state(self.config, self.state_dict())

    def forward(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Codes (B, outputs) of clean images (B, C, H, W); sigma () or (B,), above 0."""
        noise = sigma.to(images).log().reshape(-1) / 4
        return self.head(self.body.features(images, noise))


def check_levels(sigmas: Tensor) -> None:
    """UsageError unless levels (K,) are one or more, above 0, and rise or fall all along."""
    steps = sigmas.diff()
    ordered = bool((steps > 0).all() or (steps < 0).all())
    above = bool((torch.isfinite(sigmas) & (sigmas > 0)).all())
    if sigmas.ndim != 1 or not len(sigmas) or not (ordered and above):
        raise UsageError(
            f"noise levels {' '.join(f'{sigma:g}' for sigma in sigmas.flatten().tolist())}: "
            "expected one or more numbers above 0, each above, or each below, the one before"
        )


@torch.no_grad()
def trajectory(encoder: Encode, images: Tensor, sigmas: Tensor, block: int = BLOCK) -> Tensor:
    """Codes of each image at each noise level.

    Args:
        encoder: on the device of the images; a module in evaluation mode.
        images: clean, in [-1, 1]: (n, C, H, W).
        sigmas: (K,), rising or falling.
        block: images at a time, on which the last bits depend.

    Returns:
        (n, K, d).

    Raises:
        UsageError: as `check_levels`.
    """
    check_levels(sigmas)
    parts = [
        torch.stack([encoder(part, sigma) for sigma in sigmas.to(images)], dim=1)
        for part in images.split(block)
    ]
    return torch.cat(parts)
