"""Work that is kept on disk, known by what it was made from and by what it holds.

A block is an `.npy` file in a folder named by the digest of its inputs. Beside it lies the SHA-256
of its values, so that damage is noticed when it is read; a block of an earlier version, without
one, is taken as it is, once, and given one. Processes share blocks through the files alone: each
makes its own, waits for those of others, and makes again whatever is damaged, or its own and gone:
a damaged block of another, too, and at once, although the other may make it as well.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linear_structure.system.files import (
    UNREADABLE_ARRAYS,
    digest_of,
    digest_of_tensor,
    write_array,
    write_json,
    write_text,
)
from linear_structure.system.machine import wait_for


@dataclass(frozen=True)
class Block:
    """One array on disk, or to be: the shape and type that it must have."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def is_whole(self) -> bool:
        """Whether a file of this shape and type is there and not cut short; no value is read."""
        return self._stored() is not None

    def read(self) -> Tensor | None:
        """The values, or None if they are not there, or not what was written."""
        stored = self._stored()
        if stored is None:
            return None
        values = torch.from_numpy(np.array(stored))
        digest = digest_of_tensor(values)
        try:
            seal = self._seal.read_text(errors="replace")
        except FileNotFoundError:  # of an earlier version: whoever writes now begins with it
            write_text(self._seal, seal := digest)
        return values if seal == digest else None

    def write(self, values: Tensor) -> None:
        """Keep the values, whole or not at all."""
        write_text(self._seal, digest_of_tensor(values))  # first: what it does not suit is damaged
        write_array(self.path, values.numpy())

    def obtain(self, make: Callable[[], Tensor], mine: bool = True) -> Tensor:
        """The values that are there; made, and kept, where they are missing or damaged.

        Where they are not `mine`, another process makes them first, and its file is waited for.
        """
        if not mine:
            wait_for([self.path])
        if (values := self.read()) is None:
            values = make()
            self.write(values)
        return values

    @property
    def _seal(self) -> Path:
        return self.path.with_suffix(".sha256")

    def _stored(self) -> np.ndarray | None:
        try:
            rows = np.lib.format.open_memmap(self.path, mode="r")
        except UNREADABLE_ARRAYS:
            return None
        return rows if (rows.shape, str(rows.dtype)) == (self.shape, str(self.dtype)[6:]) else None


def folder_of(root: Path, inputs: dict[str, Any]) -> Path:
    """The folder below `root` of what was made from these inputs, as JSON values."""
    return root / digest_of(inputs)[:16]


def kept(path: Path, inputs: dict[str, Any], make: Callable[[], Any], **beside: Any) -> Any:
    """What `make()` gave for equal inputs, as JSON values; made, and written whole, if it must be.

    A file that is damaged or belongs to other inputs is replaced; one of an earlier version, which
    has no digest of its outputs, is taken as it is. What else it is to say stands `beside` these
    parts, and is never compared.
    """
    try:
        found = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # there is none, or no JSON object
        found = {}
    if found.get("inputs") == json.loads(json.dumps(inputs)) and "outputs" in found:
        digest = digest_of(found["outputs"])
        if found.get("digest", digest) == digest:
            return found["outputs"]
    outputs = make()
    digest = digest_of(json.loads(json.dumps(outputs)))  # as they are read: keys are strings
    write_json(path, {"inputs": inputs, "outputs": outputs, "digest": digest, **beside})
    return outputs
