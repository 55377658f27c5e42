"""What lets a training stop at any moment and continue to the bit: seeds by position, and states.

A generator that is seeded from what it is for (run, purpose, position) has no state worth keeping,
so a state is tensors and plain values, in a file that `torch.load` reads with `weights_only=True`.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from edm.checkpoints.checkpoint import AnyModule
from linear_structure.system.arrays import read_torch
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import replacing

PARTS = ("network", "average", "optimizer")  # of a state, each with a state dict
VALUES = ("images_seen", "seconds", "curve")  # of a state, as they are
PENDING = "pending"  # a value that only a state between two rows of the curve has


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
    """Read what `write_state` wrote; UsageError where it is damaged or something else."""
    try:
        return dict(read_torch(path, device))
    except (UsageError, TypeError, ValueError) as error:
        sentence = f"{path} is not a training state, or damaged: write elsewhere to start anew"
        raise UsageError(sentence) from error


@dataclass
class State(Generic[AnyModule]):
    """A training run between two steps.

    Attributes:
        network: what the optimizer moves; `average` is its exponential moving average, the result,
            or the network itself where nothing is averaged.
        images_seen: how far training has come.
        seconds: how long it has taken.
        curve: rows (images seen, mean loss per pixel since the row before).
        pending: error of each process summed since the last row, (processes,), where there is any.
    """

    network: AnyModule
    average: AnyModule
    optimizer: torch.optim.Optimizer
    images_seen: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    pending: Tensor | None = None

    @classmethod
    def start(cls, network: AnyModule) -> "State[AnyModule]":
        """Before the first step: the average is the network itself."""
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = copy.deepcopy(network).eval().requires_grad_(False)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        return cls(network.train(), average, optimizer)

    def write(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write all that the next step needs, for `read`.

        Args:
            identity: all that two trainings must agree on to be one, as JSON values.
        """
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        values = {name: getattr(self, name) for name in VALUES}
        if self.pending is not None:
            values[PENDING] = self.pending
        write_state(path, {"identity": json.dumps(identity), **parts, **values})

    def read(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from the file, if there is one.

        Raises:
            UsageError: it is no training state, or one of another training.
        """
        if not path.exists():
            return
        saved = read_state(path, next(self.network.parameters()).device)
        if not {"identity", *PARTS, *VALUES} <= saved.keys():
            raise UsageError(f"{path} is a state of another form: write elsewhere to start anew")
        before = json.loads(saved["identity"])
        told = [*identity, *before.keys() - identity.keys()]
        if changed := [name for name in told if before.get(name) != identity.get(name)]:
            shared = "piece" in changed and "piece" in before
            piece = f"--piece {before['piece']} among it, " if shared else ""
            raise UsageError(
                f"{path} belongs to another training, with other {', '.join(changed)}: "
                f"give what that was given, {piece}or write elsewhere"
            )
        for name in PARTS:
            getattr(self, name).load_state_dict(saved[name])
        for name in VALUES:
            setattr(self, name, saved[name])
        self.pending = saved.get(PENDING)
