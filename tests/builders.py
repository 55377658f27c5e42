"""What several tests make: a module of a file, a zip of bytes."""

import io
import zipfile
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
