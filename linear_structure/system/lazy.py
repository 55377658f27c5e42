"""Names of a package that are imported when they are first used (PEP 562).

So a command answers `--help`, and a script takes one name, without what it does not need: importing
torch alone takes seconds.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazily(package: str, file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package, whose source says under TYPE_CHECKING what it imports.

    A type checker reads those imports as they stand, and so does this: no name is listed twice.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """
    imports = ast.walk(ast.parse(Path(file).read_text(encoding="utf-8")))
    homes = {
        name.asname or name.name: (node.module, name.name)
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }

    def attribute(name: str) -> Any:
        """A name that is not there yet; AttributeError where it is not to be imported."""
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes[name]
        value = getattr(import_module(module), original)
        setattr(sys.modules[package], name, value)
        return value

    return attribute
