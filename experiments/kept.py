"""Numbers that are kept on disk with what they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linear_structure.system.files import write_json


def kept(path: Path, inputs: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What `make()` gave for equal inputs, as JSON values; made, and written whole, if it must be.

    A file that is damaged or belongs to other inputs is replaced.
    """
    found = _read(path)
    if found.get("inputs") == json.loads(json.dumps(inputs)) and "outputs" in found:
        return found["outputs"]
    outputs = make()
    write_json(path, {"inputs": inputs, "outputs": outputs})
    return outputs


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
