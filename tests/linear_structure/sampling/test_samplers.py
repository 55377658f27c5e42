"""Samplers: the published outputs, the closed-form flow, orders, costs, and slicing."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from walks import last, relative_error, same, stub

from linear_structure.data import plane
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import GaussianMixture
from linear_structure.sampling.ablation import Ablation, Schedule
from linear_structure.sampling.grids import Churn, sigma_grid
from linear_structure.sampling.samplers import ablation, discard, dpmpp_2m, euler, heun, unipc
from linear_structure.sampling.seeds import Seeds

OPTIONS = {
    each.name: each.metadata["words"]
    for each in dataclasses.fields(Ablation)
    if each.metadata.get("words")
}
GOLDEN = Path(__file__).parents[2] / "golden"
CASES = json.loads((GOLDEN / "samplers.json").read_text())
GRID_SAMPLERS = [euler, heun, dpmpp_2m, unipc]
CALLS = {euler: lambda n: n, heun: lambda n: 2 * n - 1, dpmpp_2m: lambda n: n, unipc: lambda n: n}


class Counted:
    """A denoiser that remembers the levels at which it was called."""

    def __init__(self, denoise):
        self.denoise, self.levels = denoise, []

    def __call__(self, x, sigma):
        self.levels.append(float(sigma))
        return self.denoise(x, sigma)


@pytest.fixture(scope="module")
def gaussian():
    return random_gaussian(torch.Generator().manual_seed(0), 5, scale=0.5)


@pytest.fixture(scope="module")
def mixture():
    generator = torch.Generator().manual_seed(0)
    components = tuple(random_gaussian(generator, 2, scale=0.3) for _ in range(3))
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), components)


def random_gaussian(generator, dim, scale):
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64) / 2
    return Gaussian.from_covariance(mean, scale**2 * (root @ root.T + 0.3 * torch.eye(dim)))


def start(count, dim, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 80 * torch.randn(count, dim, generator=generator, dtype=torch.float64)


# The published sampler adds noise sqrt(max(sigma(t)^2 - sigma^2, 0)) also where nothing is raised,
# with t found by inverting sigma(t). In these runs rounding left 2^-41 under the root, once.
ROUNDING_NOISE = {"ablation-heun-vp-vp-vp": 1, "ablation-euler-vp-vp-vp": 1}


def with_rounding_noise(schedule, step):
    stages = list(schedule.stages)
    lift = stages[step].lift._replace(noise=torch.tensor(2.0**-20.5, dtype=torch.float64))
    stages[step] = stages[step]._replace(lift=lift)
    return Schedule(schedule.sigmas, tuple(stages))


def golden_run(name, latents):
    options = {key.lower(): value for key, value in CASES[name].items()}
    steps = options.pop("num_steps")
    churn = Churn(**{key: options.pop(key) for key in list(options) if key.startswith("s_")})
    if name.startswith("edm"):
        sigmas = sigma_grid(steps)
        return heun(stub, latents * sigmas[0], sigmas, churn.lifts(sigmas), torch.ones_like)
    schedule = Ablation(steps, churn=churn, **options).plan(lowest=0.002, highest=80.0)
    if name in ROUNDING_NOISE:
        schedule = with_rounding_noise(schedule, ROUNDING_NOISE[name])
    return ablation(stub, latents * schedule.sigmas[0], schedule, torch.ones_like)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_published_ones(name):
    expected = torch.from_numpy(np.load(GOLDEN / "samplers.npz")[name])
    latents = torch.from_numpy(np.random.default_rng(11).standard_normal((2, 1, 4, 4)))
    assert relative_error(last(golden_run(name, latents)), expected) < 1e-10


def test_the_ablation_sampler_contains_the_edm_sampler():
    churn, x = Churn(s_churn=2.0, s_noise=1.003), start(2, 3)
    sigmas = sigma_grid(18)
    ours = last(heun(stub, x, sigmas, churn.lifts(sigmas), torch.ones_like))
    general = last(ablation(stub, x, Ablation(churn=churn).plan(), torch.ones_like))
    assert relative_error(general, ours) < 1e-13


@pytest.mark.parametrize("sampler", GRID_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_steps_and_their_cost(sampler, steps):
    denoise, sigmas = Counted(stub), sigma_grid(steps)
    trajectory = list(sampler(denoise, start(2, 3).float(), sigmas))
    assert len(trajectory) == steps + 1
    assert len(denoise.levels) == CALLS[sampler](steps)
    assert torch.equal(torch.stack([step.sigma for step in trajectory]), sigmas)
    assert all(step.x.dtype == torch.float64 for step in trajectory)
    for x, sigma, denoised in trajectory[:-1]:
        assert torch.equal(denoised, stub(x, sigma))
    assert trajectory[-1].denoised is trajectory[-1].x


@pytest.mark.parametrize("sampler", GRID_SAMPLERS)
def test_the_grid_need_not_be_on_the_device_of_x(sampler):
    assert last(sampler(stub, start(2, 3).to("meta"), sigma_grid(5))).is_meta


@pytest.mark.parametrize("sampler", GRID_SAMPLERS)
def test_no_step_is_left_after_all_are_skipped(sampler):
    (step,) = sampler(stub, start(2, 3), sigma_grid(5)[5:])
    assert step.sigma == 0


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_cost_of_an_ablation(solver):
    denoise, schedule = Counted(stub), Ablation(7, solver=solver, schedule="vp").plan()
    trajectory = list(ablation(denoise, start(2, 3), schedule))
    assert len(trajectory) == 8
    assert len(denoise.levels) == {"euler": 7, "heun": 13}[solver]


def test_a_churned_step_is_what_the_denoiser_saw():
    sigmas = sigma_grid(7)
    lifts = Churn(s_churn=2.0).lifts(sigmas)
    trajectory = list(heun(stub, start(2, 3), sigmas, lifts, Seeds.of([0, 1]).noise))
    for step, lift in zip(trajectory[:-1], lifts, strict=True):
        assert step.sigma == lift.sigma
        assert torch.equal(step.denoised, stub(step.x, step.sigma))


def test_noise_is_drawn_at_every_step():
    sigmas, draws = sigma_grid(7), []
    lifts = Churn(s_churn=2.0, s_min=1.0, s_max=10.0).lifts(sigmas)
    noise = lambda x: draws.append(x) or torch.ones_like(x)  # noqa: E731
    list(heun(stub, start(2, 3), sigmas, lifts, noise))
    list(ablation(stub, start(2, 3), Ablation(7).plan(), noise))
    assert len(draws) == 14


def test_noise_without_churn_changes_nothing():
    x, sigmas = start(2, 3), sigma_grid(7)
    assert torch.equal(
        last(heun(stub, x, sigmas, noise=Seeds.of([0, 1]).noise)), last(heun(stub, x, sigmas))
    )


def test_churn_asks_for_noise_and_for_as_many_lifts_as_steps():
    sigmas = sigma_grid(7)
    lifts = Churn(s_churn=2.0).lifts(sigmas)
    with pytest.raises(ValueError, match="noise"):
        list(heun(stub, start(2, 3), sigmas, lifts))
    with pytest.raises(ValueError, match="7 lifts for 4 steps"):
        list(heun(stub, start(2, 3), sigmas[3:], lifts, torch.ones_like))


@pytest.mark.parametrize("sampler", [euler, heun])
@pytest.mark.parametrize("k", [0, 1, 6, 11, 12])
def test_a_sliced_grid_gives_the_rest_of_the_trajectory(sampler, k):
    sigmas = sigma_grid(12)
    full = list(sampler(stub, start(2, 3), sigmas))
    assert same(sampler(stub, full[k].x, sigmas[k:]), full[k:])


@pytest.mark.parametrize("k", [1, 6, 11])
def test_skipped_steps_leave_churn_and_noise_as_they_were(k):
    x, sigmas = start(3, 4), sigma_grid(12)
    lifts = Churn(s_churn=4.0, s_min=0.05, s_noise=1.003).lifts(sigmas)
    full = list(heun(stub, x, sigmas, lifts, Seeds.of(range(3)).noise))
    arrived = last(heun(stub, x, sigmas[: k + 1], lifts[:k], Seeds.of(range(3)).noise))
    noise = Seeds.of(range(3)).noise
    discard(noise, x, k)
    assert same(heun(stub, arrived, sigmas[k:], lifts[k:], noise), full[k:])


@pytest.mark.parametrize("options", list(itertools.product(*OPTIONS.values())))
def test_a_sliced_schedule_gives_the_rest_of_the_trajectory(options):
    settings = dict(zip(OPTIONS, options, strict=True))
    schedule = Ablation(9, alpha=0.7, churn=Churn(s_churn=2.0), **settings).plan()
    x = start(2, 3)
    full = list(ablation(stub, x, schedule, Seeds.of([0, 1]).noise))
    for k in (1, 4, 8):
        arrived = last(ablation(stub, x, schedule[: k + 1], Seeds.of([0, 1]).noise))
        noise = Seeds.of([0, 1]).noise
        discard(noise, x, k)
        assert same(ablation(stub, arrived, schedule[k:], noise), full[k:])


def observed_orders(run, expected, counts):
    errors = [relative_error(run(count), expected) for count in counts]
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


def test_heun_converges_to_the_gaussian_flow(gaussian):
    x = start(4, 5)
    flowed = gaussian.flow(x, 80.0, 0.002)
    orders = observed_orders(
        lambda count: last(heun(gaussian.denoise, x, sigma_grid(count)[:-1])),
        flowed,
        (64, 128, 256),
    )
    assert orders == pytest.approx([2, 2], abs=0.15)


@pytest.mark.parametrize("alpha", [0.5, 2 / 3, 1.0])
@pytest.mark.parametrize(("schedule", "scaling"), [("vp", "vp"), ("ve", "none"), ("linear", "vp")])
def test_ablations_converge_to_the_gaussian_flow(gaussian, schedule, scaling, alpha):
    """At order two at least: on a Gaussian the midpoint rule in sigma^2 is of order three."""
    x = start(4, 5)

    def run(count):
        settings = Ablation(count, schedule=schedule, scaling=scaling, alpha=alpha, sigma_min=0.05)
        return last(ablation(gaussian.denoise, x, settings.plan()[:-1]))

    (order,) = observed_orders(run, gaussian.flow(x, 80.0, 0.05), (128, 256))
    assert order > 1.85


@pytest.mark.parametrize(
    ("steps", "error"), [(10, 9.31e-2), (18, 2.38e-2), (50, 2.67e-3), (200, 1.58e-4)]
)
def test_heun_on_the_digits_meets_their_flow(digits_gaussian, steps, error):
    """From 80 to 0.02, relative, of 64 latents."""
    latents = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 80 * latents
    flowed = digits_gaussian.flow(x, 80.0, 0.02)
    walked = last(heun(digits_gaussian.denoise, x, sigma_grid(steps, 0.02)[:-1]))
    assert float((walked - flowed).norm() / flowed.norm()) == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize(
    ("steps", "variation", "variance"),
    [(10, 0.174, 4.25), (18, 0.132, 3.52), (40, 0.131, 3.34)],
)
def test_few_steps_spread_a_mixture_too_far(total_variation, steps, variation, variance):
    """Of 20,000 samples, as many as the expected numbers are of, which is 3.26 without end:
    variances within three standard errors of the difference, distances within a tenth."""
    generator = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    walked = last(heun(plane.mixture().denoise, x, sigma_grid(steps)))
    truth = plane.mixture().sample(20_000, generator=generator)
    error = variance * math.sqrt(2 * 2 / 20_000)
    assert float(walked[:, 0].var()) == pytest.approx(variance, abs=3 * error)
    assert total_variation(walked, truth) == pytest.approx(variation, rel=0.1)


@pytest.fixture(scope="module")
def solved(mixture):
    """Start at sigma 80 and the ODE's solution at 0.002, in log sigma to 1e-12."""
    x = start(8, 2)

    def slope(log_sigma, flat):
        y = torch.from_numpy(flat.reshape(8, 2))
        return (y - mixture.denoise(y, math.exp(log_sigma))).ravel().numpy()

    ends = (math.log(80), math.log(0.002))
    end = solve_ivp(slope, ends, x.ravel().numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return x, torch.from_numpy(end.reshape(8, 2))


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2), (unipc, 3)])
def test_orders_on_a_mixture(mixture, solved, sampler, order):
    x, expected = solved
    orders = observed_orders(
        lambda count: last(sampler(mixture.denoise, x, sigma_grid(count)[:-1])),
        expected,
        (128, 256, 512),
    )
    assert orders == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("sampler", GRID_SAMPLERS)
def test_the_last_step_gives_the_last_denoised(sampler, mixture):
    *_, before, final = sampler(mixture.denoise, start(8, 2), sigma_grid(10))
    assert torch.allclose(final.x, before.denoised, atol=1e-12)


@pytest.mark.parametrize("sampler", GRID_SAMPLERS)
@pytest.mark.parametrize("times", [(2,), (1, 3), (1, 2, 1, 1, 2)])
def test_a_step_between_equal_levels_changes_nothing(sampler, times, mixture):
    """Networks round levels to those that they know: some then come twice, or more often."""
    grid, x = sigma_grid(8), start(5, 2)
    often = torch.tensor([*times, *[1] * (len(grid) - len(times) - 2), 3, 1])
    repeated = list(sampler(mixture.denoise, x, grid.repeat_interleave(often)))
    assert len(repeated) == int(often.sum())
    assert torch.equal(repeated[-1].x, last(sampler(mixture.denoise, x, grid)))
