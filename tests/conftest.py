"""Fixtures that several files of tests share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The writer of snapshots of the published form, `published.py` beside this file."""
    spec = importlib.util.spec_from_file_location(
        "published", Path(__file__).with_name("published.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """Bits depend on the number of threads, which a test shares with the commands it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
