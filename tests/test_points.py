"""The exact point cloud against its definition, and its limits."""

import math

import pytest
import torch

from linear_structure.gaussian import Gaussian
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(300, 12, generator=GENERATOR, dtype=torch.float64)
X = torch.randn(7, 3, 4, generator=GENERATOR, dtype=torch.float64)
SIGMAS = (0.002, 0.05, 0.5, 3.0, 80.0)


def definition(x, points, sigma):
    squares = (x.flatten(1)[:, None] - points).square().sum(2)
    return torch.log_softmax(-squares / (2 * sigma**2), 1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_it_is_the_definition(sigma):
    log_weights = definition(X, POINTS, sigma)
    weights = log_weights.exp()
    found = PointCloud(POINTS).posterior(X, sigma)
    assert torch.allclose(found.denoised.flatten(1), weights @ POINTS, rtol=0, atol=1e-10)
    entropy = -torch.special.xlogy(weights, weights).sum(1)
    assert torch.allclose(found.entropy, entropy, rtol=0, atol=1e-9)
    assert torch.equal(found.nearest, log_weights.argmax(1))
    squares = (X.flatten(1)[:, None] - POINTS).square().sum(2) / (2 * sigma**2)
    log_prob = (-squares).logsumexp(1) - math.log(300) - 6 * math.log(2 * math.pi * sigma**2)
    assert torch.allclose(found.log_prob, log_prob, rtol=1e-9)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_it_does_not_depend_on_the_block(block):
    for sigma in SIGMAS:
        whole = PointCloud(POINTS).denoise(X, sigma)
        cut = PointCloud(POINTS, block=block).denoise(X, sigma)
        assert torch.allclose(cut, whole, rtol=0, atol=1e-10)


def test_limits():
    cloud = PointCloud(POINTS)
    far = cloud.denoise(X, 1e6).flatten(1)
    assert torch.allclose(far, POINTS.mean(0).expand(7, -1), atol=1e-8)
    nearest = torch.cdist(X.flatten(1), POINTS).argmin(1)
    assert torch.allclose(cloud.denoise(X, 1e-3).flatten(1), POINTS[nearest], atol=1e-12)


def test_each_sample_has_its_own_sigma():
    sigma = torch.tensor([0.05, 0.1, 0.5, 1.0, 3.0, 20.0, 80.0], dtype=torch.float64)
    alone = [PointCloud(POINTS).denoise(X[i : i + 1], sigma[i]) for i in range(7)]
    assert torch.allclose(PointCloud(POINTS).denoise(X, sigma), torch.cat(alone), atol=1e-12)


def test_small_noise_on_images_in_float32():
    """Log-weights of leading points within 1e-3 of float64 where sigma^2 is 4e-6."""
    pixels = torch.randint(0, 256, (500, 3072), generator=GENERATOR, dtype=torch.uint8)
    pixels[1] = pixels[0]  # a near and an exact duplicate: three points share the weight
    pixels[1, 5] ^= 1
    pixels[2] = pixels[0]
    points = (pixels.double() / 127.5 - 1).float()
    noise = torch.randn(500, 3072, generator=GENERATOR, dtype=torch.float64)
    x = points[:4].double() + 0.002 * noise[:4]
    exact = definition(x, points.double(), 0.002)
    found = PointCloud(points).log_weights(x, 0.002)
    leading = exact > -50
    assert int(leading.sum()) >= 4 + 2
    assert float((found - exact)[leading].abs().max()) < 1e-3
    denoised = PointCloud(points).denoise(x, 0.002)
    assert torch.allclose(denoised, exact.exp() @ points.double(), atol=1e-6)
    assert torch.allclose(PointCloud(pixels).denoise(x, 0.002), denoised, atol=1e-6)


def test_it_is_a_mixture_of_points():
    weights = torch.full((20,), 1 / 20, dtype=torch.float64)
    empty = torch.zeros(12, 0, dtype=torch.float64)
    components = tuple(Gaussian(y, empty, empty[0]) for y in POINTS[:20])
    mixture, cloud = GaussianMixture(weights, components), PointCloud(POINTS[:20])
    for sigma in SIGMAS:
        assert torch.allclose(mixture.denoise(X, sigma), cloud.denoise(X, sigma), atol=1e-11)
    assert torch.allclose(mixture.log_prob(X, 0.5), cloud.posterior(X, 0.5).log_prob, rtol=1e-10)


def test_float32_queries_stay_float32_and_no_noise_is_refused():
    assert PointCloud(POINTS).denoise(X.float(), 1.0).dtype == torch.float32
    with pytest.raises(ValueError, match="sigma"):
        PointCloud(POINTS).denoise(X, 0.0)
