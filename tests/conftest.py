"""Fixtures that several files of tests share; of several test processes, each has a core."""

import os
import signal
from types import ModuleType

import numpy as np
import published as writer
import pytest
import torch


def pytest_configure() -> None:
    """Commands that tests start inherit the core, and so take one thread; and that SIGINT counts.

    In the background of a shell it is ignored, and so would be by what tests interrupt. What looks
    for models on a hub finds none.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})
        torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def quadrature():
    """Make nodes and weights of an expectation over a noised mixture in the plane."""

    def make(model, sigma, nodes=80):
        at, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes))
        grid, product = torch.cartesian_prod(at, at), torch.cartesian_prod(weights, weights).prod(1)
        points = [
            part.mean + (grid * (part.eigenvalues + sigma**2).sqrt()) @ part.basis.T
            for part in model.components
        ]
        return torch.cat(points), torch.outer(model.weights, product / product.sum()).flatten()

    return make
