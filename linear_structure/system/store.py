"""Work that is kept on disk, known by what it was made from and by what it holds.

A block is an `.npy` file in a folder named by the digest of its inputs. Beside it lies the SHA-256
of its values, so that damage is noticed when it is read; a block of an earlier version, without
one, is taken as it is, once, and given one. Processes share blocks through the files alone: each
makes its own, waits for those of others, though not forever, and makes again whatever is damaged or
gone: a damaged block of another, too, and at once, although the other may make it as well.
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linear_structure.system.files import (
    UNREADABLE_ARRAYS,
    check_writable,
    digest_of,
    digest_of_file,
    digest_of_tensor,
    read_json,
    write_array,
    write_json,
    write_text,
)
from linear_structure.system.machine import wait_for

DIGEST = "digest"  # of what is kept: of its outputs


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
        values = torch.tensor(np.asarray(stored))
        digest = digest_of_tensor(values)
        try:
            seal = self._seal.read_text(errors="replace")
        except FileNotFoundError:  # of an earlier version: whoever writes now begins with it
            seal = digest
            with suppress(OSError):  # a reader need not be able to write
                write_text(self._seal, digest)
        return values if seal == digest else None

    def write(self, values: Tensor) -> None:
        """Keep the values, whole or not at all."""
        write_text(self._seal, digest_of_tensor(values))  # first: what it does not suit is damaged
        write_array(self.path, values.cpu().numpy())

    def obtain(
        self, make: Callable[[], Tensor], mine: bool = True, until: float = math.inf
    ) -> Tensor:
        """The values that are there; made, and kept, where they are missing or damaged.

        Nothing is made where it cannot be kept (OSError, or UsageError: a file is in the way).

        Where they are not `mine`, another process makes them first, and its file is waited for
        `until` then, in seconds of `time.monotonic`: what it made may be gone, and so may it.
        """
        if not mine:
            wait_for([self.path], until)
        if (values := self.read()) is None:
            check_writable(self.path.parent)
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

    A file that is damaged is replaced, and one of other inputs put aside. What else it is to say
    stands `beside` these parts, and is never compared. Nothing is made where it cannot be kept
    (OSError, or UsageError where a file is in the way).
    """
    with suppress(OSError, ValueError):
        found = read_kept(path)
        if found.get("inputs") == json.loads(json.dumps(inputs)):
            if DIGEST not in found:
                with suppress(OSError):  # of a full or read-only disk: what is there is good
                    _write_kept(path, found)
            return found["outputs"]
    check_writable(path.parent)
    outputs = make()
    with suppress(OSError, ValueError):
        read_kept(path)
        print(f"{path} is of other settings: it is kept as {put_aside(path)}", file=sys.stderr)
    _write_kept(path, {"inputs": inputs, "outputs": outputs, **beside})
    return outputs


def read_kept(path: Path) -> dict[str, Any]:
    """What `kept` wrote: `inputs`, `outputs`, and what else it was told.

    One of an earlier version, or made by hand, has no digest of its outputs: it is taken as it is.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, or its outputs are not those that were written.
    """
    found = read_json(path)
    if not isinstance(found, dict) or "outputs" not in found:
        raise ValueError("it has no outputs")
    if found.get(DIGEST, digest := digest_of(found["outputs"])) != digest:
        raise ValueError(
            f"its outputs are not those of its {DIGEST}: it is damaged, or was changed"
        )
    return found


def _write_kept(path: Path, content: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(content))  # as it is read: keys are strings
    write_json(path, {**plain, DIGEST: digest_of(plain["outputs"])})


def put_aside(path: Path) -> Path:
    """Rename a file by its digest, so that another may take its place; where it is now."""
    aside = path.with_suffix(f".{digest_of_file(path)[:8]}{path.suffix}")
    return path.rename(aside)
