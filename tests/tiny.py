"""The small networks of the tests, made in one place."""

from typing import Any

import torch

from edm.precondition import Preconditioned, build

CONFIG = {
    "precondition": "EDMPrecond",
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def config(**changes: Any) -> dict[str, Any]:
    """Options of a tiny network of 8 x 8 RGB images, with some of them changed."""
    return CONFIG | changes


def network(std: float | None = 0.1, **changes: Any) -> Preconditioned:
    """A network of `config`, the same each time, ready to be called.

    Args:
        std: of all its weights, of which some would start at zero and hide their inputs; None:
            such that each layer keeps the variance of its inputs.
    """
    torch.manual_seed(0)
    made = build(config(**changes)).eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=std or parameter[0].numel() ** -0.5)
    return made
