"""Datasets of uint8 images: a known name, or a path, gives blocks of images and labels.

Names: `CIFAR10`, `CIFAR100`, `MNIST`, `FashionMNIST`: the published training sets, downloaded when
they are first asked for; `digits`: the 1,797 digits within scikit-learn, 8 x 8, whose values 0..16
become `round(v * 255 / 16)`.

Paths: a folder of images or a zip (see `pictures`), IDX files or their folder (see `idx`; of a
training and a test set, the first), or a `.npy` or `.npz` of uint8. An array of
three axes is (n, H, W); of four, the channels (1 or 3) are the last axis, or else the second. In an
`.npz` the images are `images` or `arr_0`, the labels, if any, `labels` or `arr_1`.

Where real numbers are asked for, an array may hold floats as well: latents (n, C, H, W), of any
number of channels and in any units, which are taken as they are, up to 1e15.

Folders, zips and `.npy` are read as they are asked for; the others are held in memory. Labels are
read when they are asked for: who needs none is not stopped by odd ones.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linear_structure.data import idx
from linear_structure.data.archives import ARCHIVES
from linear_structure.data.pictures import CLASS_LIMIT, Labels, open_folder, open_zip
from linear_structure.system.arrays import map_npy, names_in, read_npz
from linear_structure.system.download import Source, fetch
from linear_structure.system.errors import UsageError
from linear_structure.system.files import check_regular, digest_of_parts

NAMES = (*ARCHIVES, "digits")
LARGEST = 1e15  # of real numbers, whose squares float32 holds many of
IMAGES, LABELS = ("images", "arr_0"), ("labels", "arr_1")  # names of arrays in an `.npz`


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one shape in a fixed order, decoded when they are asked for; read-only."""

    name: str
    count: int
    shape: tuple[int, int, int]  # C, H, W
    read: Callable[[int, int], Tensor] = field(repr=False)  # images [start, stop)
    read_labels: Callable[[], Labels | Tensor | None] = field(repr=False)  # as `labels`
    pixels: bool = True  # uint8; else floats, real numbers of any size

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor | None = None) -> "Dataset":
        """Images in memory: uint8 (n, C, H, W), labels (n,) or (n, L) as of `labels`.

        Raises:
            UsageError: images of another type or order of axes.
        """
        last = images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3)
        if images.ndim != 4 or images.dtype != torch.uint8 or last:
            found = f"{str(images.dtype)[6:]} {tuple(images.shape)}"
            raise UsageError(f"images of {name} are {found}: expected uint8 (n, C, H, W)")
        count, channels, height, width = images.shape
        shape = (channels, height, width)
        told = Labels(labels)
        return cls(name, count, shape, lambda start, stop: images[start:stop], lambda: told)

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time: uint8 (b, C, H, W)."""
        if size < 1:
            raise ValueError(f"a block of {size} images: at least 1 is needed")
        for start in range(0, self.count, size):
            yield self.read(start, min(start + size, self.count))

    def images(self) -> Tensor:
        """All images at once: uint8 (count, C, H, W)."""
        return self.read(0, self.count)

    def only(self, chosen: Tensor) -> "Dataset":
        """The images of some numbers (m,), int64, in that order, with their labels."""

        def read(start: int, stop: int) -> Tensor:
            return torch.cat([self.read(i, i + 1) for i in chosen[start:stop].tolist()])

        def read_labels() -> Labels:
            values, names = self._labels
            return Labels(None if values is None else values[chosen], names)

        return replace(self, count=len(chosen), read=read, read_labels=read_labels)

    def digest(self, size: int = 1000) -> str:
        """SHA-256 (64 hexadecimal digits) of the pixels in order, `size` images at a time."""
        return digest_of_parts(self.blocks(size))

    def labels(self) -> Tensor | None:
        """All labels: class numbers, int64 (count,), or vectors, float32 (count, L), or None.

        Raises:
            UsageError: what is stored is neither, or does not suit the images.
        """
        return self._labels.values

    def classes(self) -> Tensor | None:
        """The class of each image, int64 (count,), or None without labels.

        Raises:
            UsageError: as `labels`, or they are vectors.
        """
        labels = self._labels.values
        if labels is not None and labels.ndim != 1:
            raise UsageError(
                f"the labels of {self.name} are vectors of {labels.shape[1]} numbers: "
                "class numbers are needed"
            )
        return labels

    @property
    def label_dim(self) -> int:
        """What a network is told in so many numbers: classes, or a vector; 0 without labels."""
        labels = self._labels.values
        if labels is None:
            return 0
        return int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, from 0 on, where that is known; raises as `labels`."""
        return self._labels.names

    def class_name(self, label: int) -> str:
        """The number of a class, and what it is called where that is known: "3 (cat)"."""
        names = self.class_names
        return f"{label} ({names[label]})" if label < len(names) else str(label)

    @cached_property
    def _labels(self) -> Labels:
        found = self.read_labels()
        return found if isinstance(found, Labels) else Labels(found)


def load(
    name_or_path: str | Path,
    data_dir: Path | None = None,
    sources: tuple[Source, ...] | None = None,
    floats: bool = False,
) -> Dataset:
    """The dataset of a known name (which wins over a path of that name), or at a path.

    Args:
        name_or_path: one of `NAMES`, or a folder, `.zip`, `.npy`, `.npz` or IDX file of images.
        data_dir: where published archives are looked up and stored, instead of the cache.
        sources: other URLs and digests for a published dataset, as many as `sources_of(name)`.
        floats: whether an array of them is a dataset, too.

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
    return _at_path(Path(name_or_path), floats)


def sources_of(name: str) -> tuple[Source, ...]:
    """The files that a named dataset is downloaded from; `dataclasses.replace` changes one."""
    return ARCHIVES[name].sources if name in ARCHIVES else ()


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # takes over a second, and only this name needs it

    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Dataset.of("digits", torch.from_numpy(pixels[:, None]), labels)


def path_of(name_or_path: str | Path | None) -> Path | None:
    """Where a dataset is read from; None of none, or of a known name, which wins over a path."""
    if name_or_path is None or str(name_or_path) in NAMES:
        return None
    return Path(name_or_path)


def file_of(path: Path) -> Path | None:
    """The one file that all images at a path are in; None where each has its own."""
    return path if path.is_file() else idx.images_at(path)


def _at_path(path: Path, floats: bool) -> Dataset:
    check_regular(path)
    if path.exists() and (images := idx.images_at(path)):
        return _of_idx(images)
    if path.is_dir():
        return Dataset(path.resolve().name, *open_folder(path))
    if not path.exists():
        raise UsageError(
            f"{str(path)!r} is neither a known dataset ({', '.join(NAMES)}) nor an existing path"
        )
    if path.suffix.lower() == ".zip":
        return Dataset(path.stem, *open_zip(path))
    if path.suffix.lower() in (".npy", ".npz"):
        return _of_arrays(path, floats)
    raise UsageError(f"{path} is neither a folder nor a .zip, .npy, .npz or IDX file of images")


def _of_idx(path: Path) -> Dataset:
    """Those of an IDX file, with the labels beside it, if there are any."""
    images = idx.read_images(path)

    def read_labels() -> Labels:
        beside = idx.labels_beside(path)
        return Labels(idx.read_labels(beside, path, len(images)) if beside else None)

    dataset = Dataset.of(idx.title(path), images)
    return replace(dataset, read_labels=read_labels)


def _of_arrays(path: Path, floats: bool) -> Dataset:
    labelled: tuple[str, ...] = ()
    if zipfile.is_zipfile(path):
        names = names_in(path)
        if (key := next((key for key in IMAGES if key in names), None)) is None:
            raise UsageError(f"{path} has no array named {' or '.join(IMAGES)}")
        stored = read_npz(path, key)[key]
        labelled = tuple(key for key in LABELS if key in names)[:1]
    else:
        stored = map_npy(path)
    pixels = not (floats and stored.dtype.kind == "f")
    images = _channels_second(stored, path) if pixels else _latents(stored, path)

    def read(start: int, stop: int) -> Tensor:
        values = np.array(images[start:stop], images.dtype.newbyteorder("="), order="C")
        if not pixels and not float(np.abs(values).max(initial=0)) <= LARGEST:
            odd = f"numbers beyond {LARGEST:g}, NaN or infinity"
            raise UsageError(f"{path} holds {odd}, in images {start} to {stop - 1}")
        return torch.from_numpy(values)

    def read_labels() -> Labels:
        arrays = (read_npz(path, name)[name] for name in labelled)
        return Labels(next((_targets(array, len(images), path) for array in arrays), None))

    return Dataset(path.stem, len(images), images.shape[1:], read, read_labels, pixels)


def _latents(array: np.ndarray, path: Path) -> np.ndarray:
    """Floats that torch knows, (n, C, H, W)."""
    if array.ndim != 4 or array.size == 0 or array.dtype.itemsize > 8:
        raise UsageError(
            f"{path} holds {array.dtype} of shape {array.shape}: floats of 16, 32 or 64 bits "
            "are needed, (n, C, H, W) with at least one image"
        )
    return array


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
    """Class numbers (count,) or finite vectors (count, L)."""
    kind, shape = array.dtype.kind, array.shape
    if kind in "iu" and shape == (count,) and 0 <= array.min() <= array.max() < CLASS_LIMIT:
        return torch.from_numpy(array.astype(np.int64))
    if kind in "iuf" and len(shape) == 2 and shape[0] == count and array.size:
        vectors = torch.from_numpy(array.astype(np.float64)).float()
        if bool(vectors.isfinite().all()):
            return vectors
    raise UsageError(
        f"{path} has labels of shape {array.shape} and type {array.dtype}: {count} class numbers, "
        f"one for each image, each below {CLASS_LIMIT}, or as many vectors are needed"
    )
