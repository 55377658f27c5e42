"""What lets a training stop at any moment and continue to the bit: seeds by position, and states.

A generator that is seeded from what it is for (run, purpose, position) has no state worth keeping,
so a state is tensors and plain values, in a file that `torch.load` reads with `weights_only=True`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import UNREADABLE_TENSORS, replacing


def mixed(*key: int) -> int:
    """A 64-bit seed made of several integers, not negative; other keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all.

    Raises:
        WorkError: the disk does not take it; what was at `path` stays.
    """
    with replacing(path) as beside, beside.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's writer hides the error of the file
            reason = error.__context__ or error
            text = f"{path} cannot be written ({reason}): the one before it stays"
            raise WorkError(text) from error


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        UsageError: it is something else.
    """
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except UNREADABLE_TENSORS as error:
        raise UsageError(f"{path} is not a training state: remove it to start anew") from error
