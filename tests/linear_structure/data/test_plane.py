"""Data in the plane: the tutorial's mixture and its losses, and where the others lie."""

import numpy as np
import pytest
import torch

from linear_structure.data.plane import checkerboard, mixture, moons, rings, swiss_roll
from linear_structure.denoise import score
from linear_structure.gaussian import Gaussian

DRAWS = [swiss_roll, moons, rings, checkerboard]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_mixture_is_the_golden_one(golden):
    x, model = golden["mixture_x"], mixture()
    levels = [0.0, *golden["mixture_sigma"].tolist()]
    log_prob = torch.stack([model.log_prob(x, sigma) for sigma in levels])
    assert torch.allclose(log_prob, golden["mixture_log_prob"], rtol=1e-10, atol=1e-10)
    for row, sigma in enumerate(golden["mixture_sigma"]):
        for found, name in (
            (model.denoise(x, sigma), "denoised"),
            (score(model.denoise, x, sigma), "score"),
        ):
            assert torch.allclose(found, golden[f"mixture_{name}"][row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5, 2.0, 20.0])
def test_the_score_is_the_gradient_of_the_log_density(golden, sigma):
    """At 0 by the score at 1e-4, to the 7e-8 that it is off."""
    x = golden["mixture_x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mixture().log_prob(x, sigma).sum(), x)
    found = score(mixture().denoise, x.detach(), sigma or 1e-4)
    error = float((found - gradient).norm() / gradient.norm())
    assert error < (1e-10 if sigma else 1e-7)


def test_the_mixture_has_the_moments_of_its_description():
    model = mixture()
    x = model.sample(200_000, generator=seeded())
    covariance = torch.tensor([[3.26, 0.72], [0.72, 2.44]], dtype=torch.float64)
    assert torch.allclose(x.mean(0), x.new_tensor([0.2, 1.4]), rtol=0, atol=0.0125)
    assert torch.allclose(x.T.cov(), covariance, rtol=0, atol=0.031)


def bayes(model, sigma, quadrature):
    """E|D - x_0|^2 of the exact denoiser: the spread of x_0 given x, on average."""
    x, weights = quadrature(model, sigma)
    posterior = model.posterior(x, sigma)
    spread = torch.zeros_like(weights)
    for share, part in zip(posterior.responsibilities.T, model.components, strict=True):
        own = (part.eigenvalues * sigma**2 / (part.eigenvalues + sigma**2)).sum()
        between = (part.denoise(x, sigma) - posterior.denoised).square().sum(1)
        spread = spread + share * (own + between)
    return float((weights * spread).sum())


def test_losses_under_the_tutorials_weights(quadrature):
    """100 scales from 5 to 0.001 and 0.5 |D - x_0|^2 / sigma^2."""
    model, sigmas = mixture(), torch.logspace(np.log10(5), -3, 100, dtype=torch.float64).tolist()
    covariance = torch.tensor([[3.26, 0.72], [0.72, 2.44]], dtype=torch.float64)
    gaussian = Gaussian.from_covariance(torch.tensor([0.2, 1.4]).double(), covariance)
    lam, s0 = gaussian.eigenvalues, float(covariance.diagonal().mean())
    exact = np.mean([bayes(model, s, quadrature) / (2 * s**2) for s in sigmas])
    fitted = np.mean([float((lam / (lam + s**2)).sum()) / 2 for s in sigmas])
    round_one = np.mean([s0 / (s0 + s**2) for s in sigmas])
    assert exact == pytest.approx(0.84721, abs=2e-5)
    assert f"{fitted:.4f} {round_one:.4f}" == "0.8605 0.8630"


@pytest.mark.parametrize("draw", DRAWS)
def test_points_are_seeded_and_in_sight(draw):
    points = draw(2000, seeded())
    assert (points.shape, points.dtype) == ((2000, 2), torch.float64)
    assert float(points.abs().max()) < 5
    assert float(points.mean(0).abs().max()) < 0.8
    assert torch.equal(draw(2000, seeded()), points)
    assert not torch.equal(draw(2000, seeded(1)), points)
    assert draw(1, seeded()).shape == (1, 2)


def test_rings_have_two_radii():
    radii = rings(4000, seeded()).norm(dim=1)
    near = (radii[:, None] - torch.tensor([1.5, 3.0])).abs().amin(1)
    assert float(near.max()) < 0.5
    assert int((radii < 2.25).sum()) == 2000


def test_a_checkerboard_fills_its_dark_squares_alone():
    squares = (checkerboard(8000, seeded()) / 2 + 2).floor().long()
    assert int(squares.min()) == 0
    assert int(squares.max()) == 3
    assert not ((squares.sum(1)) % 2).any()
    counts = torch.bincount(4 * squares[:, 0] + squares[:, 1])
    assert (counts[counts > 0] - 1000).abs().max() < 4 * 30
    assert int((counts > 0).sum()) == 8
