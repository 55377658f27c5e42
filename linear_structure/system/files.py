"""Files that appear whole or not at all, locks between processes, and fingerprints."""

import errno
import hashlib
import io
import json
import lzma
import os
import pickle
import secrets
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from linear_structure.system.errors import UsageError

WRITTEN = (".json", ".npz", ".safetensors")  # endings of what commands write, and of no picture
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
SEAL = "checksum"  # of the other values of a JSON object, or the metadata of a file
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_ODD = (*_DAMAGED_ZIP, EOFError, MemoryError, RuntimeError, TypeError, ValueError)
UNREADABLE_ARRAYS = (*_ODD, SyntaxError, TokenError, OverflowError, OSError)
"""What numpy, which reads headers as Python, and zipfile raise on odd .npy and .npz files."""
UNREADABLE_TENSORS = (
    *_ODD,
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
)
"""What zipfile, torch and pickle raise on damaged or foreign files."""


@contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there if the block ends well, else remove it.

    The parent folder is made, and links are followed; what is written to a device, a pipe or this
    process's own output goes through it. The temporary name keeps the suffix, which some writers
    look at. An OSError that names no file, as that of a full disk, is given the name of `path`.

    Args:
        path: what is written.
        lasting: whole after a power cut, too, which takes some milliseconds.

    Raises:
        UsageError: at `path` is a folder, a disk or a socket.
    """
    place, stream = path.resolve(), _is_stream(path)
    folder = Path(tempfile.gettempdir()) if stream else place.parent
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{place.stem}.{secrets.token_hex(4)}.part{path.suffix}"
    try:
        with _blaming(path):
            yield beside
            if stream:
                _pour(beside, path)
            elif lasting:
                keep(beside, place)
            else:
                beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def keep(beside: Path, place: Path) -> None:
    """Move a file into its place once the disk has it: a power cut leaves it whole or not there."""
    _sync(beside)
    beside.replace(place)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _is_stream(path: Path) -> bool:
    """Whether a file to be written cannot be replaced: what is written goes through it.

    Raises:
        UsageError: it is a folder, or something that takes no text.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is a folder: expected the name of a file to write")
    if not (stat.S_ISREG(found.st_mode) or _passes(found.st_mode)):
        raise UsageError(f"{path} is a disk or a socket: expected the name of a file to write")
    return _passes(found.st_mode) or _own_output(found) is not None


def _passes(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _own_output(found: os.stat_result) -> int | None:
    """The descriptor of standard output or standard error, where a file is one of these."""
    for descriptor in (1, 2):
        with suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None


def _pour(source: Path, path: Path) -> None:
    """Write the bytes of a file through a device or a pipe."""
    own = _own_output(path.stat())
    sys.stdout.flush()  # what was printed before comes before
    if own is None:
        path.write_bytes(source.read_bytes())
    else:
        with os.fdopen(own, "wb", closefd=False) as file:
            file.write(source.read_bytes())


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; put it there if the block ends well, else remove it.

    What was at `path` is moved aside first and then removed: at any moment `path` holds all of the
    old, all of the new, or is not there; then a process was killed between the two, and the next
    call puts the old back.
    """
    path = path.resolve()
    beside, old = (path.with_name(f".{path.name}.{end}") for end in ("part", "old"))
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        with _blaming(path):
            yield beside
            for file in filter(Path.is_file, beside.rglob("*")):
                _sync(file)
            if path.exists():
                path.rename(old)
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_folder(folder: Path) -> Path:
    """The folder, or the nearest above it that exists; UsageError where that is a file."""
    nearest = next(place for place in (folder, *folder.parents, Path()) if place.exists())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is a file: expected a folder, or the name of a new one")
    return nearest


def check_writable(folder: Path) -> None:
    """Make and remove a file in a folder, or in the nearest above it: better before long work.

    Raises:
        UsageError: as `check_folder`.
        OSError: none can be made.
    """
    nearest = check_folder(folder)
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        error.filename = str(nearest)  # not that of what was tried
        raise


def check_regular(path: Path) -> None:
    """Refuse (UsageError) what is neither a file nor a folder: reading it may never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is a pipe, a socket or a device: expected a file")


def check_output(path: Path, *sources: str | Path | None) -> None:
    """Refuse, before any work, to write a file where it cannot or should not be.

    Args:
        sources: what is read; what is no file or folder here, such as a URL, is passed over.

    Raises:
        UsageError: it is one of the sources, by whatever spelling or link, or replaces what a
            folder among them may hold images in; or a folder, a disk or a socket is there.
        OSError: no file can be made there.
    """
    stream = _is_stream(path)
    for source in _those_there(sources):
        own = path.suffix.lower() in WRITTEN or source not in path.resolve().parents
        if path.exists() and (path.samefile(source) or not own):
            raise UsageError(f"{path} is what is read, or a part of it: name another file to write")
    if not stream:
        check_writable(path.resolve().parent)


def check_apart(folder: Path, *sources: str | Path | None) -> None:
    """Refuse a folder to write in, whose pictures would join others.

    Raises:
        UsageError: it is one of the sources, which are as of `check_output`, or lies within one.
    """
    for source in _those_there(sources):
        if source.is_dir() and source in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"{folder} is what is read, or lies within it: name another folder")


def _those_there(sources: Iterable[str | Path | None]) -> list[Path]:
    there = os.path.exists  # unlike that of pathlib, also of a URL that is longer than any name
    return [Path(each).resolve() for each in sources if each and there(each)]


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file the name of `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Keep other processes out of the block while this one is in it, where files can be locked.

    Args:
        path: where the lock is; its folder exists.
        doing: what another process does meanwhile, for the message of one that waits.
    """
    lock = FileLock(path)
    held: AbstractContextManager[object]
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that {doing}", file=sys.stderr)
        held = lock.acquire()
    except (OSError, NotImplementedError) as error:
        # The second is ENOSYS in early versions of filelock; later ones warn, and lock by a file.
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        print(
            f"files in {path.parent} cannot be locked: work goes on, and the same command should "
            "not run there twice at once",
            file=sys.stderr,
        )
        held = nullcontext()
    with held:
        yield


def alone_beside(path: Path, doing: str) -> AbstractContextManager[None]:
    """As `alone`, by a hidden lock beside what is written, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return alone(path.with_name(f".{path.name}.lock"), doing)


def alone_in(folder: Path, doing: str) -> AbstractContextManager[None]:
    """As `alone`, by a hidden lock in a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return alone(folder / ".lock", doing)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def copy(path: Path, folder: Path) -> Path:
    """A copy of a file in a folder, under its own name, whole or not at all; where that is."""
    place = folder / path.name
    with replacing(place) as beside:
        shutil.copyfile(path, beside)
    return place


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy whole or not at all (`np.save` ignores that a disk is full)."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    with replacing(path) as beside:
        beside.write_bytes(content.getbuffer())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by their names as .npz, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with replacing(path) as beside:
        beside.write_bytes(content.getbuffer())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The value in a file of JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or nested too deeply to be read.
        UsageError: as `check_regular`.
    """
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply ({error})") from error


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON as `write_json`, with the SHA-256 of its values among them."""
    plain = json.loads(json.dumps(value))  # as they are read: keys are strings
    write_json(path, {**plain, SEAL: digest_of(plain)})


def read_sealed(path: Path) -> Any:
    """What `write_sealed` wrote, without the checksum, which earlier versions did not write.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or its values are not those that were written.
    """
    value = read_json(path)
    seal = value.pop(SEAL, None) if isinstance(value, dict) else None
    if seal is not None and seal != digest_of(value):
        raise ValueError(f"its values are not those of its {SEAL}: it is damaged, or was changed")
    return value


def digest_of(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_tensor(values: Tensor) -> str:
    """SHA-256 (64 hexadecimal digits) of a tensor's values in order."""
    return digest_of_parts([values])


def digest_of_parts(parts: Iterable[str | Tensor]) -> str:
    """SHA-256 (64 hexadecimal digits) of texts, and of tensors' values, one after the other."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else octets(part))
    return sha.hexdigest()


def digest_of_state(options: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hexadecimal digits) of a network, whatever file held it: options and weights.

    Args:
        options: JSON values.
        tensors: a state dict; names, types, shapes and values count, their order does not.
    """
    parts: list[str | Tensor] = [digest_of(options)]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}\n", tensor]
    return digest_of_parts(parts)


def octets(values: Tensor) -> memoryview:
    """The bytes of a tensor in order, of any type of number: numpy lacks some."""
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
