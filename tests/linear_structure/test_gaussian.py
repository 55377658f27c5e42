"""Theorems of the Gaussian: its denoiser, its flow and its density agree with each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal

from linear_structure.denoise import Position, score, slope
from linear_structure.gaussian import Gaussian, Isotropic, guided
from linear_structure.sampling.processes import VP, SubVP
from linear_structure.system.errors import UsageError

DIM = 6
LEVELS = (80.0, 3.0, 0.2)


def gaussian(rank: int) -> Gaussian:
    generator = torch.Generator().manual_seed(rank)
    square = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(square)
    mean = torch.linspace(-0.5, 0.5, DIM, dtype=torch.float64)
    return Gaussian(mean, basis[:, :rank], torch.logspace(0, -2, rank, dtype=torch.float64))


MODELS = [gaussian(DIM), gaussian(2), gaussian(0), Isotropic(gaussian(0).mean, 0.4)]
MODELS += [Isotropic(gaussian(0).mean)]
NAMES = ["full rank", "rank 2", "a point", "isotropic", "isotropic point"]


@pytest.fixture(params=MODELS, ids=NAMES)
def model(request):
    return request.param


@pytest.fixture
def x():
    return torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(9)).double()


def test_flow_composes(model, x):
    a, b, c = LEVELS
    direct = model.flow(x, a, c)
    assert torch.allclose(model.flow(model.flow(x, a, b), b, c), direct, rtol=0, atol=1e-13)
    assert torch.allclose(model.flow(x, b, b), x, rtol=0, atol=1e-14)


def test_flow_is_reversible(model, x):
    there = model.flow(x, 3.0, 0.2)
    assert torch.allclose(model.flow(there, 0.2, 3.0), x, rtol=0, atol=1e-12)


def test_flow_solves_the_ode(model, x):
    def rate(sigma, flat):
        return slope(model.denoise, torch.from_numpy(flat).view(x.shape), sigma).numpy().ravel()

    solved = solve_ivp(rate, (5.0, 0.1), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    end = torch.from_numpy(solved.y[:, -1]).view(x.shape)
    assert torch.allclose(model.flow(x, 5.0, 0.1), end, rtol=0, atol=1e-8)


def test_denoised_along_the_flow(model, x):
    for sigma in (40.0, 1.0, 0.01):
        expected = model.denoise(model.flow(x, 80.0, sigma), sigma)
        along = model.denoised_along(x, 80.0, sigma)
        assert torch.allclose(along, expected, rtol=0, atol=1e-13)


def test_score_is_the_gradient_of_the_log_density(model, x):
    x.requires_grad_()
    for sigma in (0.1, 1.0, 30.0):
        (gradient,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x)
        assert torch.allclose(score(model.denoise, x, sigma), gradient, rtol=1e-9, atol=1e-9)


def test_score_is_a_finite_difference(model, x):
    sigma, h = 0.5, 1e-5
    step = torch.zeros_like(x)
    step[:, 0, 1, 1] = h
    slope_there = (model.log_prob(x + step, sigma) - model.log_prob(x - step, sigma)) / (2 * h)
    assert torch.allclose(score(model.denoise, x, sigma)[:, 0, 1, 1], slope_there, atol=1e-7)


@pytest.mark.parametrize("rank", [DIM, 2, 0])
def test_log_prob_is_scipys(rank, x):
    g = gaussian(rank)
    covariance = (g.basis * g.eigenvalues) @ g.basis.T + 0.3**2 * torch.eye(DIM).double()
    theirs = multivariate_normal(g.mean.numpy(), covariance.numpy()).logpdf(x.flatten(1).numpy())
    np.testing.assert_allclose(g.log_prob(x, 0.3).numpy(), theirs, rtol=1e-11)


def test_isotropic_is_a_gaussian_of_equal_variances(x):
    mean = torch.linspace(-1, 1, DIM, dtype=torch.float64)
    isotropic = Isotropic(mean, 0.6)
    same = Gaussian(mean, torch.eye(DIM).double(), torch.full((DIM,), 0.36, dtype=torch.float64))
    for sigma in LEVELS:
        assert torch.allclose(isotropic.denoise(x, sigma), same.denoise(x, sigma), atol=1e-13)
        assert torch.allclose(isotropic.log_prob(x, sigma), same.log_prob(x, sigma), rtol=1e-12)
    assert torch.allclose(isotropic.flow(x, 3.0, 0.1), same.flow(x, 3.0, 0.1), atol=1e-13)


def test_each_sample_has_its_own_sigma(model, x):
    start = torch.tensor([80.0, 5.0, 1.0, 0.5], dtype=torch.float64)
    stop = start / torch.tensor([2.0, 1.0, 10.0, 3.0], dtype=torch.float64)
    flows = [model.flow(x[i : i + 1], start[i], stop[i]) for i in range(4)]
    assert torch.allclose(model.flow(x, start, stop), torch.cat(flows), rtol=0, atol=1e-14)
    images = [model.denoise(x[i : i + 1], stop[i]) for i in range(4)]
    assert torch.allclose(model.denoise(x, stop), torch.cat(images), rtol=0, atol=1e-14)
    values = [model.log_prob(x[i : i + 1], stop[i]) for i in range(4)]
    assert torch.allclose(model.log_prob(x, stop), torch.cat(values), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_are_those_of_x(model, x, dtype):
    x = x.to(dtype)
    for made in (model.denoise(x, 1.0), model.flow(x, 2.0, 1.0), model.denoised_along(x, 2.0, 1.0)):
        assert made.dtype == dtype and made.shape == x.shape


def test_samples_have_the_moments(x):
    g = gaussian(2)
    drawn = g.sample(200_000, 0.5, torch.Generator().manual_seed(0))
    covariance = (g.basis * g.eigenvalues) @ g.basis.T + 0.25 * torch.eye(DIM).double()
    assert torch.allclose(drawn.mean(0), g.mean, atol=0.01)
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=0.02)


def test_the_flow_maps_one_marginal_to_the_other():
    """Samples of the data noised to 3, carried to 0.2, have the covariance noised to 0.2."""
    g = gaussian(2)
    drawn = g.sample(200_000, 3.0, torch.Generator().manual_seed(0))
    carried = g.flow(drawn, 3.0, 0.2)
    covariance = (g.basis * g.eigenvalues) @ g.basis.T + 0.04 * torch.eye(DIM).double()
    assert torch.allclose(torch.cov(carried.T), covariance, atol=0.02)


def test_the_rank_rule_and_the_rank():
    g = gaussian(2)
    covariance = (g.basis * g.eigenvalues) @ g.basis.T
    found = Gaussian.from_covariance(g.mean, covariance)
    assert torch.allclose(found.eigenvalues, g.eigenvalues, rtol=1e-12)
    assert torch.allclose((found.basis * found.eigenvalues) @ found.basis.T, covariance, atol=1e-15)
    assert Gaussian.from_covariance(g.mean, covariance, rank=1).basis.shape == (DIM, 1)
    with pytest.raises(ValueError, match="NaN"):
        Gaussian.from_covariance(g.mean, covariance * torch.nan)


def test_fewer_samples_than_dimensions_give_the_same_by_the_gram_matrix():
    samples = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = Gaussian.from_samples(samples)
    direct = Gaussian.from_covariance(samples.mean(0), torch.cov(samples.T))
    assert gram.basis.shape == (20, 4)
    assert torch.allclose(gram.eigenvalues, direct.eigenvalues[:4], rtol=1e-12)
    projectors = [g.basis[:, :4] @ g.basis[:, :4].T for g in (gram, direct)]
    assert torch.allclose(*projectors, atol=1e-12)


def test_no_density_and_no_flow_where_there_is_none(x):
    with pytest.raises(ValueError, match="no density"):
        gaussian(2).log_prob(x, 0.0)
    assert bool(torch.isfinite(gaussian(DIM).log_prob(x, 0.0)).all())
    for singular in (gaussian(2), Isotropic(gaussian(0).mean)):
        with pytest.raises(ValueError, match="sigma > 0"):
            singular.flow(x, 0.0, 1.0)
    with pytest.raises(ValueError, match="no density"):
        Isotropic(gaussian(0).mean).log_prob(x, 0.0)


def test_off_the_manifold_the_flow_scales_with_sigma(x):
    g = gaussian(2)
    outside = torch.eye(DIM, dtype=torch.float64) - g.basis @ g.basis.T
    before, after = ((y.flatten(1) - g.mean) @ outside for y in (80 * x, g.flow(80 * x, 80.0, 0.5)))
    assert torch.allclose(after, before * 0.5 / 80, rtol=1e-12, atol=0)
    assert bool((before.norm(dim=1) > 1).all())


def test_the_rank_rule_is_relative_to_the_largest():
    eigenvalues = torch.tensor([4.0, 1.0, 4.1e-12, 3.9e-12, 0.0, -1e-15], dtype=torch.float64)
    kept = Gaussian(torch.zeros(DIM), torch.eye(DIM), eigenvalues).truncated()
    assert torch.equal(kept.eigenvalues, eigenvalues[:3])
    assert kept.basis.shape == (DIM, 3)


def test_a_covariance_is_destroyed_only_on_request():
    root = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance, mean = root @ root.T, torch.zeros(DIM, dtype=torch.float64)
    before = covariance.clone()
    found = Gaussian.from_covariance(mean, covariance)
    assert torch.equal(covariance, before)
    again = Gaussian.from_covariance(mean, covariance, overwrite=True)
    assert torch.equal(again.eigenvalues, found.eigenvalues)
    assert torch.equal(again.basis, found.basis)


@pytest.mark.parametrize("count", [1, 2, DIM - 1, DIM, DIM + 1, 40])
def test_samples_give_the_gaussian_of_their_covariance(count):
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(0)) + 3
    found = Gaussian.from_samples(drawn)
    covariance = np.cov(drawn.double().numpy().T) if count > 1 else np.zeros((DIM, DIM))
    assert len(found.eigenvalues) == min(count - 1, DIM)
    rebuilt = (found.basis * found.eigenvalues) @ found.basis.T
    np.testing.assert_allclose(rebuilt.numpy(), covariance, rtol=0, atol=1e-14)
    identity = torch.eye(len(found.eigenvalues), dtype=torch.float64)
    assert torch.allclose(found.basis.T @ found.basis, identity, rtol=0, atol=1e-12)


def test_a_model_as_files_keep_it_samples_in_the_precision_of_its_mean():
    g = gaussian(2)
    kept = Gaussian(g.mean, g.basis.float(), g.eigenvalues)
    drawn = [m.sample(3, 0.1, torch.Generator().manual_seed(0)) for m in (kept, g)]
    assert drawn[0].dtype == torch.float64
    assert torch.allclose(*drawn, rtol=0, atol=1e-6)


def test_a_flow_that_starts_at_no_noise_for_one_sample_is_refused(model, x):
    start = torch.tensor([80.0, 5.0, 0.0, 0.5])
    for call in (model.flow, model.denoised_along):
        with pytest.raises(ValueError, match="starts at sigma > 0"):
            call(x, start, 1.0)


def test_another_number_of_sigmas_is_refused(model, x):
    for call in (model.denoise, model.log_prob, lambda x, s: model.flow(x, 80.0, s)):
        with pytest.raises(ValueError, match="one for each"):
            call(x, torch.ones(3))


def test_few_samples_are_refused_as_many_are_where_they_hold_nan():
    samples = torch.zeros(3, 8)
    samples[1, 2] = torch.nan
    for wrong in (samples, samples[:0], samples.repeat(4, 1)):
        with pytest.raises(ValueError, match="NaN"):
            Gaussian.from_samples(wrong)


def test_a_point_denoises_to_itself_without_noise():
    point, x = Isotropic(torch.ones(4).double()), torch.zeros(2, 4).double()
    assert torch.equal(point.denoise(x, 0.0), torch.ones(2, 4).double())
    assert torch.equal(point.denoised_along(x, 80.0, 0.0), torch.ones(2, 4).double())


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_squared_error_is_the_mean_over_the_noise(model, x, sigma):
    """It is quadratic in the noise, so 2 D vectors with the noise's mean and covariance suffice."""
    unit = DIM**0.5 * torch.eye(DIM).double()
    for scale in (1.0, 0.3):
        at = Position(scale, sigma)
        noisy = scale * x.flatten(1)[:, None] + sigma * torch.cat([unit, -unit])
        denoised = model.denoise(noisy.flatten(0, 1), at).view_as(noisy)
        expected = (denoised - x.flatten(1)[:, None]).square().sum(2).mean(1)
        assert torch.allclose(model.squared_error(x, at), expected, rtol=1e-12)
        if scale == 1:
            assert torch.equal(model.squared_error(x, sigma), model.squared_error(x, at))


def test_the_squared_error_without_noise_is_0_where_nothing_varies_too(x):
    full = Gaussian(torch.zeros(DIM).double(), torch.eye(DIM).double(), torch.arange(DIM).double())
    assert torch.equal(full.squared_error(x, 0.0)[:, None], x.flatten(1)[:, :1].square())


@pytest.mark.parametrize("least", [0.0, -1e-9])
def test_a_direction_without_spread_is_its_mean_without_noise_too(x, least):
    """Of the eigenvalues that a decomposition in float32 leaves below 0 as well."""
    eigenvalues, mean = torch.ones(DIM), torch.full((DIM,), 0.5)
    eigenvalues[-1] = least
    full, flat = Gaussian(mean, torch.eye(DIM), eigenvalues), x.flatten(1).float()
    for sigma in (0.0, 1e-5):
        assert torch.equal(full.denoise(flat, sigma)[:, -1], mean[-1:].expand(len(x)))
    if not least:
        along = full.denoised_along(flat, 2.0, 0.0)
        assert torch.allclose(along, full.denoise(full.flow(flat, 2.0, 0.0), 0.0), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", [80.0, 300.0, 700.0, 1000.0])
def test_half_precision_is_rounded_once_and_squares_nothing_in_it(model, x, dtype, sigma):
    """From sigma 256 on float16 holds no variance; pipelines of videos begin at 700."""
    rounded, bound = (sigma * x).to(dtype), torch.finfo(dtype).eps / 2
    found = {
        "denoise": lambda y: model.denoise(y, sigma),
        "flow": lambda y: model.flow(y, sigma, 3.0),
        "along": lambda y: model.denoised_along(y, sigma, 3.0),
        "posterior": lambda y: model.posterior(y, sigma).denoised,
    }
    for name, of in found.items():
        exact, half = of(rounded.double()), of(rounded)
        assert half.dtype == dtype, name
        off = (half.double() - exact).abs()
        assert bool((off <= 1.01 * bound * exact.abs() + 1e-6).all()), name
    assert torch.allclose(
        model.log_prob(rounded, sigma).double(), model.log_prob(rounded.double(), sigma), rtol=1e-5
    )


def test_squared_errors_at_a_batch_of_levels_are_those_at_each(model, x):
    levels = torch.tensor([0.1, 0.5, 2.0, 8.0])
    expected = [model.squared_error(row[None], s) for row, s in zip(x, levels, strict=True)]
    assert torch.allclose(model.squared_error(x, levels), torch.cat(expected), rtol=1e-12)


def test_the_squared_error_on_other_images(digits):
    """Of the Gaussian of every second digit on the others at sigma 1: 9.522 +- 0.014 by samples."""
    other = Gaussian.from_samples(digits[::2]).squared_error(digits[1::2], 1.0).mean()
    assert f"{float(other):.3f}" == "9.537"


@pytest.mark.parametrize("count", [3, 50])
def test_images_are_samples(count):
    images = torch.randn(count, 3, 2, 2, dtype=torch.float64)
    a, b = Gaussian.from_samples(images), Gaussian.from_samples(images.flatten(1))
    assert torch.equal(a.mean, b.mean) and torch.equal(a.eigenvalues, b.eigenvalues)
    assert torch.equal(a.basis, b.basis) and a.dim == 12


A, B = torch.tensor([1.0, 0.9, 0.3, 0.02]).double(), torch.tensor([0.1, 0.4, 0.9, 1.0]).double()


def test_sigma_alone_is_a_position_of_scale_1(model, x):
    levels = [(3.0, Position(1.0, 3.0)), (B, Position(torch.ones(4).double(), B))]
    for sigma, at in levels:
        for call in (model.denoise, model.log_prob, model.draw):
            assert torch.equal(call(x, at), call(x, sigma))
        for call in (model.flow, model.denoised_along):
            assert torch.equal(call(x, at, Position(1.0, 0.2)), call(x, sigma, 0.2))


def test_a_scaled_state_is_the_state_at_its_own_level(model, x):
    sigma, scale = B / A, A.view(-1, 1, 1, 1)
    at, stop = Position(A, B), Position(0.5, 0.7)
    y = x * scale
    assert torch.allclose(model.denoise(y, at), model.denoise(x, sigma), rtol=0, atol=1e-13)
    expected = model.log_prob(x, sigma) - DIM * A.log()
    assert torch.allclose(model.log_prob(y, at), expected, rtol=1e-12)
    expected = 0.5 * model.flow(x, sigma, 1.4)
    assert torch.allclose(model.flow(y, at, stop), expected, rtol=0, atol=1e-12)
    along = model.denoised_along(x, sigma, 1.4)
    assert torch.allclose(model.denoised_along(y, at, stop), along, rtol=0, atol=1e-13)


@pytest.mark.parametrize("process", [VP(), SubVP()])
def test_the_flow_of_a_process_is_the_flow_in_its_coordinates(model, x, process):
    start, stop = (process.sigma(torch.tensor(t, dtype=torch.float64)) for t in (0.9, 0.2))
    scaled = process.scale(start) * x
    expected = process.scale(stop) * model.flow(x, start, stop)
    found = model.flow(scaled, process.position(start), process.position(stop))
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_flow_matching_starts_where_no_signal_is_left(model, x):
    """`dx/dt = (x - D) / t` of `x = (1 - t) x_0 + t eps`, solved from t = 1, where a = 0."""

    def rate(t, flat):
        y = torch.from_numpy(flat).view(x.shape)
        return ((y - model.denoise(y, Position(1 - t, t))) / t).numpy().ravel()

    solved = solve_ivp(rate, (1, 0.1), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    end = torch.from_numpy(solved.y[:, -1]).view(x.shape)
    start, stop = Position(0.0, 1.0), Position(0.9, 0.1)
    assert torch.allclose(model.flow(x, start, stop), end, rtol=0, atol=1e-8)
    assert torch.allclose(model.denoise(x, start).flatten(1), model.mean.expand(4, -1), atol=1e-15)
    half = model.flow(x, start, Position(0.5, 0.5))
    onward = model.flow(half, Position(0.5, 0.5), stop)
    assert torch.allclose(onward, model.flow(x, start, stop), rtol=0, atol=1e-13)


@pytest.mark.parametrize("at", [Position(1.0, 2.0), Position(0.6, 0.8), Position(0.07, 0.998), 0.3])
def test_draws_have_the_moments_of_the_noised_data(model, at):
    """The map is linear in the noise: its columns give the covariance without sampling."""
    a, b = at if isinstance(at, Position) else (1.0, at)
    center = model.draw(torch.zeros(1, DIM).double(), at)
    columns = model.draw(torch.eye(DIM).double(), at) - center
    if isinstance(model, Isotropic):
        spread = model.s0**2 * torch.eye(DIM).double()
    else:
        spread = (model.basis * model.eigenvalues) @ model.basis.T
    covariance = a**2 * spread + b**2 * torch.eye(DIM).double()
    assert torch.allclose(columns @ columns.T, covariance, rtol=0, atol=1e-13)
    assert torch.allclose(center[0], a * model.mean, rtol=0, atol=1e-14)


def test_a_draw_has_the_spread_that_a_start_from_pure_noise_lacks():
    """Stable Diffusion 2.1: its largest variance is 3072, its first level 14.6."""
    g = Gaussian(torch.zeros(1), torch.eye(1), torch.tensor([3072.0])).to(torch.zeros(1).double())
    one, last = torch.ones(1, 1).double(), 1e-4
    kept = g.flow(14.6 * one, 14.6, last) / g.flow(g.draw(one, 14.6), 14.6, last)
    assert f"{float(kept):.2f}" == "0.25"
    assert torch.allclose(g.draw(one, last), g.flow(g.draw(one, 14.6), 14.6, last))


@pytest.mark.parametrize("at", [3.0, Position(0.0, 1.0), Position(0.3, 0.7)])
def test_guidance_moves_the_mean(model, at):
    """By the definition of guidance, of denoisers; 1 is the conditional model, 0 the other."""
    other, x = replace(model, mean=model.mean + 1), torch.linspace(-9, 9, 4 * DIM).double()
    x, denoised = x.view(4, DIM), model.denoise(x.view(4, DIM), at)
    expected = denoised + 7.5 * (other.denoise(x, at) - denoised)
    torch.testing.assert_close(guided(other, model, 7.5).denoise(x, at), expected)
    assert torch.equal(guided(other, model, 0.0).mean, model.mean)


def test_guidance_by_another_covariance_has_no_closed_form():
    model = gaussian(2)
    for other in (gaussian(3), model.rescale(2.0), Isotropic(model.mean, 0.4)):
        with pytest.raises(UsageError, match="expected one covariance"):
            guided(other, model, 2.0)
