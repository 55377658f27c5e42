"""Arrays and tensors in files that anybody may have made: checksums are tested, objects refused."""

import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from linear_structure.system.errors import UsageError
from linear_structure.system.files import UNREADABLE_ARRAYS, UNREADABLE_TENSORS, check_regular
from linear_structure.system.kinds import kind_of

END = 22  # bytes of the record that ends a zip, before its comment
MOST_COUNTED = 0xFFFF  # members; so it says of more, too
UNPACKED = 1 << 30  # bytes that the members of any zip may have,
TIMES = 100  # or so many times its own


def whole_zip(file: Path | IO[bytes]) -> zipfile.ZipFile:
    """A zip none of whose members is missing from its list; raises as `zipfile.ZipFile`."""
    archive = zipfile.ZipFile(file)
    assert archive.fp is not None
    archive.fp.seek(-len(archive.comment) - END, io.SEEK_END)
    count = int.from_bytes(archive.fp.read(END)[10:12], "little")
    if count not in (len(archive.infolist()), MOST_COUNTED):
        raise zipfile.BadZipFile(f"{len(archive.infolist())} of its {count} members are listed")
    return archive


def names_in(path: Path) -> set[str]:
    """The names of the arrays in an `.npz`; UsageError where it is none."""
    check_regular(path)
    try:
        with whole_zip(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except UNREADABLE_ARRAYS as error:
        raise _unreadable(path, error) from error


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Those of the named arrays that an `.npz` holds, or all of them.

    All checksums are tested first: numpy would stop before one where a header asks for less.

    Raises:
        UsageError: the file is damaged, something else, or holds Python objects.
    """
    check_regular(path)
    try:
        with whole_zip(path) as archive:
            _test(archive, path)
            stored = {name.removesuffix(".npy"): name for name in archive.namelist()}
            chosen = {name: stored[name] for name in names or stored if name in stored}
            return {name: _member(archive, member) for name, member in chosen.items()}
    except UNREADABLE_ARRAYS as error:
        raise _unreadable(path, error) from error


def map_npy(path: Path) -> np.ndarray:
    """The array of an `.npy`, which stays on disk.

    Raises:
        UsageError: as `read_npz`.
    """
    check_regular(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != path.stat().st_size:
            raise ValueError("it is longer than its header says")
    except UNREADABLE_ARRAYS as error:
        raise _unreadable(path, error) from error
    return array


def read_torch(path: Path, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote, read with `weights_only`.

    Raises:
        UsageError: the file is damaged, something else, or holds more than tensors and plain data.
    """
    check_regular(path)
    content = io.BytesIO(path.read_bytes())
    try:
        if zipfile.is_zipfile(content):  # whose checksums torch ignores
            _test(whole_zip(content), path)
        content.seek(0)
        return torch.load(content, map_location=device, weights_only=True)
    except UNREADABLE_TENSORS as error:
        reason = kind_of(path) or "it is damaged, something else, or more than tensors"
        raise UsageError(f"{path} is no readable tensor file: {reason}") from error


def _test(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise what damage does, and a UsageError for what would fill the memory."""
    size, own = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if size > max(UNPACKED, TIMES * own):
        raise UsageError(
            f"{path}, of {own:,} bytes, says that unpacked it has {size:,}: expected at most "
            f"{TIMES} times its own; what holds so much of so little goes into a file without "
            "compression"
        )
    if (damaged := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"{damaged} in it has another checksum")


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _unreadable(path: Path, error: BaseException) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(f"{path} cannot be read as numpy arrays: {kind_of(path) or reason}")
