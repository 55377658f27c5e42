"""Fixtures that several files of tests share."""

from types import ModuleType

import published as writer
import pytest
import torch


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The writer of snapshots of the published form."""
    return writer


@pytest.fixture
def one_thread():
    """Bits depend on the number of threads, which a test shares with the commands it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
