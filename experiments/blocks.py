"""Arrays that blocks of seeds leave on disk, so that long work continues where it was stopped."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def is_whole(path: Path, rows: int) -> bool:
    """Whether an .npy file of so many rows is there, and not cut short; its values are not read."""
    try:
        return np.lib.format.open_memmap(path, mode="r").shape[:1] == (rows,)
    except (FileNotFoundError, ValueError):
        return False


def read(path: Path) -> Tensor:
    """The array of a file that is whole."""
    return torch.from_numpy(np.load(path, allow_pickle=False))
