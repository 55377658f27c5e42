"""What several tests make: a module, a zip of bytes, a PNG of any bits, calls that meet."""

import io
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np


def module(path: Path) -> ModuleType:
    """A file as a module of its own, run anew, which later imports do not find."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def meeting(seconds: float) -> Callable[[], None]:
    """A call in which two threads wait for each other, but each no longer than so many seconds."""
    both = threading.Barrier(2)

    def meet() -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=seconds)

    return meet


def zip_of(**members: bytes) -> bytes:
    """A zip of these members, stored as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a value, all below 256: grey 0, RGB 2, grey and alpha 4, RGBA 6."""
    return png_of(kind, np.full((2, 3, channels), 0x7F))


def png_of(kind: int, values: np.ndarray, clear: Sequence[int] = (), bits: int = 16) -> bytes:
    """A PNG of values (H, W, C) of so many bits, of a kind as above.

    Args:
        clear: without alpha, what stands for transparent.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + end

    height, width, _ = values.shape
    deep = np.unpackbits(values.reshape(height, -1, 1).astype(">u2").view(np.uint8), axis=2)
    packed = np.packbits(deep[..., -bits:].reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    head += chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
