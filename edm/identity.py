"""What tells one callable from another: its tensors and values, and the files of its source.

A function is its place in the file that it is in, with its defaults, and with what it names:
globals, what it closes over, what it imports, and what is within modules of these. A class is its
file, its bases and its attributes; any other object its class, its attributes, and what pickle
would keep of it. What comes with Python or was installed, wherever, counts by its name and
version. Where something has no such identity (an open file, code that was typed at a prompt), the
whole has none, unless its author states a version. Not seen is what code finds by a name that it
makes up as it runs, and of a module that an object keeps, all but the file.
"""

import copyreg
import dis
import hashlib
import inspect
import pickle
import site
import sys
import sysconfig
import threading
import types
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from linear_structure.system.files import digest_of, digest_of_file, digest_of_tensor

PLAIN = (types.NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device)
CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
SITES = (*site.getsitepackages(), site.getusersitepackages())
PLACES = (sysconfig.get_path("stdlib"), *SITES, str(Path(torch.__file__).parent))
EMPTY = tuple(map(type, (threading.Lock(), threading.RLock(), vars(ABC)["_abc_impl"])))
UNKEPT = (TypeError, AttributeError, ValueError, LookupError, RuntimeError, pickle.PickleError)


class Unidentified(Exception):
    """Something has no identity; the message says what."""


def digest_of_callable(call: Callable[..., Any], version: str | None, said: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a callable, as it is now.

    Args:
        version: of what is not found; with one, what has no identity is left out, and where it
            reaches too deep, all but the version.
        said: JSON values that count too.

    Raises:
        Unidentified: it has no identity, and no version.
    """
    parts = [digest_of(said), f"version {version}"]
    try:
        parts += [*_parts(call, {}, version is not None)]
    except RecursionError as error:
        if version is None:
            name = getattr(call, "__qualname__", type(call).__qualname__)
            raise Unidentified(f"what {name} reaches is too deep, and") from error
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parts(value: Any, seen: dict[int, tuple[int, Any]], lenient: bool) -> Iterator[str]:
    """What identifies a value, depth first: what it is, and how many parts follow that are in it.

    A value that comes again is the number of its first.
    """
    number = value if type(value) is int else id(value)  # what is compiled keeps its own id
    if number in seen:
        yield f"again {seen[number][0]}"
    elif type(value) in PLAIN:
        said = hashlib.sha256(value).hexdigest() if type(value) is bytes else repr(value)
        yield f"{type(value).__name__} {said}"
    else:
        seen[number] = len(seen), value
        inside = _inside(value, lenient)
        yield f"{_name(value, lenient)} {len(inside)}"
        for part in inside:
            yield from _parts(part, seen, lenient)


def _name(value: Any, lenient: bool) -> str:
    """What a value is, without what is inside it; of code, the digest of its file too."""
    if not isinstance(value, CODE):
        return type(value).__name__
    name = getattr(value, "__qualname__", value.__name__)
    name = f"{getattr(value, '__module__', '')}.{name}".lstrip(".")
    if _is_installed(value):
        return f"{name} {getattr(sys.modules.get(name.partition('.')[0]), '__version__', '')}"
    if file := _source(value):
        return f"{name} {digest_of_file(file)}"
    if lenient or isinstance(value, BuiltinFunctionType) or hasattr(value, "__path__"):
        return name
    raise Unidentified(name)


def _source(code: Any) -> Path | None:
    try:
        file = Path(getattr(code, "__file__", None) or inspect.getsourcefile(code) or "")
    except (TypeError, OSError):  # what was typed at a prompt
        return None
    return file if file.is_file() else None


def _is_installed(code: Any) -> bool:
    """Whether a name is enough: what a function made has none, wherever that is from."""
    if "<locals>" in getattr(code, "__qualname__", ""):
        return False
    module = code if isinstance(code, ModuleType) else sys.modules.get(code.__module__ or "")
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if file is None:
        return module is not None and module.__name__ != "__main__"
    return _is_in_place(file)


def _is_in_place(file: str) -> bool:
    path = Path(file)
    return any(path.is_relative_to(place) for place in PLACES) or any(
        path.relative_to(folder).parts[0] in _recorded(folder) for folder in path.parents
    )


@cache
def _recorded(folder: Path) -> frozenset[str]:
    """What was installed into a folder, by the records beside it; of an editable one, nothing."""
    records = [each.read_text().splitlines() for each in folder.glob("*.dist-info/RECORD")]
    return frozenset(line.split(",")[0].split("/")[0] for lines in records for line in lines)


def _inside(value: Any, lenient: bool) -> list[Any]:
    """The values that make up another; none of what is installed."""
    match value:
        case ModuleType():
            return []
        case type() | FunctionType() | BuiltinFunctionType() if _is_installed(value):
            return []
        case BuiltinFunctionType():
            return [value.__self__]
        case FunctionType():
            place, named = str([*value.__code__.co_positions()]), list(_named(*_scope(value), []))
            return [place, value.__defaults__, value.__kwdefaults__, vars(value), named]
        case type():
            file = _source(value)  # and none of what Python or a dataclass adds
            own = {k: v for k, v in vars(value).items() if k[:2] != "__" or _source(v) == file}
            return [value.__bases__, own, vars(value).get("__call__")]
        case MethodType() | property() | staticmethod() | classmethod() | cached_property():
            names = ("__self__", "__func__", "func", "fget", "fset")
            return [getattr(value, name, None) for name in names]
        case Tensor() if value.layout == torch.strided and not value.is_meta:
            return [type(value), value.dtype, tuple(value.shape), digest_of_tensor(value)]
    if type(value) in (dict, types.MappingProxyType):
        return list(value.items())
    if type(value) in (list, tuple):
        return list(value)
    if type(value) in (set, frozenset):
        return sorted(value, key=lambda each: list(_parts(each, {}, lenient)))
    return _kept(value, lenient)


def _kept(value: Any, lenient: bool) -> list[Any]:
    """The class and the attributes of an object, and what pickle would keep of it."""
    known = [type(value), getattr(value, "__dict__", {})]  # first: pickle has None for a lazy one
    if type(value) in EMPTY:
        return known
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        kept = reduce(value) if reduce else value.__reduce_ex__(4)
    except UNKEPT as error:
        if lenient:
            return known
        raise Unidentified(f"an object of {type(value).__qualname__}") from error
    parts = (kept,) if isinstance(kept, str) else kept
    return [*known, *parts[:3], *(list(items) for items in parts[3:5] if items)]


def _scope(function: FunctionType) -> tuple[set[str], dict[str, Any]]:
    """All names in a function's code, and what they may be: globals, imports, what it closes over.

    What it would import as it runs is imported. Of a function made by installed code, the last.
    """
    nonlocals = inspect.getclosurevars(function).nonlocals
    if _is_in_place(function.__code__.co_filename):
        return {*nonlocals}, {**nonlocals}
    codes, scope = [function.__code__], dict(function.__globals__)
    for code in codes:  # and what is within it
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                with suppress(ImportError, OSError):
                    said = (function.__globals__, None, names.argval, level.argval)
                    scope[step.argval] = __import__(step.argval, *said)
    return {*nonlocals, *(name for code in codes for name in code.co_names)}, {**scope, **nonlocals}


def _named(
    names: set[str], scope: Mapping[str, Any], modules: list[ModuleType]
) -> Iterator[tuple[str, Any]]:
    """What has one of the names, also in modules that have, each looked into once."""
    for name in sorted(names & scope.keys()):
        yield name, scope[name]
        if isinstance(module := scope[name], ModuleType) and module not in modules:
            modules.append(module)
            yield from _named(names, {} if _is_installed(module) else vars(module), modules)
