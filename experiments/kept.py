"""Numbers that are kept on disk with what they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linear_structure.files import write_json


def kept(path: Path, inputs: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What `make()` gave for equal inputs, as JSON values; made, and written whole, if it must be.

    A file that is damaged or belongs to other inputs is replaced.
    """
    try:
        found = json.loads(path.read_text())
        if found["inputs"] == json.loads(json.dumps(inputs)):
            return found["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no such numbers yet: they are made below
    outputs = make()
    write_json(path, {"inputs": inputs, "outputs": outputs})
    return outputs
