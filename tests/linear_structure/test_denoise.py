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


def test_expand_refuses_other_shapes():
    x = torch.zeros(3, 2)
    assert expand(torch.ones(3), x).shape == (3, 1)
    assert expand(2.0, x).shape == ()
    with pytest.raises(ValueError, match=r"expected \(\) or \(3,\)"):
        expand(torch.ones(2), x)
