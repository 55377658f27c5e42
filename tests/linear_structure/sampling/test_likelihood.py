"""Likelihood: golden values, order two, traces, bits, and the entropy that losses give."""

import itertools
import math

import pytest
import torch
from walks import doubles

from linear_structure.data.plane import mixture
from linear_structure.gaussian import Gaussian
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import ve_grid
from linear_structure.sampling.likelihood import (
    bits_per_dimension,
    entropy_from_losses,
    exact_trace,
    hutchinson,
    log_prob,
)


def ascending(steps, low, high):
    return ve_grid(steps + 1, low, high)[:-1].flip(0)


@pytest.fixture(scope="module")
def equal_moments():
    """The Gaussian with the mean and covariance of the plane's mixture."""
    covariance = torch.stack([doubles(3.26, 0.72), doubles(0.72, 2.44)])
    return Gaussian.from_covariance(doubles(0.2, 1.4), covariance)


@pytest.mark.parametrize("steps", [50, 100, 400, 1600])
def test_densities_of_a_gaussian_are_the_golden_ones(golden, g4, steps):
    sigmas = ascending(steps, 0.1, 80.0)
    end = lambda x: g4.log_prob(x, 80.0)  # noqa: E731
    found = log_prob(g4.denoise, golden["lik_x"], sigmas, end, exact_trace)
    assert torch.allclose(found, golden[f"lik_heun{steps}"], rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("steps", "error"),
    [(50, 0.3366), (100, 0.0883), (200, 0.0226), (400, 0.00575), (800, 0.00147)],
)
def test_densities_of_a_mixture_are_the_golden_ones(golden, equal_moments, steps, error):
    x, model = golden["mixture_x"], mixture()
    end = lambda x: equal_moments.log_prob(x, 80.0)  # noqa: E731
    found = log_prob(model.denoise, x, ascending(steps, 0.05, 80.0), end, exact_trace)
    assert torch.allclose(found, golden[f"lik_mixture_heun{steps}"], rtol=1e-10, atol=0)
    assert float((found - model.log_prob(x, 0.05)).abs().max()) == pytest.approx(error, abs=6e-5)


def test_the_likelihood_is_of_order_two(golden, g4):
    expected = golden["lik_exact_sigma0.1"]
    assert torch.allclose(g4.log_prob(golden["lik_x"], 0.1), expected, rtol=1e-10)

    def error(steps):
        sigmas = ascending(steps, 0.1, 80.0)
        end = lambda x: g4.log_prob(x, 80.0)  # noqa: E731
        found = log_prob(g4.denoise, golden["lik_x"], sigmas, end, exact_trace)
        return float((found - expected).abs().max())

    errors = [error(steps) for steps in (200, 400, 800)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.05)


def closed_trace(gaussian):
    """That of `U diag(lam / (lam + sigma^2)) U'`."""

    def trace(denoise, x, sigma):
        gains = gaussian.eigenvalues / (gaussian.eigenvalues + sigma**2)
        return denoise(x, sigma), gains.sum().expand(len(x))

    return trace


def test_the_likelihood_of_the_digits(digits_gaussian):
    """Of the Gaussian, without the mean, for 256 samples and a trace in closed form."""
    model = Gaussian(torch.zeros(64).double(), digits_gaussian.basis, digits_gaussian.eigenvalues)
    x = model.sample(256, 0.1, torch.Generator().manual_seed(0))
    end = lambda x: model.log_prob(x, 80.0)  # noqa: E731
    exact = model.log_prob(x, 0.1)

    def error(steps):
        sigmas, trace = ascending(steps, 0.1, 80.0), closed_trace(model)
        return float((log_prob(model.denoise, x, sigmas, end, trace) - exact).abs().max()) / 64

    errors = [error(steps) for steps in (100, 400, 1600)]
    assert errors == pytest.approx([5.5e-3, 3.6e-4, 2.3e-5], rel=0.1)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_exact_trace_is_that_of_the_jacobian(golden, sigma):
    model, x = mixture(), golden["mixture_x"]
    level = torch.tensor(sigma, dtype=torch.float64)
    denoised, trace = exact_trace(model.denoise, x, level)
    one = lambda x: model.denoise(x[None], level)[0]  # noqa: E731
    jacobians = torch.stack([torch.autograd.functional.jacobian(one, row) for row in x])
    assert torch.allclose(trace, jacobians.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12)
    assert torch.equal(denoised, model.denoise(x, level))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_exact_trace_of_points_is_their_spread(digits, sigma):
    """`(E |y|^2 - |D|^2) / sigma^2` over the posterior of the points, of images (1, 8, 8)."""
    cloud, x = PointCloud(digits[:50]), digits[50:54] + 0.1
    level = torch.tensor(sigma, dtype=torch.float64)
    denoised, trace = exact_trace(cloud.denoise, x.view(4, 1, 8, 8), level)
    weights = cloud.log_weights(x, level).exp()
    square = (weights * digits[:50].square().sum(1)).sum(1)
    expected = (square - denoised.flatten(1).square().sum(1)) / sigma**2
    assert torch.allclose(trace, expected, rtol=1e-6)


def test_all_sign_probes_together_give_the_exact_trace(g4):
    """And their spread is `2 (|J|^2 - sum J_ii^2)`."""
    level, x = doubles(0.4)[0], torch.ones(1, 4, dtype=torch.float64)
    signs = doubles(*itertools.product((-1, 1), repeat=4))
    denoised, exact = exact_trace(g4.denoise, x, level)
    same, mean = hutchinson(signs[:, None])(g4.denoise, x, level)
    assert torch.allclose(mean, exact, rtol=1e-12)
    assert torch.equal(same, denoised)
    each = hutchinson(signs[None])(g4.denoise, x.expand(16, 4), level)[1]
    jacobian = (g4.basis * (g4.eigenvalues / (g4.eigenvalues + level**2))) @ g4.basis.T
    spread = 2 * (jacobian.square().sum() - jacobian.diagonal().square().sum())
    assert float(each.var(correction=0)) == pytest.approx(float(spread), rel=1e-12)


def test_the_spread_of_a_probe_on_the_digits(digits_gaussian):
    """At sigma 0.5, of 4,000 probes: 5.33 of signs and 21.9 of normal ones."""
    model, level = digits_gaussian, doubles(0.5)[0]
    jacobian = (model.basis * (model.eigenvalues / (model.eigenvalues + level**2))) @ model.basis.T
    square = float(jacobian.square().sum())
    assert f"{2 * square:.1f}" == "21.9"
    expected = 2 * (square - float(jacobian.diagonal().square().sum()))
    assert f"{expected:.2f}" == "5.33"
    normal = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)).double()
    _, each = hutchinson(normal.sign()[None])(model.denoise, torch.zeros_like(normal), level)
    assert float(each.var()) == pytest.approx(expected, rel=3 * math.sqrt(2 / 4000))


def test_a_likelihood_keeps_no_graph_and_needs_no_gradients_around_it(golden, g4):
    sigmas, x = ascending(5, 0.1, 80.0), golden["lik_x"]
    probes = torch.ones(2, *x.shape, dtype=torch.float64)
    for trace in (exact_trace, hutchinson(probes)):
        outside = log_prob(g4.denoise, x, sigmas, lambda x: g4.log_prob(x, 80.0), trace)
        assert not outside.requires_grad
        with torch.inference_mode():
            copies = x.clone(), sigmas.clone()
            inside = log_prob(g4.denoise, *copies, lambda x: g4.log_prob(x, 80.0), trace)
        assert torch.equal(outside, inside)


def test_bits_of_a_uniform_density():
    """One of 255 equal bins costs log2(255) bits, and the bin that is certain costs none."""
    nats = doubles(-12 * math.log(2), 12 * math.log(127.5))
    assert torch.allclose(
        bits_per_dimension(nats, (3, 2, 2)), doubles(math.log2(255), 0), atol=1e-12
    )
    assert float(bits_per_dimension(doubles(0), (64,), 8)) == 3


def test_bits_of_the_first_digits_under_their_gaussian(digits, digits_gaussian):
    """At sigma 0.02, of 17 levels made continuous: 2.967, within three standard errors of that."""
    levels = ((digits[:32] + 1) * 8).round()
    uniform = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0)).double()
    x = (levels + uniform - 0.5) / 8 - 1
    bits = bits_per_dimension(digits_gaussian.log_prob(x, 0.02), (64,), 8)
    assert float(bits.mean()) == pytest.approx(2.967, abs=3 * 0.009)


def test_losses_give_the_entropy_of_the_mixture(equal_moments, quadrature):
    """At sigma 0.05: 3.6123 +- 0.0021 by samples of log_prob, and 3.8420 of the Gaussian alone."""
    model, sigmas = mixture(), ascending(160, 0.05, 80.0)

    def mean_square(sigma, function):
        x, weights = quadrature(model, sigma)
        return float((weights * function(x).square().sum(1)).sum())

    def loss(sigma):
        """E|D - x_0|^2 = E|x_0|^2 - E|D|^2, for D is the mean of x_0 given x."""
        explained = mean_square(sigma, lambda x: model.denoise(x, sigma))
        return (mean_square(0.0, lambda x: x) - explained) / float(sigma) ** 2

    def gaussian_loss(sigma):
        lam = equal_moments.eigenvalues
        return float((lam / (lam + sigma**2)).sum())

    lam = equal_moments.eigenvalues
    entropy = float(((2 * math.pi * math.e * (lam + 0.05**2)).log() / 2).sum())
    assert f"{entropy:.4f}" == "3.8420"
    found = entropy_from_losses(
        entropy,
        doubles(*map(gaussian_loss, sigmas)),
        sigmas,
        doubles(*map(loss, sigmas)),
    )
    x, weights = quadrature(model, 0.05)
    exact = -float((weights * model.log_prob(x, 0.05)).sum())
    assert exact == pytest.approx(3.6123, abs=3 * 0.0021)
    assert found == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("sigmas", [doubles(2, 1), doubles(0, 1), doubles(1, math.nan)])
def test_levels_that_do_not_ascend_are_refused(sigmas, g4):
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="levels that ascend, from above 0"):
        log_prob(g4.denoise, x, sigmas, lambda x: g4.log_prob(x, 80.0), exact_trace)
    with pytest.raises(ValueError, match="levels that ascend"):
        entropy_from_losses(1.0, sigmas, sigmas, sigmas)
