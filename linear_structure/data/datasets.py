"""Datasets of uint8 images: a known name, or a path, gives blocks of images and labels.

Names: `CIFAR10`, `CIFAR100`, `MNIST`, `FashionMNIST`: the published training sets, downloaded when
they are first asked for; `digits`: the 1,797 digits within scikit-learn, 8 x 8, whose values 0..16
become `round(v * 255 / 16)`.

Paths: a folder of images or a zip (see `pictures`), or a `.npy` or `.npz` of uint8. An array of
three axes is (n, H, W); of four, the channels (1 or 3) are the last axis, or else the second. In an
`.npz` the images are `images` or `arr_0`, the labels, if any, `labels` or `arr_1`.

Folders, zips and `.npy` are read as they are asked for; the others are held in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from linear_structure.data.archives import ARCHIVES
from linear_structure.data.pictures import open_folder, open_zip
from linear_structure.system.download import Source, fetch
from linear_structure.system.errors import UsageError
from linear_structure.system.files import UNREADABLE_ARRAYS, digest_of_parts

NAMES = (*ARCHIVES, "digits")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one shape in a fixed order, decoded when they are asked for; read-only."""

    name: str
    count: int
    shape: tuple[int, int, int]  # C, H, W
    read: Callable[[int, int], Tensor] = field(repr=False)  # images [start, stop)
    targets: Tensor | None = field(repr=False)  # int64 (count,)

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor | None = None) -> "Dataset":
        """Images in memory: uint8 (n, C, H, W), int64 labels (n,)."""
        count, channels, height, width = images.shape
        shape = (channels, height, width)
        return cls(name, count, shape, lambda start, stop: images[start:stop], labels)

    @property
    def label_count(self) -> int:
        """Number of classes, one more than the highest label; 0 without labels."""
        return 0 if self.targets is None else int(self.targets.max()) + 1

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield all in order, `size` at a time: uint8 (b, C, H, W), int64 (b,) or None."""
        if size < 1:
            raise ValueError(f"a block of {size} images: at least 1 is needed")
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            labels = None if self.targets is None else self.targets[start:stop]
            yield self.read(start, stop), labels

    def images(self) -> Tensor:
        """All images at once: uint8 (count, C, H, W)."""
        return self.read(0, self.count)

    def digest(self, size: int = 1000) -> str:
        """SHA-256 (64 hexadecimal digits) of the pixels in order, `size` images at a time."""
        return digest_of_parts(images for images, _ in self.blocks(size))

    def labels(self) -> Tensor | None:
        """All labels at once: int64 (count,), or None."""
        return self.targets


def load(
    name_or_path: str | Path,
    data_dir: Path | None = None,
    sources: tuple[Source, ...] | None = None,
) -> Dataset:
    """The dataset of a known name (which wins over a path of that name), or at a path.

    Args:
        name_or_path: one of `NAMES`, or a folder, `.zip`, `.npy` or `.npz`.
        data_dir: where published archives are looked up and stored, instead of the cache.
        sources: other URLs and digests for a published dataset, as many as `sources_of(name)`.

    Raises:
        UsageError: the name is unknown, or what is there cannot be read as a dataset.
        WorkError: the dataset could not be downloaded.
    """
    name = str(name_or_path)
    if name == "digits":
        return _digits()
    if name in ARCHIVES:
        paths = [fetch(source, data_dir) for source in sources or sources_of(name)]
        return Dataset.of(name, *ARCHIVES[name].read(*paths))
    return _at_path(Path(name_or_path))


def sources_of(name: str) -> tuple[Source, ...]:
    """The files that a named dataset is downloaded from; `dataclasses.replace` changes one."""
    return ARCHIVES[name].sources if name in ARCHIVES else ()


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # takes over a second, and only this name needs it

    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Dataset.of("digits", torch.from_numpy(pixels[:, None]), labels)


def _at_path(path: Path) -> Dataset:
    if path.is_dir():
        return Dataset(path.resolve().name, *open_folder(path))
    if not path.exists():
        raise UsageError(
            f"{str(path)!r} is neither a known dataset ({', '.join(NAMES)}) nor an existing path"
        )
    if path.suffix.lower() == ".zip":
        return Dataset(path.stem, *open_zip(path))
    if path.suffix.lower() in (".npy", ".npz"):
        return _of_arrays(path)
    raise UsageError(f"{path} is neither a folder nor a .zip, .npy or .npz file")


def _of_arrays(path: Path) -> Dataset:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        stored, labels = loaded, None
        if isinstance(loaded, NpzFile):
            with loaded:
                stored = _first(loaded, "images", "arr_0")
                labels = _first(loaded, "labels", "arr_1")
    except UNREADABLE_ARRAYS as error:
        raise UsageError(f"{path} cannot be read as numpy arrays: {error}") from error
    if stored is None:
        raise UsageError(f"{path} has no array named images or arr_0")
    images = _channels_second(stored, path)
    targets = None if labels is None else _targets(labels, len(images), path)

    def read(start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.array(images[start:stop], order="C"))

    return Dataset(path.stem, len(images), images.shape[1:], read, targets)


def _first(arrays: NpzFile, *keys: str) -> np.ndarray | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _channels_second(array: np.ndarray, path: Path) -> np.ndarray:
    """A view (n, C, H, W) of an array in one of the three accepted layouts."""
    if array.dtype != np.uint8:
        raise UsageError(f"{path} holds {array.dtype}: uint8 pixels, 0 to 255, are needed")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise UsageError(
            f"{path} has shape {array.shape}: (n, H, W), (n, H, W, C) or (n, C, H, W) "
            "with 1 or 3 channels and at least one image is needed"
        )
    return array


def _targets(array: np.ndarray, count: int, path: Path) -> Tensor:
    whole = np.issubdtype(array.dtype, np.integer) and array.shape == (count,)
    if not whole or array.min() < 0:
        raise UsageError(
            f"{path} has labels of shape {array.shape} and type {array.dtype}: "
            f"{count} class numbers, one for each image, are needed"
        )
    return torch.from_numpy(array.astype(np.int64))
