"""What the tests of score-based sampling, and of data for it, share."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from linear_structure.data.datasets import load
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8

GOLDEN = Path(__file__).parents[1] / "golden/score_based.npz"


@pytest.fixture(scope="session")
def golden():
    """Vectors made with numpy and torch alone."""
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="session")
def g4(golden):
    """The Gaussian in 4 dimensions that golden runs are made with."""
    return Gaussian(golden["g4_mean"], golden["g4_basis"], golden["g4_eigenvalues"])


@pytest.fixture(scope="session")
def digits():
    """The digits as points: (1797, 64) float64."""
    return from_uint8(load("digits").images(), torch.float64).flatten(1)


@pytest.fixture(scope="session")
def digits_gaussian(digits):
    return Gaussian.from_samples(digits)


@pytest.fixture
def recorded(golden):
    """Noise of the golden runs, one row for each call."""
    rows = iter(golden["run_noise"])
    return lambda x: next(rows)


@pytest.fixture
def one_source_each():
    """Make noise for which a batch holds what each of its draws, and the start, contribute.

    Whatever is linear in them all has the variance `x.square().sum(0)` at the end: no sampling.
    """

    def make(start, draws):
        x = torch.zeros(1 + draws, len(start), dtype=torch.float64)
        x[0] = start.sqrt()
        numbers = iter(range(1, 1 + draws))

        def noise(x):
            drawn = torch.zeros_like(x)
            drawn[next(numbers)] = 1
            return drawn

        return x, noise

    return make


@pytest.fixture(scope="session")
def cubature():
    """Data x_0 and noise of 4 D samples with exactly the first and second moments of a Gaussian."""

    def make(gaussian):
        dim = gaussian.dim
        unit = math.sqrt(2 * dim) * torch.eye(2 * dim, dtype=torch.float64)
        inside, noise = torch.cat([unit, -unit]).split(dim, dim=1)
        return gaussian.mean + (inside * gaussian.eigenvalues.sqrt()) @ gaussian.basis.T, noise

    return make


@pytest.fixture(scope="session")
def total_variation():
    """Half the difference of two samples' shares (n, 2) of 50 x 50 squares of [-5, 5]^2."""
    edges = torch.linspace(-5, 5, 51, dtype=torch.float64)

    def between(x, y):
        shares = [torch.histogramdd(z.contiguous(), [edges, edges]).hist / len(z) for z in (x, y)]
        return float((shares[0] - shares[1]).abs().sum()) / 2

    return between
