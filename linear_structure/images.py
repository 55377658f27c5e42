"""The one conversion between uint8 pixels and the [-1, 1] that everything else computes in."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from linear_structure.system.files import replacing

HALF_RANGE = 127.5


def from_uint8(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map uint8 pixels 0..255 to [-1, 1] as `v / 127.5 - 1`; any shape."""
    return images.to(dtype).div_(HALF_RANGE).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to uint8 as the published FIDs did: `x * 127.5 + 128`, clipped, truncated."""
    return (x * HALF_RANGE + 128).clip(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile images (n, C, H, W) row by row into one (C, rows * H, columns * W); blanks are zero."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = images.new_zeros(rows * columns, channels, height, width)
    canvas[:n] = images
    tiled = canvas.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return tiled.reshape(channels, rows * height, columns * width)


def save_png(path: Path, image: Tensor) -> None:
    """Write one uint8 image (C, H, W), C = 1 or 3, as PNG, whole or not at all."""
    pixels = image.permute(1, 2, 0).squeeze(2).numpy()
    with replacing(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")
