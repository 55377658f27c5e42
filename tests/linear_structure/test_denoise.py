"""Score and slope are views of a denoiser; sigma is one for the batch or one for each sample."""

import pytest
import torch

from linear_structure.denoise import expand, score, slope
from linear_structure.gaussian import Isotropic


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 3), (5, 1, 2, 3)])
def test_batched_sigma_equals_a_loop(shape):
    x = torch.randn(shape, dtype=torch.float64)
    sigma = torch.rand(5, dtype=torch.float64) + 0.1
    model = Isotropic(torch.linspace(-1, 1, 6, dtype=torch.float64), 0.7)
    for view in (score, slope):
        together = view(model.denoise, x, sigma)
        alone = [view(model.denoise, x[i : i + 1], sigma[i]) for i in range(5)]
        assert torch.equal(together, torch.cat(alone))


def test_slope_is_minus_sigma_times_score():
    x, model = torch.randn(4, 6, dtype=torch.float64), Isotropic(torch.zeros(6).double(), 1.0)
    assert torch.allclose(slope(model.denoise, x, 0.3), -0.3 * score(model.denoise, x, 0.3))


def test_a_number_keeps_its_digits():
    """0.1 as float32 would be wrong in the ninth digit."""
    x = torch.ones(1, 1, dtype=torch.float64)
    assert float(score(lambda x, sigma: torch.zeros_like(x), x, 0.1)) == -1 / 0.1**2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", [0.002, 80.0, 300.0, 1000.0])
def test_a_score_of_half_precision_is_rounded_once(dtype, sigma):
    """float16 holds the squares of neither 1000 nor 0.002."""
    x = (sigma * torch.linspace(-2, 2, 8).double()).to(dtype).view(4, 2)
    shrunk = Isotropic(torch.zeros(2).double(), 0.5 * sigma).denoise  # to a fifth of x
    found = score(shrunk, x, sigma)
    expected = (shrunk(x, sigma).double() - x.double()) / sigma**2
    off = (found.double() - expected).abs()
    assert found.dtype == dtype
    assert bool((off <= 0.51 * torch.finfo(dtype).eps * expected.abs()).all())


def test_expand_refuses_other_shapes():
    x = torch.zeros(3, 2)
    assert expand(torch.ones(3), x).shape == (3, 1)
    assert expand(2.0, x).shape == ()
    with pytest.raises(ValueError, match=r"expected \(\) or \(3,\)"):
        expand(torch.ones(2), x)
