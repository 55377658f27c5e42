"""Datasets of uint8 images: a known name, or a path, gives blocks of images and labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from linear_structure.errors import UsageError

Block = tuple[Tensor, Tensor | None]
"""uint8 images (b, C, H, W) and their int64 labels (b,), None where there are none."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one shape in a fixed order; they are read, or decoded, when asked for."""

    name: str
    count: int
    shape: tuple[int, int, int]
    label_count: int
    read: Callable[[int, int], Tensor] = field(repr=False)
    targets: Tensor | None = field(repr=False)

    def blocks(self, size: int) -> Iterator[Block]:
        """Yield the dataset in order, `size` images at a time (the last block may be smaller)."""
        if size < 1:
            raise ValueError(f"blocks of {size} images: at least 1 is needed")
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            labels = None if self.targets is None else self.targets[start:stop]
            yield self.read(start, stop), labels

    def images(self) -> Tensor:
        """All images at once: uint8 (count, C, H, W)."""
        return self.read(0, self.count)

    def labels(self) -> Tensor | None:
        """All labels at once: int64 (count,), or None."""
        return self.targets


def _in_memory(name: str, images: Tensor, labels: Tensor | None) -> Dataset:
    channels, height, width = images.shape[1:]
    label_count = 0 if labels is None else int(labels.max()) + 1
    return Dataset(
        name,
        len(images),
        (channels, height, width),
        label_count,
        lambda start, stop: images[start:stop],
        labels,
    )


def _digits(data_dir: Path | None) -> Dataset:
    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    images = torch.from_numpy(pixels).unsqueeze(1)
    return _in_memory("digits", images, torch.from_numpy(bunch.target).long())


_KNOWN: dict[str, Callable[[Path | None], Dataset]] = {"digits": _digits}


def load(name_or_path: str, data_dir: Path | None = None) -> Dataset:
    """A dataset by its known name or by its path.

    Raises:
        UsageError: the name is unknown or the path cannot be read as a dataset.
    """
    if name_or_path in _KNOWN:
        return _KNOWN[name_or_path](data_dir)
    raise UsageError(
        f"unknown dataset {name_or_path!r}: give one of {', '.join(_KNOWN)}, or a path"
    )
