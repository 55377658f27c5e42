"""The Gaussian mixture contains the Gaussian, and is its own density's denoiser."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from linear_structure.denoise import score
from linear_structure.fit import fit_mixture
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import GaussianMixture

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 2, 4, generator=GENERATOR, dtype=torch.float64)
DIM = 8


def component(rank: int, shift: float) -> Gaussian:
    basis, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=GENERATOR, dtype=torch.float64))
    mean = torch.full((DIM,), shift, dtype=torch.float64)
    return Gaussian(mean, basis[:, :rank], torch.linspace(1, 0.1, rank, dtype=torch.float64))


COMPONENTS = (component(DIM, 0.0), component(3, 1.0), component(0, -1.0))
MIXTURE = GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), COMPONENTS)


def test_one_component_is_the_gaussian():
    single = GaussianMixture(torch.ones(1, dtype=torch.float64), COMPONENTS[1:2])
    for sigma in (0.1, 1.0, 80.0):
        expected = COMPONENTS[1].denoise(X, sigma)
        assert torch.allclose(single.denoise(X, sigma), expected, rtol=0, atol=1e-14)
        assert torch.allclose(single.log_prob(X, sigma), COMPONENTS[1].log_prob(X, sigma))


def test_the_score_is_the_gradient_of_the_log_density():
    x = X.clone().requires_grad_()
    for sigma in (0.05, 0.5, 10.0):
        (gradient,) = torch.autograd.grad(MIXTURE.log_prob(x, sigma).sum(), x)
        assert torch.allclose(score(MIXTURE.denoise, x, sigma), gradient, rtol=1e-8, atol=1e-8)


def test_log_prob_is_scipys():
    total = 0.0
    for weight, g in zip(MIXTURE.weights, COMPONENTS, strict=True):
        covariance = (g.basis * g.eigenvalues) @ g.basis.T + 0.49 * torch.eye(DIM).double()
        normal = multivariate_normal(g.mean.numpy(), covariance.numpy())
        total = total + float(weight) * normal.pdf(X.flatten(1).numpy())
    np.testing.assert_allclose(MIXTURE.log_prob(X, 0.7).numpy(), np.log(total), rtol=1e-11)


def test_weights_far_from_all_components_stay_finite():
    assert bool(torch.isfinite(MIXTURE.denoise(X * 1e4, 0.01)).all())
    assert torch.allclose(MIXTURE.posterior(X, 0.5).responsibilities.sum(1), torch.ones(6).double())


def test_each_sample_has_its_own_sigma():
    sigma = torch.tensor([0.05, 0.2, 0.5, 1.0, 5.0, 80.0], dtype=torch.float64)
    alone = [MIXTURE.denoise(X[i : i + 1], sigma[i]) for i in range(6)]
    assert torch.allclose(MIXTURE.denoise(X, sigma), torch.cat(alone), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", [3.0, 80.0])
def test_half_precision_rounds_only_what_goes_in_and_out(dtype, sigma):
    """At the size of images, where log densities are in the thousands."""
    samples = torch.randn(40, 3072, generator=GENERATOR) / 2
    mixture = fit_mixture(samples, torch.arange(40) % 4)
    x = (samples[:5] + sigma * torch.randn(5, 3072, generator=GENERATOR)).to(dtype)
    expected = mixture.denoise(x.double(), sigma)
    assert torch.allclose(mixture.denoise(x, sigma).double(), expected, rtol=0.01, atol=5e-3)
    chosen = mixture.posterior(x, sigma).responsibilities.double()
    exact = mixture.posterior(x.double(), sigma).responsibilities
    assert torch.allclose(chosen, exact, atol=0.01)


def test_its_gaussian_has_its_mean_and_covariance():
    """Of components of different ranks, in more dimensions than they span: the sums, entry by
    entry, and no direction beside them."""
    generator = torch.Generator().manual_seed(0)
    parts = tuple(
        Gaussian.from_samples(torch.randn(rank + 1, 7, generator=generator).double())
        for rank in (0, 1, 2)
    )
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    found = GaussianMixture(weights, parts).gaussian()
    mean = sum(w * part.mean for w, part in zip(weights, parts, strict=True))
    second = sum(
        w * ((part.basis * part.eigenvalues) @ part.basis.T + torch.outer(part.mean, part.mean))
        for w, part in zip(weights, parts, strict=True)
    )
    covariance = (found.basis * found.eigenvalues) @ found.basis.T
    assert torch.allclose(found.mean, mean)
    assert torch.allclose(covariance, second - torch.outer(mean, mean), atol=1e-12)
    assert found.basis.shape == (7, 5)
