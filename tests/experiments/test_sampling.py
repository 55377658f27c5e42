"""The teleport inside the sampler: what a skip may change and what it may not."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch

from edm.network import network_of
from experiments.sampling import Sampling
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import to_uint8
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.sampling.seeds import Seeds
from linear_structure.sampling.table import SAMPLERS, Settings
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.teleport import Teleport, carry

SHAPE = (1, 4, 4)


def start(seeds, sigmas, skip=0, teleport=None):
    x = Seeds.of(seeds).latents(SHAPE).double() * sigmas[0]
    return carry(x, sigmas, skip, Teleport(teleport) if teleport else None)


def exactly(denoise):
    """A denoiser of float64 states as a network."""
    return network_of(denoise, SHAPE, dtype=torch.float64)


@pytest.fixture
def gaussian() -> Gaussian:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(16, 16, generator=generator, dtype=torch.float64) / 8
    mean = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64)
    return Gaussian.from_covariance(mean, root @ root.T)


def test_no_skip_is_plain_sampling_to_the_bit(gaussian):
    sigmas = sigma_grid(18)
    latents = Seeds.of([3, 5]).latents(SHAPE).double()
    *_, last = heun(gaussian.denoise, latents * sigmas[0], sigmas)
    without = to_uint8(last.x)
    for teleport in (Teleport(gaussian), None):
        pixels = Sampling(exactly(gaussian.denoise), sigmas, teleport).pixels([3, 5])
        assert torch.equal(pixels, without)


@pytest.mark.parametrize("skip", [1, 9, 17])
def test_teleport_replaces_a_converged_solver(gaussian, skip):
    """On Gaussian data the flow is what Heun converges to: the start of the tail is the same."""
    fine = sigma_grid(1793)  # every 112th of its levels is one of the 17 intervals of 18 steps
    sigmas = sigma_grid(17)
    stride = 112
    assert torch.allclose(fine[::stride][:17], sigmas[:17], rtol=1e-12)
    x = start([0, 1], sigmas)
    skip = min(skip, 16)
    *_, solved = heun(gaussian.denoise, x, fine[: skip * stride + 1])
    jumped = start([0, 1], sigmas, skip, gaussian)
    assert torch.allclose(jumped, solved.x, rtol=0, atol=2e-5 * float(sigmas[0]))


def test_cost_is_what_the_formula_says(gaussian):
    calls = 0

    def counted(x, sigma):
        nonlocal calls
        calls += 1
        return gaussian.denoise(x, sigma)

    sigmas = sigma_grid(18)
    for skip in (0, 1, 7, 17):
        calls = 0
        Sampling(exactly(counted), sigmas, Teleport(gaussian)).pixels([0], skip)
        assert calls == SAMPLERS["heun"].calls(18, skip, Settings()) == 2 * (18 - skip) - 1


def test_isotropic_with_no_variance_only_shrinks_the_noise():
    sigmas = sigma_grid(18)
    mean = torch.full((16,), 0.25)
    plain = start([7], sigmas)
    jumped = start([7], sigmas, 6, Isotropic(mean))
    expected = 0.25 + (plain - 0.25) * float(sigmas[6] / sigmas[0])
    assert torch.allclose(jumped, expected, rtol=1e-12)


@pytest.mark.parametrize("skip", [-1, 18, 19])
def test_skip_out_of_the_grid_is_refused(gaussian, skip):
    with pytest.raises(UsageError, match="expected 0 to 17"):
        start([0], sigma_grid(18), skip, gaussian)


def test_skip_without_a_model_is_refused():
    with pytest.raises(UsageError, match="needs a model"):
        start([0], sigma_grid(18), 1)


def test_nan_of_a_network_is_said(gaussian):
    with pytest.raises(WorkError, match="NaN"):
        Sampling(exactly(lambda x, sigma: x * math.nan), sigma_grid(4)).pixels([0])


@pytest.mark.parametrize(
    ("walk", "found"),
    [
        (lambda *given: islice(SAMPLERS["heun"].run(*given), 1), "ends at noise level 80"),
        (lambda *given: islice(SAMPLERS["unipc"].run(*given), 4), "ends at noise level 0.002"),
        (lambda *given: iter(()), "yields no Step"),
    ],
)
def test_a_sampler_that_does_not_end_in_images_is_refused(gaussian, walk, found):
    sampler = replace(SAMPLERS["heun"], run=walk)
    with pytest.raises(UsageError, match=f"^the sampler {found}: its last Step must be the images"):
        Sampling(exactly(gaussian.denoise), sigma_grid(4), sampler=sampler).pixels([0])
