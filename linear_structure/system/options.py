"""Options of the published networks: frozen, checked against type and range, plain JSON outside.

A group of options is a frozen dataclass whose fields are `bool`, `int`, `float`, `str` or
`tuple[int, ...]`, made by `option`, `count` and `choice`. `parse` reads one from JSON values,
which may come from a file that nobody vouches for; `plain` writes it back.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, field, fields
from typing import Any, TypeVar

from linear_structure.system.errors import UsageError

Options = TypeVar("Options")


def option(default: Any = MISSING, low: float = 0, high: float = math.inf) -> Any:
    """A dataclass field whose number, or each of whose numbers, lies in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


def count(default: Any = MISSING, low: int = 1, high: int = 65536) -> Any:
    """A dataclass field that is a size, or sizes; what no network has is refused, not tried."""
    return option(default, low, high)


def choice(default: str, *others: str) -> Any:
    """A dataclass field that is one of a few words."""
    return field(default=default, metadata={"words": (default, *others)})


def parse(kind: type[Options], values: Mapping[str, Any], owner: str) -> Options:
    """Make options of a kind from JSON values: lists become tuples, whole numbers floats if needed.

    Args:
        owner: whose options they are, for messages.

    Raises:
        UsageError: a name is missing or unknown, or a value has the wrong type or range.
    """
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UsageError(f"unknown option {name!r} of {owner}; known are {', '.join(known)}")
    for name, each in known.items():
        if name not in values and each.default is MISSING:
            raise UsageError(f"option {name!r} of {owner} is missing")
    return kind(**{name: _checked(known[name], value) for name, value in values.items()})


def plain(options: Any) -> dict[str, Any]:
    """All options, defaults included, as JSON values; `parse` accepts them."""
    values = asdict(options)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _checked(each: Field[Any], value: Any) -> Any:
    if each.type == tuple[int, ...] and isinstance(value, list | tuple):
        return tuple(_checked_scalar(each, int, item) for item in value)
    return _checked_scalar(each, each.type, value)


def _checked_scalar(each: Field[Any], kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        name = getattr(each.type, "__name__", each.type)
        raise UsageError(f"option {each.name!r} is {value!r}: expected {name}")
    if "words" in each.metadata and value not in each.metadata["words"]:
        words = ", ".join(each.metadata["words"])
        raise UsageError(f"option {each.name!r} is {value!r}: expected one of {words}")
    if "low" in each.metadata and not each.metadata["low"] <= value <= each.metadata["high"]:
        low, high = each.metadata["low"], each.metadata["high"]
        raise UsageError(f"option {each.name!r} is {value!r}: expected {low:g} to {high:g}")
    return value
