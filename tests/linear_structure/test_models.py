"""What all models share: samples, density, denoiser and posterior agree with each other."""

import pytest
import torch
from torch import Tensor

from linear_structure.denoise import Model, Posterior, score
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud

DIM, COUNT = 2, 100_000
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
TURN = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
LAM = torch.tensor([0.5, 0.1], dtype=torch.float64)
WIDE, LINE = Gaussian(MEAN, TURN, LAM), Gaussian(-MEAN, TURN[:, :1], LAM[:1])
POINT = Gaussian(MEAN + 1, TURN[:, :0], LAM[:0])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
POINTS = torch.tensor([[0.0, 1.0], [0.5, 0.5], [-1.0, 0.25]], dtype=torch.float64)
PIXELS = torch.tensor([[0, 255], [128, 128], [20, 200], [20, 200]], dtype=torch.uint8)
MODELS = {
    "full rank": WIDE,
    "rank 1": LINE,
    "isotropic": Isotropic(MEAN, 0.4),
    "isotropic point": Isotropic(MEAN),
    "mixture": GaussianMixture(WEIGHTS, (WIDE, LINE, POINT)),
    "points": PointCloud(POINTS),
    "pixels": PointCloud(PIXELS),
}
SINGULAR = MODELS.keys() - {"full rank", "isotropic"}
X = torch.randn(5, 1, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    return MODELS[request.param]


def second_moments(model: Model) -> tuple[Tensor, Tensor]:
    """Mean (D,) and mean square (D, D) of the data, by the definition of each kind."""
    match model:
        case Gaussian(mean, basis, eigenvalues):
            return mean, mean.outer(mean) + basis @ eigenvalues.diag() @ basis.T
        case Isotropic(mean, s0):
            return mean, mean.outer(mean) + s0**2 * torch.eye(DIM).double()
        case GaussianMixture(weights, components):
            parts = zip(weights, map(second_moments, components), strict=True)
            means, squares = zip(*((w * m, w * s) for w, (m, s) in parts), strict=True)
            return sum(means), sum(squares)
        case PointCloud(points):
            y = from_uint8(points, torch.float64) if points.dtype == torch.uint8 else points
            return y.mean(0), y.T @ y / len(y)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_samples_have_the_moments_of_the_model(model, sigma):
    """Each first and second moment lies within 5 standard errors, and 1e-6 where all are alike."""
    drawn = model.sample(COUNT, sigma, torch.Generator().manual_seed(1)).double()
    mean, square = second_moments(model)
    found = torch.cat([drawn, (drawn[:, :, None] * drawn[:, None]).flatten(1)], 1)
    expected = torch.cat([mean, (square + sigma**2 * torch.eye(DIM)).flatten()])
    error = found.std(0) / COUNT**0.5
    assert bool(((found.mean(0) - expected).abs() <= 5 * error + 1e-6).all())


def test_samples_depend_on_the_generator_alone(model):
    state = torch.get_rng_state()
    one, same, other = (
        model.sample(20, 0.5, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == (20, model.dim) == (20, DIM)
    assert model.sample(0).shape == (0, DIM)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_model(model, dtype):
    moved = model.to(X.to(dtype))
    kept = isinstance(model, PointCloud)  # points keep theirs, and pixels are given as float32
    expected = torch.promote_types(model.points.dtype, torch.float32) if kept else dtype
    assert moved.sample(3).dtype == expected


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_density_integrates_to_one(model, sigma):
    """By the trapezoidal rule, which is all but exact for a smooth density within its grid."""
    axis, step = torch.linspace(-9, 9, 241, dtype=torch.float64), 18 / 240
    grid = torch.cartesian_prod(axis, axis)
    assert float(model.log_prob(grid, sigma).exp().sum()) * step**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_the_denoiser_is_the_gradient_of_the_log_density(model, sigma):
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(model.denoise(x, sigma), x + sigma**2 * gradient)
    torch.testing.assert_close(score(model.denoise, x, sigma), gradient, rtol=1e-6, atol=1e-6)


def test_the_posterior_is_the_denoiser_and_the_density(model):
    sigma = torch.tensor([0.1, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)
    found = model.posterior(X, sigma)
    torch.testing.assert_close(found.denoised, model.denoise(X, sigma), rtol=1e-13, atol=1e-13)
    assert torch.equal(found.log_prob, model.log_prob(X, sigma))
    assert found.denoised.shape == X.shape and found.log_prob.shape == (5,)
    known = {name for name, value in vars(found).items() if value is not None}
    extra = {"mixture": {"responsibilities"}, "pointcloud": {"entropy", "nearest"}}
    assert known == {"denoised", "log_prob"} | extra.get(model.kind, set())


def test_without_noise_a_density_is_only_where_the_covariance_has_full_rank():
    for name, model in MODELS.items():
        if name in SINGULAR:
            with pytest.raises(ValueError, match="no density"):
                model.log_prob(X, 0.0)
        else:
            assert bool(torch.isfinite(model.log_prob(X)).all())


@pytest.mark.parametrize("gaussian", [WIDE, LINE, POINT])
def test_a_mixture_of_one_component_is_the_gaussian(gaussian):
    single = GaussianMixture(torch.ones(1, dtype=torch.float64), (gaussian,))
    found, expected = single.posterior(X, 0.4), gaussian.posterior(X, 0.4)
    torch.testing.assert_close(found.denoised, expected.denoised, rtol=0, atol=1e-14)
    assert torch.equal(found.log_prob, expected.log_prob)
    assert torch.equal(found.responsibilities, torch.ones(5, 1, dtype=torch.float64))
    assert single.dim == gaussian.dim


@pytest.mark.parametrize("sigma", [0.2, 1.0, 10.0])
def test_a_mixture_of_points_is_the_point_cloud(sigma):
    components = tuple(Gaussian(point, TURN[:, :0], LAM[:0]) for point in POINTS)
    mixture = GaussianMixture(torch.full((3,), 1 / 3, dtype=torch.float64), components)
    found, expected = mixture.posterior(X, sigma), PointCloud(POINTS).posterior(X, sigma)
    weights = found.responsibilities
    entropy = -torch.special.xlogy(weights, weights).sum(1)
    as_points = Posterior(found.denoised, found.log_prob, entropy, weights.argmax(1))
    for name in ("denoised", "log_prob", "entropy", "nearest"):
        torch.testing.assert_close(getattr(as_points, name), getattr(expected, name))
