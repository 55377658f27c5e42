"""The one conversion between uint8 pixels and the [-1, 1] that everything else computes in.

Images of L grey levels k = 0, ..., L - 1 are kept as `round(255 k / (L - 1))`, in 8 bits. Level k
stands for a bin of width 2 / (L - 1) around `2 k / (L - 1) - 1`.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from linear_structure.system.files import replacing

HALF_RANGE = 127.5
ALL_LEVELS = 256
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


def from_uint8(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map uint8 pixels 0..255 to [-1, 1] as `v / 127.5 - 1`; any shape."""
    return images.to(dtype).div_(HALF_RANGE).sub_(1)


def values_of(samples: Tensor, dtype: torch.dtype) -> Tensor:
    """Samples of any shape in a dtype: uint8 pixels on the [-1, 1] scale, floats as they are."""
    return from_uint8(samples, dtype) if samples.dtype == torch.uint8 else samples.to(dtype)


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to uint8 as the published FIDs did: `x * 127.5 + 128`, clipped, truncated."""
    return (x * HALF_RANGE + 128).clip(0, 255).to(torch.uint8)


def grey_levels(blocks: Iterable[Tensor]) -> int:
    """The number L of grey levels of images, uint8 of any shape, which may come in blocks.

    It is the smallest L from 2 to 128 with `round(255 k / (L - 1))` for each pixel, so that levels
    lie 2 or more apart; 256 where there is none. Half a unit is rounded to the even number. The
    first blocks decide that photographs have 256: the others are not read.
    """
    fitting = {count: _pixels_of(count) for count in range(2, ALL_LEVELS // 2 + 1)}
    for block in blocks:
        seen = block.unique()
        fitting = {count: pixels for count, pixels in fitting.items() if _within(seen, pixels)}
        if not fitting:
            break
    return min(fitting, default=ALL_LEVELS)


def _pixels_of(levels: int) -> Tensor:
    """How the levels are kept: uint8 (levels,)."""
    k = torch.arange(levels, dtype=torch.float64)
    return (255 * k / (levels - 1)).round().to(torch.uint8)


def _within(seen: Tensor, pixels: Tensor) -> bool:
    return bool(torch.isin(seen, pixels.to(seen.device)).all())


def dequantize(images: Tensor, levels: int, uniform: Tensor | float) -> Tensor:
    """`2 (k + u - 1/2) / (levels - 1) - 1` for images of grey levels k: float64, any shape.

    With 256 levels it is `(v + u - 1/2) / 127.5 - 1`.

    Args:
        images: uint8, as `grey_levels` finds them.
        uniform: u in [0, 1), like images; 1/2 gives the middles of the bins.
    """
    k = (images.double() * ((levels - 1) / 255)).round()
    return (k + uniform - 0.5) * (2 / (levels - 1)) - 1


def grid(images: Tensor, columns: int) -> Tensor:
    """Tile images (n, C, H, W) row by row into one (C, rows * H, columns * W); blanks are zero."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = images.new_zeros(rows * columns, channels, height, width)
    canvas[:n] = images
    tiled = canvas.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return tiled.reshape(channels, rows * height, columns * width)


def save_png(path: str | Path, image: Tensor) -> None:
    """Write one uint8 image (C, H, W), C = 1 or 3, as PNG, whole or not at all.

    A power cut may damage it: the disk is not waited for, image after image.
    """
    pixels = image.permute(1, 2, 0).squeeze(2).cpu().numpy()
    with replacing(Path(path), lasting=False) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")


def is_whole_png(path: Path) -> bool:
    """Whether a PNG begins and ends as each does, which after a power cut it may not."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return content.startswith(PNG_START) and content.endswith(PNG_END)
