"""Clocks: inverse, derivative, ends, and the bits of the published formulas."""

import math

import pytest
import torch

from linear_structure.sampling.processes import (
    VP,
    Linear,
    PublishedVP,
    RootTime,
    geometric,
    iddpm_levels,
)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("law", [Linear(), RootTime(), VP(), VP.through(0.01, 50), PublishedVP()])
def test_a_time_law_is_inverted_and_differentiated(law):
    t = doubles(0.01, 0.1, 0.5, 1).requires_grad_()
    (derivative,) = torch.autograd.grad(law.sigma(t).sum(), t)
    assert torch.allclose(law.rate(t), derivative)
    assert torch.allclose(law.time(law.sigma(t)), t)


def test_the_vp_law_goes_through_its_two_levels():
    sigma = VP.through(0.01, 50, epsilon_s=0.1).sigma(doubles(0.1, 1))
    assert torch.allclose(sigma, doubles(0.01, 50))


@pytest.mark.parametrize(("beta_d", "beta_min"), [(19.9, 0.1), (7.3, 0.31)])
def test_the_published_rounding_is_kept_to_the_bit(beta_d, beta_min):
    """As the published code writes it, in float32; `VP` itself is more exact."""
    t = torch.linspace(1e-5, 1, 1000)
    sigma = ((beta_d * t**2 / 2 + beta_min * t).exp() - 1).sqrt()
    published = PublishedVP(beta_d, beta_min)
    assert torch.equal(published.sigma(t), sigma)
    time = ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d
    assert torch.equal(published.time(sigma), time)
    assert not torch.equal(VP(beta_d, beta_min).sigma(t), sigma)
    torch.testing.assert_close(VP(beta_d, beta_min).sigma(t), sigma, rtol=0.05, atol=0)


@pytest.mark.parametrize("count", [1, 10, 1000])
@pytest.mark.parametrize(("c_1", "c_2"), [(0.001, 0.008), (0.02, 0.1)])
def test_iddpm_levels_are_those_of_both_published_codes_to_the_bit(count, c_1, c_2):
    """Floats in the sampler's grid, float32 tensors in the preconditioner's buffer."""
    j = torch.arange(count + 1, dtype=torch.float32)
    a = (0.5 * math.pi * j / count / (c_2 + 1)).sin() ** 2
    floats, tensors = [0.0], [torch.zeros(())]
    for i in range(count, 0, -1):
        ratio = (a[i - 1] / a[i]).clamp(min=c_1)
        floats.append(math.sqrt((floats[-1] ** 2 + 1) / float(ratio) - 1))
        tensors.append(((tensors[-1] ** 2 + 1) / ratio - 1).sqrt())
    assert torch.equal(iddpm_levels(count, c_1, c_2), doubles(*reversed(floats)))
    narrow = iddpm_levels(count, c_1, c_2, torch.float32)
    assert torch.equal(narrow, torch.stack(tensors[::-1]))


def test_geometric_levels_have_one_ratio_either_way():
    up = geometric(doubles(0, 0.25, 0.5, 0.75, 1), 0.02, 100)
    assert torch.allclose(up[1:] / up[:-1], doubles(5000).pow(0.25).expand(4))
    assert torch.allclose(geometric(doubles(1, 0.75, 0.5, 0.25, 0), 100, 0.02), up)
