"""Parity: the schedulers of diffusers, handed the same noise, take the steps that ours take.

They keep a state in the coordinates of its process, and most of them tables in float32. So each is
compared twice: as it is published, one step at a time, and whole runs with its tables in float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from walks import last, relative_error, stub

from linear_structure.data.plane import mixture
from linear_structure.denoise import score
from linear_structure.sampling import chains
from linear_structure.sampling.grids import sigma_grid, ve_grid
from linear_structure.sampling.langevin import Corrector
from linear_structure.sampling.processes import VP, ddpm_grid, ended, noise_predictor, times
from linear_structure.sampling.samplers import dpmpp_2m, unipc

TRAINED = 1000  # steps of DDPM
DENOISE = mixture().denoise
PREDICT = noise_predictor(DENOISE, VP())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(generator, dtype=torch.float64):
    """The draws that diffusers makes from a generator in this state."""
    return lambda x: torch.randn(x.shape, generator=generator, dtype=dtype).to(x.dtype)


def drawn(sigma, seed=0):
    """Noised data: (16, 2)."""
    return mixture().sample(16, float(sigma), seeded(seed))


class Case(NamedTuple):
    """A scheduler and its twin.

    Attributes:
        rules: makes ours from a grid.
        make: makes theirs.
        options: of its steps.
        middle, worst: errors of single steps with float32 tables, relative: the median and the
            largest, which is where 1 - abar has lost most digits: at the lowest levels.
    """

    rules: Callable
    make: Callable
    options: dict
    middle: float
    worst: float


def ddpm(variance):
    return lambda: DDPMScheduler(clip_sample=False, variance_type=variance)


def ddim(eta):
    rules = lambda sigmas: chains.ddim(sigmas, eta)  # noqa: E731
    return Case(rules, lambda: DDIMScheduler(clip_sample=False), {"eta": eta}, 3e-7, 1e-6)


CASES = {
    "DDPM, small variance": Case(chains.posterior, ddpm("fixed_small"), {}, 3e-7, 1e-4),
    "DDPM, large variance": Case(chains.beta, ddpm("fixed_large"), {}, 3e-7, 1e-4),
    "DDIM, eta 0": ddim(0.0),
    "DDIM, eta 0.5": ddim(0.5),
    "DDIM, eta 1": ddim(1.0),
}


def step(theirs, x, pair, t, generator, options):
    """Theirs from level to level, of the unscaled state."""
    sigma, after = pair
    scaled = VP().scale(sigma) * x
    predicted = PREDICT(scaled, VP().time(sigma))
    stepped = theirs.step(predicted, int(t), scaled, generator=generator, **options)
    return stepped.prev_sample / VP().scale(after)


@pytest.mark.parametrize("name", CASES)
def test_single_steps_of_ddpm_and_ddim_are_those_of_diffusers(name):
    """Of 1000, those of every 27th level, the lowest among them."""
    case, sigmas = CASES[name], ddpm_grid(TRAINED)
    rules, theirs, errors = case.rules(sigmas), case.make(), []
    theirs.set_timesteps(TRAINED)
    for i in [*range(0, TRAINED, 27), TRAINED - 2]:
        x = drawn(sigmas[i])
        ours = last(chains.chain(DENOISE, x, rules[i : i + 1], noise_of(seeded(i))))
        t = theirs.timesteps[i]
        found = step(theirs, x, sigmas[i : i + 2], t, seeded(i), case.options)
        errors.append(relative_error(ours, found))
    assert torch.tensor(errors).median() < case.middle
    assert max(errors) < case.worst


@pytest.mark.parametrize("name", CASES)
def test_runs_of_ddpm_and_ddim_are_those_of_diffusers(name):
    """On 50 of the 1000 levels."""
    case, theirs = CASES[name], CASES[name].make()
    betas = torch.linspace(1e-4, 0.02, TRAINED, dtype=torch.float64)
    theirs.alphas_cumprod = (1 - betas).cumprod(0)
    theirs.set_timesteps(50)
    sigmas = ended(ddpm_grid(TRAINED)[TRAINED - 1 - theirs.timesteps])
    x = start = drawn(sigmas[0])
    generator, walked = seeded(1), [x]
    for i, t in enumerate(theirs.timesteps):
        x = step(theirs, x, sigmas[i : i + 2], t, generator, case.options)
        walked.append(x)
    ours = chains.chain(DENOISE, start, case.rules(sigmas), noise_of(seeded(1)))
    assert trajectory_error(ours, walked) < 1e-11


def trajectory_error(ours, theirs):
    """The largest relative error of a step."""
    return max(relative_error(step.x, x) for step, x in zip(ours, theirs, strict=True))


def test_single_steps_of_score_sde_ve_are_those_of_diffusers():
    """As published, 2000 levels from 1348 to 0.01: predictor and corrector."""
    theirs, sigmas = ScoreSdeVeScheduler(), ve_grid(2000, 0.01, 1348.0)
    rules, corrector = chains.reverse(sigmas), Corrector(theirs.config.snr, norms="batch")
    one, predicted, corrected = torch.ones((), dtype=torch.float64), [], []
    for i in range(0, 1999, 27):
        sigma, x = sigmas[i], drawn(sigmas[i])
        slope = score(DENOISE, x, sigma)
        ours = last(chains.chain(DENOISE, x, rules[i : i + 1], noise_of(seeded(i))))
        found = theirs.step_pred(slope, theirs.timesteps[i], x, seeded(i)).prev_sample
        predicted.append(relative_error(ours, found))
        noise = noise_of(seeded(i), torch.float32)  # which diffusers draws whatever the state is
        ours = returned(corrector.walk(DENOISE, x, sigma, one, noise))
        found = theirs.step_correct(slope, x, seeded(i)).prev_sample
        corrected.append(relative_error(ours, found))
    assert max(predicted) < 1e-5
    assert max(corrected) < 3e-7


def returned(walk):
    """What a generator returns at its end."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value


@pytest.fixture
def doubled():
    """Tables and noise in float64, where diffusers leaves their type to torch."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_runs_of_score_sde_ve_are_those_of_diffusers(doubled, corrections):
    """The last predictor adds noise there; its mean is where ours ends."""
    sigmas, count = ve_grid(60, 0.02, 50.0), 60
    theirs = ScoreSdeVeScheduler(count, snr=0.16, sigma_min=0.02, sigma_max=50.0)
    x = start = drawn(sigmas[0])
    generator, walked = seeded(1), []
    for sigma, t in zip(sigmas, theirs.timesteps, strict=False):
        for _ in range(corrections):
            walked.append(x)
            x = theirs.step_correct(score(DENOISE, x, sigma), x, generator).prev_sample
        walked.append(x)
        stepped = theirs.step_pred(score(DENOISE, x, sigma), t, x, generator)
        x = stepped.prev_sample
    walked.append(stepped.prev_sample_mean)
    corrector = Corrector(0.16, corrections, norms="batch") if corrections else None
    rules, noise = chains.reverse(sigmas), noise_of(seeded(1))
    assert trajectory_error(chains.chain(DENOISE, start, rules, noise, corrector), walked) < 1e-11


def test_runs_of_score_sde_vp_are_those_of_diffusers():
    """Its steps are 1/N long, so that ours meet its times where they end at 1/N: with N = 1000, as
    published. The last step, from there to 0, is ours alone."""
    count = TRAINED
    theirs = ScoreSdeVpScheduler()
    theirs.set_timesteps(count)
    t = times(count, 1 / count)
    assert theirs.config.sampling_eps == 1 / count
    sigma = VP().sigma(t)
    x = start = drawn(sigma[0])
    generator, walked, scale = seeded(1), [x], VP().scale(sigma)
    for i in range(count - 1):
        scaled = scale[i] * x
        x = theirs.step_pred(PREDICT(scaled, t[i]), scaled, t[i], generator)[0] / scale[i + 1]
        walked.append(x)
    rules = chains.euler_maruyama(VP(), count, 1 / count)
    *ours, _ = chains.chain(DENOISE, start, rules, noise_of(seeded(1)))
    assert trajectory_error(ours, walked) < 1e-11


@pytest.mark.parametrize(
    ("sampler", "make", "options"),
    [
        (dpmpp_2m, DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        (unipc, UniPCMultistepScheduler, {"solver_type": "bh2"}),
    ],
)
def test_multistep_samplers_agree_with_diffusers(sampler, make, options):
    """It works on `x / sqrt(1 + sigma^2)`, partly in float32."""
    sigmas = sigma_grid(18)
    x = 80 * torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    theirs = make(solver_order=2, prediction_type="sample", **options)
    theirs.set_timesteps(18)
    theirs.sigmas = sigmas
    scaled = x / math.sqrt(1 + sigmas[0] ** 2)
    for sigma, time in zip(sigmas, theirs.timesteps, strict=False):
        denoised = stub(scaled * (1 + sigma**2).sqrt(), sigma)
        scaled = theirs.step(denoised, time, scaled).prev_sample
    assert relative_error(last(sampler(stub, x, sigmas)), scaled) < 1e-6
