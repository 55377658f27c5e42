"""Langevin dynamics: golden runs, exact variances, what it leaves as it is, counts and slices."""

import math

import pytest
import torch
from walks import doubles, same, stub

from linear_structure.data.plane import mixture
from linear_structure.sampling.grids import ve_grid
from linear_structure.sampling.langevin import Corrector, annealed, cosine_steps, langevin
from linear_structure.sampling.processes import VP
from linear_structure.sampling.samplers import discard, final
from linear_structure.sampling.scales import variance_after
from linear_structure.sampling.seeds import Seeds


def start(count, dim):
    generator = torch.Generator().manual_seed(1)
    return 5 * torch.randn(count, dim, generator=generator, dtype=torch.float64)


def test_the_annealed_run_is_the_golden_one(golden, g4, recorded):
    walk = annealed(g4.denoise, 5 * golden["run_x0"], golden["run_sigmas"], 5, 0.1, recorded)
    expected = golden["run_annealed_T5_r0.1"]
    assert torch.allclose(final(walk), expected, rtol=1e-10, atol=1e-10)


def test_the_annealed_run_is_the_published_loop():
    """Song and Ermon 2020, algorithm 1: steps of `eps (sigma / sigma_L)^2`, 19 levels of 5."""
    eps, sigmas, x = 6.2e-6, ve_grid(19, 0.01, 50.0), start(3, 4)
    score = lambda x, sigma: (stub(x, sigma) - x) / sigma**2  # noqa: E731
    lowest = sigmas[-2]
    ours = final(annealed(stub, x, sigmas, 5, float(eps / lowest**2), Seeds.of(range(3)).noise))
    noise = Seeds.of(range(3)).noise
    for sigma in sigmas[:-1]:
        step = eps * (sigma / lowest) ** 2
        for _ in range(5):
            x = x + step * score(x, sigma) + noise(x) * (2 * step).sqrt()
    x = x + lowest**2 * score(x, lowest)
    assert torch.allclose(ours, x, rtol=0, atol=1e-13 * float(x.abs().max()))


@pytest.mark.parametrize("norms", ["level", "batch"])
def test_a_corrector_is_the_published_one_of_the_scaled_state(norms):
    """Song et al. 2021, algorithm 5, or with the standard deviation of the noise for a ratio of
    norms: a step `x_t + h score + sqrt(2 h) n` in VP's own coordinates."""
    sigma, alpha, x, ratio = doubles(0.7)[0], doubles(0.9)[0], start(3, 4), 0.2
    n, s = Seeds.of(range(3)).noise(x), VP().scale(sigma)
    score = (stub(x, sigma) - x) / (s * sigma**2)
    mean_norm = lambda values: values.square().sum(1).sqrt().mean()  # noqa: E731
    size = s * sigma if norms == "level" else mean_norm(n) / mean_norm(score)
    h = 2 * alpha * (ratio * size) ** 2
    expected = (s * x + h * score + (2 * h).sqrt() * n) / s
    walk = Corrector(ratio, norms=norms).walk(stub, x, sigma, alpha, lambda x: n)
    next(walk)
    with pytest.raises(StopIteration) as end:
        next(walk)
    assert torch.allclose(end.value.value, expected, rtol=1e-13)


def test_a_small_step_keeps_the_variance_of_a_gaussian(one_source_each):
    """From V it goes to (1 - h/V)^2 V + 2h = V + h^2/V, and stays at V / (1 - h / 2V)."""
    lam, sigma, h = doubles(4, 1, 0.05), doubles(0.3)[0], 0.02
    whole = lam + sigma**2
    denoise = lambda x, sigma: lam / (lam + sigma**2) * x  # noqa: E731
    x, noise = one_source_each(whole, 1)
    once = final(langevin(denoise, x, sigma, doubles(h), noise)).square().sum(0)
    assert torch.allclose(once, whole + h**2 / whole, rtol=1e-12)
    settled = whole / (1 - h / (2 * whole))
    x, noise = one_source_each(settled, 5)
    later = final(langevin(denoise, x, sigma, torch.full((5,), h), noise)).square().sum(0)
    assert torch.allclose(later, settled, rtol=1e-6)


@pytest.mark.parametrize(("ratio", "steps"), [(0.0618, 5), (0.01, 5), (0.2, 3)])
def test_steps_at_a_level_reach_the_variance_of_technique_4(one_source_each, ratio, steps):
    """Of data that are a point, from the level above."""
    gamma, sigma = 1.4, 0.3
    x, noise = one_source_each(doubles(1) * (gamma * sigma) ** 2, steps)
    sigmas = doubles(sigma, 0)
    walk = list(annealed(lambda x, sigma: torch.zeros_like(x), x, sigmas, steps, ratio, noise))
    reached = float(walk[-2].x.square().sum()) / sigma**2
    assert reached == pytest.approx(variance_after(ratio, gamma, steps), rel=1e-12)


def test_a_corrector_by_level_is_a_langevin_step():
    sigma, x = doubles(0.7)[0], start(2, 3)
    walk = Corrector(ratio=0.2, steps=3).walk(stub, x, sigma, doubles(0.9)[0], torch.ones_like)
    h = 2 * 0.9 * (0.2 * sigma) ** 2
    *_, last = langevin(stub, x, sigma, h.expand(3), torch.ones_like)
    steps = []
    with pytest.raises(StopIteration) as end:
        while True:
            steps.append(next(walk))
    assert len(steps) == 3
    assert torch.allclose(end.value.value, last.x, rtol=1e-13)


def test_cosine_steps_fall_from_one():
    steps = cosine_steps(1000)
    assert torch.allclose(
        steps[[0, 250, 500, 750]], doubles(1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5)
    )
    assert (steps.diff() < 0).all()
    assert float(cosine_steps(1)) == 1


def test_langevin_with_the_exact_score_samples_the_mixture(total_variation):
    """10,000 particles from N(0, I): the mean is three standard errors (0.054) and what 1000 steps
    leave of the start (0.02) from the truth or less. After 100 steps more is left of it, of which
    the total variation, within a tenth of that of two exact samples, tells nothing."""
    generator = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def sampled(count):
        x = noise(torch.empty(10_000, 2, dtype=torch.float64))
        return final(langevin(mixture().denoise, x, doubles(1e-4)[0], cosine_steps(count), noise))

    mean, covariance = doubles(0.2, 1.4), torch.stack([doubles(3.26, 0.72), doubles(0.72, 2.44)])
    few, x = sampled(100), sampled(1000)
    truth, other = (mixture().sample(10_000, generator=generator) for _ in range(2))
    floor = total_variation(truth, other)
    assert max(total_variation(few, truth), total_variation(x, truth)) < 1.1 * floor
    assert float((few.mean(0) - mean).norm()) > 0.1
    assert torch.allclose(x.mean(0), mean, rtol=0, atol=0.075)
    assert torch.allclose(x.T.cov(), covariance, rtol=0, atol=0.14)


def test_annealed_with_the_exact_score_samples_the_mixture(total_variation):
    """20,000 particles down the tutorial's 100 levels, 5 to 0.001. Its total variation, 0.127, is
    that of two exact samples; its steps are not known here. Three at each level, of 0.8 of its
    variance, come as near; of 0.1, they leave variances 23 % and 41 % too large."""
    generator = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    x, model = 5 * noise(torch.empty(20_000, 2, dtype=torch.float64)), mixture()
    x = final(annealed(model.denoise, x, ve_grid(100, 0.001, 5.0), 3, 0.8, noise))
    truth, other = (model.sample(20_000, generator=generator) for _ in range(2))
    found = total_variation(x, truth)
    assert found == pytest.approx(0.127, rel=0.1)
    assert found < 1.1 * total_variation(truth, other)
    assert torch.allclose(x.mean(0), doubles(0.2, 1.4), rtol=0, atol=0.06)
    covariance = torch.stack([doubles(3.26, 0.72), doubles(0.72, 2.44)])
    assert torch.allclose(x.T.cov(), covariance, rtol=0, atol=0.12)


@pytest.mark.parametrize("steps", [1, 3])
def test_annealed_steps_their_cost_and_their_noise(steps):
    sigmas, calls, draws = ve_grid(6, 0.02, 5.0), [], []
    denoise = lambda x, sigma: calls.append(sigma) or stub(x, sigma)  # noqa: E731
    noise = lambda x: draws.append(x) or torch.ones_like(x)  # noqa: E731
    walk = list(annealed(denoise, start(2, 3).float(), sigmas, steps, 0.1, noise))
    expected = torch.cat([sigmas[:-1].repeat_interleave(steps), sigmas[-2:-1]])
    assert torch.equal(torch.stack(calls), expected)
    assert torch.equal(
        torch.stack([step.sigma for step in walk]), torch.cat([expected, sigmas[-1:]])
    )
    assert (len(walk), len(draws)) == (6 * steps + 2, 6 * steps)
    assert all(torch.equal(step.denoised, stub(step.x, step.sigma)) for step in walk[:-1])
    assert walk[-1].denoised is walk[-1].x
    assert torch.equal(walk[-1].x, walk[-2].denoised)


def test_langevin_steps_and_their_cost():
    calls = []
    denoise = lambda x, sigma: calls.append(sigma) or stub(x, sigma)  # noqa: E731
    walk = list(langevin(denoise, start(2, 3), doubles(0.5)[0], cosine_steps(7), torch.ones_like))
    assert (len(walk), len(calls)) == (8, 7)
    assert all(step.sigma == 0.5 for step in walk)
    assert walk[-1].denoised is walk[-1].x


@pytest.mark.parametrize("k", [0, 1, 5, 8, 9])
def test_a_sliced_grid_gives_the_rest_of_the_trajectory(k):
    x, sigmas, steps = start(3, 4), ve_grid(9, 0.02, 5.0), 3
    full = list(annealed(stub, x, sigmas, steps, 0.1, Seeds.of(range(3)).noise))
    if k == 9:
        (step,) = annealed(stub, full[-1].x, sigmas[k:], steps, 0.1, Seeds.of(range(3)).noise)
        assert torch.equal(step.x, full[-1].x)
        return
    noise = Seeds.of(range(3)).noise
    discard(noise, x, k * steps)
    assert same(annealed(stub, full[k * steps].x, sigmas[k:], steps, 0.1, noise), full[k * steps :])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda: list(annealed(stub, start(2, 3), ve_grid(3, 1, 2), 0, 0.1, torch.ones_like)),
            "steps is 0",
        ),
        (
            lambda: list(annealed(stub, start(2, 3), ve_grid(3, 1, 2), 2, 1.0, torch.ones_like)),
            "ratio is 1.0",
        ),
        (
            lambda: list(annealed(stub, start(2, 3), doubles(2, 1), 2, 0.1, torch.ones_like)),
            "a final 0",
        ),
        (lambda: cosine_steps(0), "steps is 0"),
        (lambda: Corrector(ratio=0.0), "ratio is 0.0: expected a number between 0 and 1"),
        (lambda: Corrector(ratio=math.nan), "ratio is nan"),
        (lambda: Corrector(steps=0), "steps is 0"),
        (lambda: Corrector(norms="sample"), "norms is 'sample': expected 'level' or 'batch'"),
    ],
)
def test_mistakes_are_refused(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()
