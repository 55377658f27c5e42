"""What several tests make: a module of a file, a zip of bytes, a PNG of 16 bits."""

import io
import struct
import zipfile
import zlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def module(path: Path) -> ModuleType:
    """A file as a module of its own, run anew, which later imports do not find."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def zip_of(**members: bytes) -> bytes:
    """A zip of these members, stored as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a value, all below 256: grey 0, RGB 2, grey and alpha 4, RGBA 6."""

    def chunk(name: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + end

    rows = (b"\0" + b"\0\x7f" * 3 * channels) * 2
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
