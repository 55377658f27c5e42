"""The IDX format of MNIST and its like: uint8 arrays, gzipped or not, whatever their names say.

0, 0, the type (8: uint8), the number of axes, their lengths as big-endian 32-bit integers, then the
values. `train-images-idx3-ubyte` has its labels beside it in `train-labels-idx1-ubyte`.
"""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from linear_structure.system.errors import UsageError
from linear_structure.system.kinds import kind_of

NAME = re.compile(r"(.*?)([-._]?)images([-.]idx)3(-ubyte)(?:\.gz)?")
ZIPPED = b"\x1f\x8b"
HEAD = 500  # bytes that tell what else a file may be
LIMIT = 1 << 30  # bytes of values; EMNIST, the largest published, has some 550 million


def images_at(path: Path) -> Path | None:
    """The IDX file of images at a path, or in that folder: of a training and a test set, the first.

    None where there is none.
    """
    if not path.is_dir():
        return path if NAME.fullmatch(path.name) else None
    found = sorted(each for each in path.iterdir() if NAME.fullmatch(each.name) and each.is_file())
    return next((each for each in found if "train" in each.name), found[0] if found else None)


def title(images: Path) -> str:
    """The folder of a file of images, and which of the images there they are: "mnist-train"."""
    part = NAME.sub(r"\1", images.name)
    return "-".join(filter(None, (images.resolve().parent.name, part)))


def labels_beside(images: Path) -> Path | None:
    """The file of labels that belongs to one of images; None where there is none."""
    name = NAME.sub(r"\1\2labels\g<3>1\4", images.name)
    places = (images.with_name(name + end) for end in ("", ".gz"))
    return next((place for place in places if place.is_file()), None)


def read_images(path: Path) -> Tensor:
    """Images (n, 1, H, W) uint8.

    Raises:
        UsageError: the file is damaged, something else, or holds none.
    """
    return _read(path, axes=3).unsqueeze(1)


def read_labels(path: Path, images: Path, count: int) -> Tensor:
    """Labels (count,) int64 of so many images.

    Raises:
        UsageError: the file is damaged, something else, or has another count.
    """
    labels = _read(path, axes=1)
    if len(labels) != count:
        raise UsageError(f"{images} has {count} images but {path} {len(labels)} labels")
    return labels.long()


def _read(path: Path, axes: int) -> Tensor:
    with path.open("rb") as file:
        zipped = file.read(len(ZIPPED)) == ZIPPED
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _values(file, path, axes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def _values(file: IO[bytes] | gzip.GzipFile, path: Path, axes: int) -> Tensor:
    """All values; one byte more is asked for, so that gzip comes to its checksum."""
    head, magic = file.read(4 + 4 * axes), bytes((0, 0, 8, axes))
    if not head.startswith(magic):
        known = kind_of(head + file.read(HEAD))
        reason = known or f"it begins with {head[:4].hex(' ')}, not with {magic.hex(' ')}"
        raise UsageError(f"{path} is no IDX file of uint8 with {axes} axes: {reason}")
    if len(head) < 4 + 4 * axes:
        raise UsageError(f"{path} is damaged: its head ends after {len(head)} bytes")
    shape = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
    size = math.prod(shape)
    if size > LIMIT:
        raise UsageError(f"{path} states {size:,} bytes: at most {LIMIT:,} are read")
    content = file.read(size + 1)
    if len(content) != size or not size:
        said = " x ".join(map(str, shape))
        found = "none" if not content else "more" if len(content) > size else f"{len(content):,}"
        raise UsageError(f"{path} is damaged: its head says {said} bytes, and {found} follow")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())
