"""The suggested skip: cheap, and right where the truth is known."""

import math
from itertools import islice

import pytest
import torch

from experiments.presets import find
from experiments.suggestion import best_skip, knee, offsets, until_above, verdict
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.sampling.grids import sigma_grid
from linear_structure.system.errors import WorkError
from linear_structure.teleport import Teleport

SIGMAS = sigma_grid(18)
X = 80 * torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
BASIS = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double())[0]
GAUSSIAN = Gaussian(torch.zeros(16).double(), BASIS, torch.linspace(2, 0.1, 16).double())


def test_a_network_that_is_the_gaussian_needs_no_steps_of_it():
    found = list(offsets(GAUSSIAN.denoise, Teleport(GAUSSIAN), X, SIGMAS))
    assert [offset.skip for offset in found] == list(range(18))
    assert found[0].median == 0
    shown = until_above(found, 0.02)
    assert 12 <= best_skip(shown, 0.02) == shown[-1].skip - 1
    assert best_skip(found, 1e-30) == 0
    assert best_skip(until_above(found, 1e9), 1e9) == 17


def test_a_worse_model_may_skip_less_and_calls_stop_there():
    calls = []

    def network(x, sigma):
        calls.append(float(sigma))
        return GAUSSIAN.denoise(x, sigma)

    worse = until_above(offsets(network, Teleport(Isotropic(GAUSSIAN.mean)), X, SIGMAS), 0.02)
    better = until_above(offsets(GAUSSIAN.denoise, Teleport(GAUSSIAN), X, SIGMAS), 0.02)
    assert 1 < worse[-1].skip < better[-1].skip
    assert [offset.median > 0.02 for offset in worse] == [False] * worse[-1].skip + [True]
    assert min(calls) >= float(SIGMAS[worse[-1].skip])


def test_the_knee_is_the_last_skip_before_the_distance_grows():
    assert knee(find("cifar10").published) == 7
    assert knee({0: 1.0, 2: 1.05, 4: 1.2, 6: 1.0}) == 2
    assert knee({0: 1.0}) == 0


def test_a_knee_that_no_distance_passes_is_said_to_be_the_end_of_the_sweep():
    assert verdict({0: 1.0, 2: 1.05, 4: 1.2}).endswith("1.1 times that of skip 0 up to skip 2.")
    assert verdict({0: 1.0, 2: 1.05}).endswith("up to skip 2, the highest measured.")
    assert verdict({0: 1.0}) == ""


def test_models_without_a_closed_flow_are_compared_too():
    """A mixture of one Gaussian misses by as little as the Gaussian: by the solvers' errors."""
    alone = Teleport(GaussianMixture(torch.ones(1).double(), (GAUSSIAN,)))
    found = list(islice(offsets(GAUSSIAN.denoise, alone, X, SIGMAS), 8))
    assert found[0].median == 0
    assert max(offset.median for offset in found) < 0.01


def test_nan_of_a_network_is_said():
    with pytest.raises(WorkError, match="NaN"):
        list(offsets(lambda x, sigma: x * math.nan, Teleport(GAUSSIAN), X, SIGMAS))
