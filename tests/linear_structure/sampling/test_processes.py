"""Time laws: inverse, derivative, ends."""

import pytest
import torch

from linear_structure.sampling.processes import VE, VP, Linear


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("law", [Linear(), VE(), VP(), VP.through(0.01, 50)])
def test_a_time_law_is_inverted_and_differentiated(law):
    t = doubles(0.01, 0.1, 0.5, 1).requires_grad_()
    (derivative,) = torch.autograd.grad(law.sigma(t).sum(), t)
    assert torch.allclose(law.rate(t), derivative)
    assert torch.allclose(law.time(law.sigma(t)), t)


def test_the_vp_law_goes_through_its_two_levels():
    sigma = VP.through(0.01, 50, epsilon_s=0.1).sigma(doubles(0.1, 1))
    assert torch.allclose(sigma, doubles(0.01, 50))
