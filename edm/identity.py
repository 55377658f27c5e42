"""What tells one callable from another: its tensors and values, and the files of its source.

A function is the file that it is written in, with what it closes over, its defaults, and the
globals that it names; a class its file, its bases and its methods; an object its class and its
attributes. What comes with Python or was installed counts by its name. Where something has no such
identity (an open file, code that was typed at a prompt), the whole has none, unless its author
states a version.
"""

import hashlib
import inspect
import sys
import sysconfig
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linear_structure.system.files import digest_of, digest_of_file, digest_of_tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath, torch.dtype, torch.device)
CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


class _Unknown(Exception):
    """Something has no identity; the message says what."""


def digest_of_callable(call: Callable[..., Any], version: str | None, said: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a callable; a new one each time where it has no identity.

    Args:
        version: of what is not found; with one, what has no identity is left out.
        said: JSON values that count too.
    """
    parts = [digest_of(said), f"version {version}"]
    try:
        parts += _parts(call, {}, version is not None)
    except _Unknown as unknown:
        print(
            f"{unknown} cannot be told from another: results serve this process alone; "
            "state a version of the network to keep them",
            file=sys.stderr,
        )
        parts.append(uuid.uuid4().hex)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parts(value: Any, seen: dict[int, Any], lenient: bool) -> Iterator[str]:
    """What identifies a value, depth first; a value that comes again is the number of its first."""
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in seen:
        yield f"again {list(seen).index(id(value))}"
        return
    seen[id(value)] = value
    if isinstance(value, Tensor | np.ndarray):
        values = torch.as_tensor(value)
        yield f"tensor {values.dtype} {tuple(values.shape)} {digest_of_tensor(values)}"
        return
    yield _name(value, lenient)
    for label, part in _inside(value, lenient).items():
        yield str(label)
        yield from _parts(part, seen, lenient)


def _name(value: Any, lenient: bool) -> str:
    """What a value is, without what is inside it; of code, the digest of its file too."""
    if not isinstance(value, CODE):
        return "object" if hasattr(value, "__dict__") else type(value).__name__
    name = getattr(value, "__qualname__", value.__name__)
    name = f"{getattr(value, '__module__', '')}.{name}"
    if _is_installed(value):
        return name
    if (file := _source(value)) is None and not lenient:
        raise _Unknown(name)
    return f"{name} {digest_of_file(file)}" if file else name


def _source(code: Any) -> Path | None:
    try:
        file = Path(inspect.getsourcefile(code) or "")
    except TypeError:  # what was typed at a prompt
        return None
    return file if file.is_file() else None


def _is_installed(code: Any) -> bool:
    if isinstance(code, BuiltinFunctionType):
        return True
    module = code if isinstance(code, ModuleType) else sys.modules.get(code.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return module is not None and module.__name__ != "__main__"
    return any(Path(file).is_relative_to(place) for place in INSTALLED)


def _inside(value: Any, lenient: bool) -> dict[Any, Any]:
    """The values that make up another, by name; none of what is installed, or holds others.

    Those of a function are what it closes over; those of a class, its bases and methods.
    """
    match value:
        case Mapping():
            return dict(value)
        case list() | tuple():
            return dict(enumerate(value))
        case set() | frozenset():
            return dict(enumerate(sorted(value, key=repr)))
        case partial():
            return {"call": value.func, "args": value.args, "keywords": value.keywords}
        case MethodType():
            return {"of": value.__self__, "call": value.__func__}
        case ModuleType() | BuiltinFunctionType():
            return {}
        case FunctionType() | type() if _is_installed(value):
            return {}
        case FunctionType():
            found = inspect.getclosurevars(value)
            defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
            return {**defaults, **found.nonlocals, **found.globals}
        case type():
            methods = {k: v for k, v in vars(value).items() if isinstance(v, FunctionType)}
            file = _source(value)  # and none of what a dataclass adds
            written = {k: v for k, v in methods.items() if _source(v) == file}
            return {"bases": value.__bases__, **written}
    if not hasattr(value, "__dict__") and not lenient:
        raise _Unknown(f"an object of {type(value).__qualname__}")
    return {"class": type(value), **getattr(value, "__dict__", {})}
