"""Images with several factors, of which an encoder may keep some: grey digits in two colours.

    pixel = v foreground + (1 - v) background,   v in [0, 1] the grey value

A foreground and a background are each one of nine hues. Parts to learn from, to choose on and to
measure on hold different source images, not only different colourings of them.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from linear_structure.data.datasets import Dataset
from linear_structure.images import from_uint8, to_uint8
from linear_structure.system.errors import UsageError

PARTS = ("train", "validation", "test")
HUES = 9
BLOCK = 1000  # images that are coloured at once
DIGITS = (1000, 200, 597)  # source images of each part
SHARES = (0.8, 0.1, 0.1)  # of source images where nothing says more
FEWEST = 10  # images that are cut into parts
CHANCE = 0  # of the split and of the colours that are measured on


class Colours(NamedTuple):
    """Numbers of hues (n,) int64."""

    foreground: Tensor
    background: Tensor


@dataclass(frozen=True, eq=False)
class Factors:
    """Images with the classes of each factor.

    Attributes:
        images: uint8 (n, C, H, W).
        labels: of each factor by its name, int64 (n,).
        source: the number of the image that each was made from, int64 (n,).
        part: its place in `PARTS`, int64 (n,).
    """

    images: Tensor
    labels: Mapping[str, Tensor]
    source: Tensor
    part: Tensor

    def within(self, part: str) -> Tensor:
        """Images of a part, uint8 (m, C, H, W)."""
        return self.images[self.part == PARTS.index(part)]


def palette(saturation: float, value: float) -> Tensor:
    """Colours of `HUES` hues, spread evenly from red on: (9, 3) float32 in [0, 1]."""
    hues = (number / HUES for number in range(HUES))
    return torch.tensor([colorsys.hsv_to_rgb(hue, saturation, value) for hue in hues])


def foregrounds() -> Tensor:
    """Bright colours (9, 3)."""
    return palette(0.9, 1.0)


def backgrounds() -> Tensor:
    """Dark and pale ones (9, 3)."""
    return palette(0.6, 0.45)


def coloured(grey: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Grey images in two colours each.

    Args:
        grey: (n, 1, H, W) in [0, 1].
        foreground, background: (n, 3) in [0, 1], red, green and blue.

    Returns:
        uint8 (n, 3, H, W).
    """
    over, under = foreground[:, :, None, None], background[:, :, None, None]
    return to_uint8((grey * over + (1 - grey) * under) * 2 - 1)


def drawn_colours(count: int, generator: Generator) -> Colours:
    """A foreground and a background for each of `count` images, all 81 pairs equally likely."""
    draw = [torch.randint(HUES, (count,), generator=generator) for _ in range(2)]
    return Colours(*draw)


def in_colours(images: Tensor, colours: Colours) -> Tensor:
    """Grey images, uint8 (n, 1, H, W), in colours (n,) of the two palettes: uint8 (n, 3, H, W)."""
    over, under = foregrounds()[colours.foreground], backgrounds()[colours.background]
    parts = zip(images.split(BLOCK), over.split(BLOCK), under.split(BLOCK), strict=True)
    return torch.cat([coloured((from_uint8(grey) + 1) / 2, *both) for grey, *both in parts])


def pooled(images: Tensor, size: int) -> Tensor:
    """Means of `size` x `size` pixels: uint8 (n, C, H, W) -> (n, C, H / size, W / size)."""
    return to_uint8(F.avg_pool2d(from_uint8(images), size))


def parts_of(counts: Sequence[int]) -> Tensor:
    """For each of `sum(counts)` source images its part, a random one: int64.

    Raises:
        UsageError: a part would be empty.
    """
    if min(counts) < 1:
        raise UsageError(
            f"{sum(counts)} images are too few: expected one or more in each part "
            f"({', '.join(PARTS)})"
        )
    order = torch.randperm(sum(counts), generator=Generator().manual_seed(CHANCE))
    return torch.repeat_interleave(torch.tensor(counts))[order]


def shares_of(count: int) -> tuple[int, int, int]:
    """How many of `count` source images each part gets: 8, 1 and 1 in 10."""
    validation, test = (round(count * share) for share in SHARES[1:])
    return count - validation - test, validation, test


def in_parts(dataset: Dataset) -> Factors:
    """Images as they are; their one factor is their class, where they have any.

    Fewer than `FEWEST` are not cut into parts: all are to be measured on.
    """
    labels, count = dataset.classes(), dataset.count
    whole = torch.full((count,), PARTS.index("test"))
    part = parts_of(shares_of(count)) if count >= FEWEST else whole
    factors = {} if labels is None else {"class": labels}
    return Factors(dataset.images(), factors, torch.arange(count), part)


def in_fixed_colours(
    dataset: Dataset, colourings: tuple[int, int, int] = (3, 3, 2), pool: int = 1
) -> Factors:
    """Grey images, each in several colours: the same in every call.

    Args:
        dataset: images of one channel; their class is the factor "digit".
        colourings: of each source image, by part.
        pool: pixels that are averaged, to either side.

    Raises:
        UsageError: they are not grey, have no labels, or are too few.
    """
    digits, count = dataset.classes(), dataset.count
    if dataset.shape[0] != 1 or digits is None:
        raise UsageError(
            f"{dataset.name} has colours of its own or no labels: expected grey images, each with "
            "its class"
        )
    part = parts_of(DIGITS if count == sum(DIGITS) else shares_of(count))
    source = torch.repeat_interleave(torch.tensor(colourings)[part])
    colours = drawn_colours(len(source), Generator().manual_seed(CHANCE))
    labels = {"digit": digits[source], **colours._asdict()}
    grey = pooled(dataset.images(), pool)
    return Factors(in_colours(grey[source], colours), labels, source, part[source])
