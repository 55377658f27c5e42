"""Arrays and tensors in files that anybody may have made: checksums are tested, objects refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linear_structure.system.errors import UsageError
from linear_structure.system.files import UNREADABLE_ARRAYS, UNREADABLE_TENSORS
from linear_structure.system.kinds import kind_of

LONGER = "it is longer than its header says"


def names_in(path: Path) -> set[str]:
    """The names of the arrays in an `.npz`; UsageError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except UNREADABLE_ARRAYS as error:
        raise _unreadable(path, error) from error


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Those of the named arrays that an `.npz` holds, or all of them.

    Each is read to its end, where its checksum is: numpy stops where the header says.

    Raises:
        UsageError: the file is damaged, something else, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = {name.removesuffix(".npy"): name for name in archive.namelist()}
            return {
                name: _member(archive, stored[name]) for name in names or stored if name in stored
            }
    except UNREADABLE_ARRAYS as error:
        raise _unreadable(path, error) from error


def map_npy(path: Path) -> np.ndarray:
    """The array of an `.npy`, which stays on disk.

    Raises:
        UsageError: as `read_npz`.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != path.stat().st_size:
            raise ValueError(LONGER)
    except UNREADABLE_ARRAYS as error:
        raise _unreadable(path, error) from error
    return array


def read_torch(path: Path) -> Any:
    """What torch.save wrote, on the CPU, read with `weights_only`.

    Raises:
        UsageError: the file is damaged, something else, or holds more than tensors and plain data.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        if zipfile.is_zipfile(content) and (damaged := zipfile.ZipFile(content).testzip()):
            raise zipfile.BadZipFile(f"{damaged} has another checksum")  # which torch ignores
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except UNREADABLE_TENSORS as error:
        reason = kind_of(path) or "it is damaged, something else, or more than tensors"
        raise UsageError(f"{path} is no readable tensor file: {reason}") from error


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name}: {LONGER}")
    return array


def _unreadable(path: Path, error: BaseException) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(f"{path} cannot be read as numpy arrays: {kind_of(path) or reason}")
