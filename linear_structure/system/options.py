"""Options as frozen dataclasses: checked against type and range, plain JSON outside, and typed.

The fields of a group of options are `bool`, `int`, `float`, `str` or `tuple[int, ...]`, made by
`option`, `count` and `choice`. `parse` reads one from JSON values, which may come from a file that
nobody vouches for; `plain` writes it back. A field that states its meaning is an option of a
command line, too: `add_arguments` makes it, `given` says which were typed, `table` compares values.
"""

import math
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar

from linear_structure.system.errors import UsageError

Options = TypeVar("Options")


def option(
    default: Any = MISSING, low: float = 0, high: float = math.inf, meaning: str = ""
) -> Any:
    """A dataclass field whose number, or each of whose numbers, lies in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


def count(default: Any = MISSING, low: int = 1, high: int = 65536) -> Any:
    """A dataclass field that is a size, or sizes; what no network has is refused, not tried."""
    return option(default, low, high)


def choice(default: str, *others: str, meaning: str = "") -> Any:
    """A dataclass field that is one of a few words."""
    return field(default=default, metadata={"words": (default, *others), "meaning": meaning})


def parse(kind: type[Options], values: Mapping[str, Any], owner: str) -> Options:
    """Make options of a kind from JSON values: lists become tuples, whole numbers floats if needed.

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


def _checked(each: Field[Any], value: Any, kind: Any = None) -> Any:
    kind = kind or each.type
    if kind == tuple[int, ...] and isinstance(value, list | tuple):
        return tuple(_checked(each, item, int) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        name = getattr(each.type, "__name__", each.type)
        raise UsageError(f"option {each.name!r} is {value!r}: expected {name}")
    words, low, high = map(each.metadata.get, ("words", "low", "high"))
    if words and value not in words:
        raise UsageError(f"option {each.name!r} is {value!r}: expected one of {', '.join(words)}")
    if low is not None and not low <= value <= high:
        raise UsageError(f"option {each.name!r} is {value!r}: expected {low:g} to {high:g}")
    return value


def add_arguments(group: Any, kind: type, names: Iterable[str] | None = None) -> None:
    """An option of a command line for each field that states its meaning.

    Args:
        group: an `argparse` parser or group; what is not typed is None.
        names: only these fields.
    """
    for each in _meant(kind):
        if names is None or each.name in names:
            flag = f"--{each.name.replace('_', '-')}"
            group.add_argument(flag, default=None, help=each.metadata["meaning"], **_form(each))


def _meant(kind: type) -> list[Field[Any]]:
    return [each for each in fields(kind) if each.metadata.get("meaning")]


def _form(each: Field[Any]) -> dict[str, Any]:
    """How argparse reads a field: as its metadata say, else by its type."""
    if "parse" in each.metadata:
        return {"type": each.metadata["parse"], "metavar": each.metadata.get("metavar")}
    if each.type is bool:
        return {"action": BooleanOptionalAction}
    if words := each.metadata.get("words"):
        return {"choices": words}
    if each.type in (int, float, float | None):
        return {"type": int if each.type is int else float, "metavar": "N"}
    return {"type": int, "nargs": "*", "metavar": "N"}


def given(typed: Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The values of these names that were typed."""
    values = {name: getattr(typed, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def table(kind: type, examples: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """Values of a kind side by side, as Markdown: a row for each field that states its meaning."""
    rows = [["value", *examples, "meaning"], ["---"] * (len(examples) + 2)]
    for each in _meant(kind):
        if names is None or each.name in names:
            cells = []
            for value in (getattr(example, each.name) for example in examples.values()):
                listed = " ".join(map(str, value)) or "none" if isinstance(value, tuple) else value
                cells.append(f"{value:,}" if type(value) is int else str(listed))
            rows.append([each.name, *cells, each.metadata["meaning"]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def word(text: str) -> str:
    """A typed name, path or URL, for argparse.

    Raises:
        ArgumentTypeError: it is empty, as a variable of a shell that nobody set.
    """
    if not text:
        raise ArgumentTypeError("it is empty, as a variable is that nobody set")
    return text


def named_path(text: str) -> Path:
    """A typed path, for argparse; raises as `word`."""
    return Path(word(text))


def folder(text: str) -> Path:
    """A typed folder, there or to be made, for argparse.

    Raises:
        UsageError: its name is empty, or a file is there or above.
    """
    from linear_structure.system.files import check_folder  # takes seconds, and --help needs none

    if not text:
        raise UsageError("the name of a folder is empty: expected one, such as . or results/new")
    check_folder(path := Path(text))
    return path


def positive(text: str) -> int:
    """A typed whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)
