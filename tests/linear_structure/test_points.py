"""The exact point cloud against its definition, and its limits."""

import math
from itertools import accumulate

import pytest
import torch
from torch.overrides import TorchFunctionMode

from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
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
        whole = PointCloud(POINTS).posterior(X, sigma)
        cut = PointCloud(POINTS, block=block).posterior(X, sigma)
        assert torch.equal(cut.nearest, whole.nearest)
        for name in ("denoised", "entropy", "log_prob"):
            found, expected = getattr(cut, name), getattr(whole, name)
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-10)


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


def test_images_are_points():
    images = torch.arange(2 * 12, dtype=torch.uint8).view(2, 3, 2, 2)
    cloud, x = PointCloud(images), torch.zeros(5, 3, 2, 2)
    assert cloud.dim == 12 and torch.equal(cloud.points, images.flatten(1))
    assert torch.equal(cloud.denoise(x, 0.5), PointCloud(images.flatten(1)).denoise(x, 0.5))
    for shape in ((), (3,), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match="expected"):
            PointCloud(torch.zeros(shape))


def test_no_query_and_no_point():
    assert PointCloud(POINTS).denoise(X[:0], 1.0).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="at least one point"):
        PointCloud(POINTS[:0])


@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 2.0, 4.0])
def test_points_of_unlike_size_in_float32_are_within_the_bound(sigma):
    """Weights that count, where some points are ten times as large as others."""
    points = torch.randn(900, 256, generator=GENERATOR)
    points[::3] /= 10
    x = points[:30].double() + sigma * torch.randn(30, 256, generator=GENERATOR)
    exact = PointCloud(points.double()).posterior(x, sigma)
    found = PointCloud(points).posterior(x, sigma)
    assert torch.equal(found.nearest, exact.nearest)
    assert float((found.log_prob - exact.log_prob).abs().max()) < 1e-3
    assert torch.allclose(found.denoised, exact.denoised, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 0.03])
def test_many_small_points_do_not_hide_a_large_one(sigma):
    """Those near the origin need no second look; one of large norm, as likely as they, does."""
    grey = torch.randint(127, 129, (100, 3072), generator=GENERATOR, dtype=torch.uint8)
    noise = torch.randint(0, 256, (16, 3072), generator=GENERATOR, dtype=torch.uint8)
    cloud = PointCloud(torch.cat([grey, noise]))
    values = from_uint8(cloud.points, torch.float64)
    low, high = 0.4, 0.6  # between them, on the way to a noise image, that weighs a fifth
    for _ in range(60):
        share = (low + high) / 2
        weights = definition(share * values[100:101], values, sigma).exp()
        low, high = (share, high) if weights[0, 100] < 0.2 else (low, share)
    found = cloud.denoise(share * values[100:101], sigma)
    assert torch.allclose(found, weights @ values, rtol=0, atol=2e-3)


class Products(TorchFunctionMode):
    """What factors are rounded to in each matrix product of a block, on CPUs and GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if "matmul" in function.__name__ or "mm" in function.__name__:
            backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
            self.precisions |= {backend.fp32_precision for backend in backends}
        return function(*args, **(kwargs or {}))


def test_a_process_that_rounds_its_products_changes_nothing():
    """At the size and level where bfloat16 factors would show, on CPUs that have them."""
    points = torch.randn(500, 256, generator=GENERATOR)
    x = points[:64].double() + 0.3 * torch.randn(64, 256, generator=GENERATOR)
    expected = PointCloud(points).posterior(x, 2.0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Products() as products:
            found = PointCloud(points).posterior(x, 2.0)
        assert products.precisions == {"ieee"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.denoised, expected.denoised)
    assert torch.equal(found.log_prob, expected.log_prob)


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.1])
def test_many_near_duplicates_in_a_block(sigma):
    """Forty copies of one image, each another pixel off by one level, share the weight rightly."""
    pixels = torch.randint(0, 256, (300, 3072), generator=GENERATOR, dtype=torch.uint8)
    pixels[1:41] = pixels[0]
    pixels[torch.arange(1, 41), torch.arange(1, 41) * 70] ^= 1
    exact = pixels.double() / 127.5 - 1
    noise = torch.randn(3, 3072, generator=GENERATOR, dtype=torch.float64)
    x = exact[torch.tensor([0, 20, 200])] + sigma * noise
    expected = definition(x, exact, sigma)
    found = PointCloud(pixels).posterior(x, sigma)
    weights = expected.exp()
    entropy = -torch.special.xlogy(weights, weights).sum(1)
    assert float(entropy[0]) > 0.1  # several share the weight
    assert torch.allclose(found.entropy, entropy, rtol=0, atol=1e-3)
    assert torch.equal(found.nearest, expected.argmax(1))
    assert torch.allclose(found.denoised, weights @ exact, rtol=0, atol=1e-6)


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


def smooth_pixels(count: int) -> torch.Tensor:
    """Images of soft blotches: uint8 (count, 3072), with squared distances as photographs have."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    blotches = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return (blotches * 256).to(torch.uint8).flatten(1)


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_one_pass_in_float32_keeps_the_log_weights_that_count(sigma, dtype):
    """The density and the nearest point come from the pass that denoises."""
    pixels = smooth_pixels(400)
    cloud = PointCloud(pixels if dtype == torch.uint8 else (pixels / 127.5 - 1), block=150)
    exact = pixels.double() / 127.5 - 1 if dtype == torch.uint8 else cloud.points.double()
    noise = torch.randn(8, 3072, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = (exact[:8] + exact[torch.tensor([0, 1, 2, 3, 14, 15, 16, 17])]) / 2 + sigma * noise
    log_weights = -torch.stack([(row - exact).square().sum(1) for row in x]) / (2 * sigma**2)
    found = cloud.posterior(x, sigma)
    log_prob = log_weights.logsumexp(1) - math.log(400) - 1536 * math.log(2 * math.pi * sigma**2)
    assert float((found.log_prob - log_prob).abs().max()) < 1e-3
    assert torch.equal(found.nearest, log_weights.argmax(1))
    assert torch.allclose(found.denoised, log_weights.softmax(1) @ exact, rtol=0, atol=1e-4)
    by_name = cloud.log_weights(x, sigma)
    assert torch.allclose(by_name, log_weights.log_softmax(1), rtol=1e-12, atol=1e-4)


@pytest.mark.parametrize("copies", [4, 90])
def test_many_copies_of_an_image_share_its_weight(copies):
    """As many times its density as there are copies."""
    pixels = smooth_pixels(100)
    data = torch.cat([pixels[:1].expand(copies, -1), pixels[1:]]) / 127.5 - 1
    noise = torch.randn(1, 3072, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = data[:1].double() + 0.002 * noise
    found = PointCloud(data).posterior(x, 0.002)
    single = PointCloud(data[copies - 1 :]).posterior(x, 0.002)
    assert torch.allclose(found.denoised, data[:1].double(), rtol=0, atol=1e-5)
    gain = float(found.log_prob - single.log_prob) + math.log(len(data) / 100)
    assert gain == pytest.approx(math.log(copies), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_neither_x_nor_the_points_are_changed(dtype):
    data = (POINTS * 50 + 128).clip(0, 255).to(dtype)
    x = X.clone()
    before = data.clone()
    PointCloud(data).posterior(x, 0.5)
    PointCloud(data).log_weights(x, 0.5)
    assert torch.equal(data, before)
    assert torch.equal(x, X)


def test_memory_does_not_grow_with_the_number_of_points():
    def most_bytes(count: int) -> int:
        data = torch.zeros(count, 12, dtype=torch.uint8)
        cloud = PointCloud(data, block=100)
        cloud.denoise(X, 1.0)
        with torch.profiler.profile(profile_memory=True) as profile:
            cloud.denoise(X, 1.0)
        events = profile.profiler.kineto_results.events()
        return max(accumulate(e.nbytes() for e in events if e.name() == "[memory]"))

    assert 0 < most_bytes(4000) <= most_bytes(400)


def test_a_single_point_is_certain():
    found = PointCloud(POINTS[:1]).posterior(X, 80.0)
    assert torch.equal(found.denoised.flatten(1), POINTS[:1].expand(7, -1))
    assert not found.entropy.any()


def test_values_made_without_gradients_serve_with_them():
    cloud = PointCloud(POINTS)
    with torch.inference_mode():
        inside = cloud.denoise(X, 0.5)
    assert torch.equal(cloud.denoise(X.clone().requires_grad_(), 0.5).detach(), inside)
