"""Fixtures of trainings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import builders
import pytest

from edm.training.state import State


@pytest.fixture
def states_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two trainings at once, each has read its state before one goes on, if turns allow it."""
    meet, read = builders.meeting(1), State.read

    def read_together(state: State[Any], path: Path, identity: Mapping[str, Any]) -> None:
        read(state, path, identity)
        meet()

    monkeypatch.setattr(State, "read", read_together)
