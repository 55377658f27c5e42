"""The bound: golden terms, the gaps of the digits, and probabilities of bins."""

import math

import pytest
import torch
from walks import doubles

from linear_structure.sampling.bound import Terms, discretized_log_prob, terms
from linear_structure.sampling.processes import ddpm_grid


def exact_bound(gaussian, cubature, steps, variance):
    """The expected terms: all are quadratic in data and noise, whose moments the samples have."""
    x, drawn = cubature(gaussian)
    return terms(gaussian.denoise, x, ddpm_grid(steps), variance, lambda x: drawn)


def test_terms_are_the_golden_ones(golden, g4, cubature):
    for steps, prior, middle, data, gap in golden["elbo_T_LT_sumLt_L0_gap"].tolist():
        bound = exact_bound(g4, cubature, int(steps), "beta")
        found = [t.mean().item() for t in (bound.prior, bound.steps.sum(0), bound.data)]
        assert found == pytest.approx([prior, middle, data], rel=1e-10)
        entropy = float(golden["elbo_entropy"])
        assert bound.total.mean().item() - entropy == pytest.approx(gap, abs=1e-10)


@pytest.mark.parametrize(
    ("variance", "gaps"),
    [
        ("beta", (".12692", ".06655", ".00701", ".00070")),
        ("posterior", ("1.507", "1.057", ".548", ".462")),
    ],
)
def test_the_gap_on_noised_digits(digits_gaussian, variance, gaps):
    """In nats for each of 64 values: with beta more steps close it, with the posterior's not.

    The terms are sums over directions, in each of which four samples have the moments of data and
    noise.
    """
    lam = torch.zeros(64, dtype=torch.float64)
    lam[:61] = digits_gaussian.eigenvalues
    lam = lam + 0.01
    x, drawn = lam.sqrt() * doubles(1, 1, -1, -1)[:, None], doubles(1, -1, 1, -1)[:, None]
    denoise = lambda x, sigma: lam / (lam + sigma**2) * x  # noqa: E731
    entropy = float((2 * math.pi * math.e * lam).log().mean() / 2)
    assert f"{entropy:.5f}" == "0.18898"
    for steps, expected in zip((50, 100, 1000, 10_000), gaps, strict=True):
        bound = terms(denoise, x, ddpm_grid(steps), variance, drawn.expand_as)
        gap = float(bound.total.mean()) / 64 - entropy
        digits = len(expected.split(".")[1])
        assert f"{gap:.{digits}f}".removeprefix("0") == expected


def test_with_the_posteriors_variance_a_term_is_the_weighted_error(g4, golden):
    sigmas, x = ddpm_grid(40), golden["lik_x"]
    bound = terms(g4.denoise, x, sigmas, "posterior", torch.ones_like)
    for term, s, n in zip(bound.steps, sigmas, sigmas[1:], strict=False):
        error = (g4.denoise(x + s, s) - x).square().sum(1)
        assert torch.allclose(term, (n**-2 - s**-2) * error / 2, rtol=1e-9)


def test_terms_their_cost_and_their_shapes():
    calls, sigmas = [], ddpm_grid(30)
    denoise = lambda x, sigma: calls.append(sigma) or x / (1 + sigma**2)  # noqa: E731
    x = torch.zeros(5, 1, 2, 2)
    bound = terms(denoise, x, sigmas, "beta", torch.ones_like)
    assert torch.equal(torch.stack(calls), sigmas[:-1])
    assert (bound.prior.shape, bound.steps.shape, bound.data.shape) == ((5,), (29, 5), (5,))
    assert (bound.steps >= 0).all()
    assert (bound.prior >= 0).all()
    assert torch.equal(bound.total, bound.prior + bound.steps.sum(0) + bound.data)


def test_the_prior_is_the_divergence_of_two_gaussians():
    sigmas, x = ddpm_grid(50), doubles(0.3, -1, 2)[:, None]
    bound = terms(lambda x, sigma: x, x, sigmas, "beta", torch.zeros_like)
    left = 1 / (1 + sigmas[0] ** 2)
    end = torch.distributions.Normal(left.sqrt() * x[:, 0], (1 - left).sqrt())
    standard = torch.distributions.Normal(doubles(0)[0], doubles(1)[0])
    divergence = torch.distributions.kl_divergence(end, standard)
    assert torch.allclose(bound.prior, divergence, rtol=1e-6)


def test_bits_of_a_bound():
    bound = Terms(doubles(1), doubles(2, 3)[:, None], doubles(4))
    assert torch.allclose(bound.bits((5,)), doubles(2 / math.log(2)))
    assert torch.allclose(bound.bits((5,), 8), doubles(2 / math.log(2) + 3))


@pytest.mark.parametrize(("bins", "count"), [(127.5, 256), (8.0, 17)])
@pytest.mark.parametrize("mean", [-0.9, 0.0, 3.0])
def test_the_bins_of_a_pixel_hold_all_of_its_probability(bins, count, mean):
    x = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]
    for deviation in (0.001, 0.05, 10.0):
        log_prob = discretized_log_prob(
            x, doubles(mean).expand_as(x), doubles(deviation**2)[0], bins
        )
        assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_fine_bin_has_the_density_times_its_width_far_from_the_mean_too():
    x, mean = doubles(0.5, -0.5, 0.5)[:, None], doubles(0.48, 0.9, -0.9)[:, None]
    variance = doubles(4e-4)[0]
    found = discretized_log_prob(x, mean, variance, 1e5)
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x)[:, 0]
    assert torch.allclose(found, density - math.log(1e5), rtol=1e-4)


def test_bins_and_density_agree_on_the_last_term():
    """For values in the middle of narrow bins; v_1 is then wider than a bin."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-7, 8, (6, 4), generator=generator).double() / 8
    denoise = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731
    sigmas = ddpm_grid(30)
    density = terms(denoise, x, sigmas, "beta", torch.ones_like).data
    bins = terms(denoise, x, sigmas, "beta", torch.ones_like, bins=1e4).data
    assert torch.allclose(bins, density + 4 * math.log(1e4), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((ddpm_grid(30), "small"), "variance is 'small': expected one of beta, posterior"),
        ((doubles(2, 0), "beta"), "1 steps: a bound needs 2 or more"),
        ((doubles(2, 3, 0), "beta"), "levels that decrease"),
    ],
)
def test_mistakes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        terms(lambda x, sigma: x, torch.zeros(2, 3), *settings, torch.ones_like)
