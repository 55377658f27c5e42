"""Schedulers, models and pipelines of diffusers 0.42, on Gaussians whose every state is known."""

import ast
import math
import re
import tomllib
from contextlib import nullcontext
from itertools import islice
from operator import is_
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from walks import relative_error

from edm.adapters.diffusers.models import network_of_model
from edm.adapters.diffusers.pipelines import carried, sample, teleported, walk
from edm.adapters.diffusers.schedules import cut, level_count, position
from edm.adapters.diffusers.suggestion import suggested_skip
from linear_structure.denoise import Position
from linear_structure.gaussian import Gaussian, Isotropic, guided
from linear_structure.mixture import GaussianMixture
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import final, heun
from linear_structure.system.errors import UsageError, WorkError

diffusers = pytest.importorskip("diffusers")

import exact  # noqa: E402
from exact import SETTINGS, Exact, Setting, make  # noqa: E402

pytestmark = [  # by thousands: of NumPy, and of offsets that a pipeline changes
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parents[3]
SHAPE = (3, 8, 8)
MODEL = exact.gaussian(192)
NOISE = exact.standard(4, *SHAPE)
END = Position(1.0, 0.0)


def planned(scheduler, steps):
    scheduler.set_timesteps(steps)
    return scheduler


def start_of(scheduler, noise=NOISE):
    return float(getattr(scheduler, "init_noise_sigma", 1.0)) * noise


def states(scheduler, x):
    """Those that a scheduler goes through whose network is the Gaussian's."""
    network = Exact(MODEL, lambda: scheduler)
    return list(walk(lambda y, t: network(y, t)[0], scheduler, x))


def error(setting, steps, skip, cutting=cut, x=None):
    """Of the end of a walk that begins at level `skip`, against the trajectory of the noise."""
    whole, scheduler = (planned(setting.scheduler(), steps) for _ in range(2))
    truth = MODEL.flow(start_of(whole), position(whole, 0), END)
    x = carried(scheduler, MODEL, NOISE, skip) if x is None else x
    cutting(scheduler, skip)
    return float((states(scheduler, x)[-1] - truth).norm() / truth.norm())


# Where a state is, and what a cut leaves.

OTHERS = ["DDPM", "LCM", "TCD", "EulerAncestralDiscrete", "SASolver"]
ADDING = [*SETTINGS.values(), Setting("DPMSolverMultistep", {}, None)]
ADDING += [Setting(name, {}, None) for name in OTHERS]


def noised(scheduler, i, times, data, noise):
    """As diffusers noises data for entry i of its levels, at timesteps (1,) or (B,)."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(i)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(data, times, noise)
    return scheduler.add_noise(data, noise, times)


@pytest.mark.parametrize("setting", ADDING, ids=lambda each: f"{each.name} {each.changes}")
def test_a_position_is_where_diffusers_adds_noise(setting):
    scheduler, data = planned(setting.scheduler(), 10), exact.standard(1, *SHAPE, seed=5)
    times = scheduler.timesteps
    times = times.unique_consecutive() if setting.name == "PNDM" else times
    for i in range(0, len(times), scheduler.order):
        theirs = noised(planned(setting.scheduler(), 10), i, times[i : i + 1], data, NOISE[:1])
        a, b = position(scheduler, i)
        assert relative_error(a * data + b * NOISE[:1], theirs) < 1e-6
    end = position(scheduler, level_count(scheduler) * scheduler.order)
    assert end == pytest.approx(END, abs=0.03) and end.scale >= 0.999


MEMORYLESS = ["DDIM", "Euler", "Heun", "KDPM2", "flow Euler, shift 3", "flow Heun, shift 3"]


@pytest.mark.parametrize("name", [*MEMORYLESS, "EDM Euler"])
@pytest.mark.parametrize("skip", [1, 4, 9])
def test_what_is_cut_goes_on_as_the_whole_would(name, skip):
    whole, rest = (planned(SETTINGS[name].scheduler(), 10) for _ in range(2))
    entry, trajectory = skip * whole.order, states(whole, start_of(whole))
    cut(rest, skip)
    assert position(rest, 0) == position(planned(whole, 10), entry)
    found = states(rest, trajectory[entry])
    assert len(found) == len(trajectory) - entry
    assert max(map(relative_error, found, trajectory[entry:])) < 1e-6  # within, float32 for some


@pytest.mark.parametrize("name", SETTINGS)
def test_a_skip_keeps_the_order_and_is_no_worse_than_the_full_run(name):
    """A third, and half, of 12, 24 and 48 steps, or of numbers that divide 1000."""
    setting = SETTINGS[name]
    full = [error(setting, count, 0) for count in setting.counts]
    for share in (3, 2):
        found = [error(setting, count, count // share) for count in setting.counts]
        pairs = list(zip(full, found, strict=True))
        print(f"{name}, 1/{share}:", *(f"{a:.5f} {b:.5f}" for a, b in pairs))
        assert all(b <= max(setting.worse * a, setting.floor) for a, b in pairs)
        if setting.order is not None and found[1] > 2e-4:  # below it, of the last steps alone
            order = math.log(found[1] / found[2]) / math.log(setting.counts[2] / setting.counts[1])
            assert order >= setting.order - 0.6


STOCHASTIC = {
    "DDPM": {},
    "EulerAncestralDiscrete": {},
    "SASolver": {},
    "DPMSolverMultistep": {"algorithm_type": "sde-dpmsolver++"},
    "EDMDPMSolverMultistep": {"algorithm_type": "sde-dpmsolver++"},
}


def spread_error(name, steps, skip):
    """Of the variance of 400 samples x 192 eigenvectors, relative: .005 is chance's."""
    scheduler = planned(make(name, **STOCHASTIC[name]), steps)
    x = carried(scheduler, MODEL, exact.standard(400, *SHAPE), skip, draw=True)
    return abs(spread(scheduler, skip, x) - 1)


def spread(scheduler, skip, x):
    """The variance of the ends of states x at level `skip`, over the eigenvalues, mean of all."""
    cut(scheduler, skip)
    network, generator = Exact(MODEL, lambda: scheduler), torch.Generator().manual_seed(2)
    *_, end = walk(lambda y, t: network(y, t)[0], scheduler, x, generator)
    along = (end.flatten(1) - MODEL.mean) @ MODEL.basis
    return float((along.square() / MODEL.eigenvalues).mean())


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_of_steps_that_add_noise_are_spread_no_worse_after_a_skip(name):
    """Their paths are others, so the samples' distribution is compared: of weak order 1."""
    full, found = (
        [spread_error(name, count, share * count // 2) for count in (24, 48)] for share in (0, 1)
    )
    print(f"{name}: {full} {found}")
    assert all(b <= a + 0.015 for a, b in zip(full, found, strict=True))
    assert found[1] <= 0.5**0.4 * found[0] + 0.01


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_draw_ends_as_noised_data_do_and_one_of_the_next_level_does_not(name):
    """By the same steps with the same noise: of 1,000 x 192 values, .005 is chance's."""

    def told():
        return planned(make(name, **STOCHASTIC[name]), 24)

    normal = [exact.standard(1000, *SHAPE, seed=seed) for seed in (1, 11, 12)]
    data = MODEL.draw(normal[0], END)
    truth = spread(told(), 12, noised(told(), 12, told().timesteps[12:13], data, normal[1]))
    before, found, after = (
        spread(told(), 12, carried(told(), MODEL, normal[2], k, draw=True)) / truth - 1
        for k in (11, 12, 13)
    )
    print(f"{name}: {before:.4f} {found:.4f} {after:.4f}")
    assert abs(found) < 0.02 < min(abs(before), abs(after))


@pytest.mark.parametrize("name", ["LCM", "TCD"])
def test_the_last_step_adds_no_noise_after_a_cut_either(name):
    """Which is known by its number, of all that were asked for."""
    noise = exact.standard(2, *SHAPE)

    def ended(seed, skip):
        scheduler = make(name)
        network = Exact(MODEL, lambda: scheduler)
        told = {"steps": 4, "skip": skip, "model": MODEL}
        return sample(network, scheduler, noise, generator=seed, **told)

    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    assert torch.equal(*(ended(seed, 3) for seed in seeds))
    assert not torch.equal(*(ended(seed, 2) for seed in seeds))


# Traps of diffusers, and what is refused.


def in_the_middle(scheduler, k):
    """As img2img starts at level k: timesteps are sliced, and the scheduler is told where."""
    i = k * scheduler.order
    scheduler.timesteps = scheduler.timesteps[i:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(i)


@pytest.mark.parametrize("name", ["PNDM", "LMS"])
def test_what_img2img_does_is_not_a_cut(name):
    """PNDM then ends a level early; LMS counts its order from where it never was."""
    theirs = error(SETTINGS[name], 12, 4, in_the_middle)
    assert theirs > 3 * error(SETTINGS[name], 12, 4)


def test_heun_is_not_begun_a_level_early():
    """As `denoising_start` does, which counts both calls at a timestep, and one more."""
    pytest.importorskip("transformers")
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline.get_timesteps
    for k in range(1, 20):
        whole, rest = (planned(SETTINGS["Heun"].scheduler(), 20) for _ in range(2))
        own, levels = whole.timesteps[0::2], whole.sigmas[0::2]
        start = 1 - (math.floor(own[k]) + 1) / 1000
        begun, _ = theirs(SimpleNamespace(scheduler=whole), 20, 1.0, "cpu", start)
        cut(rest, k)
        assert begun[0] == own[k - 1]
        assert (rest.timesteps[0], rest.sigmas[0]) == (own[k], levels[k])
        assert len(rest.timesteps) == 2 * (20 - k) - 1


def test_a_skip_is_a_number_of_levels_and_no_share():
    """`strength = 1 - k / N` is rounded down to one level too many or few."""
    wrong = [(n, k) for n in range(2, 30) for k in range(n) if int(n * (1 - k / n)) != n - k]
    assert wrong
    for n, k in wrong:
        scheduler = planned(make("FlowMatchEulerDiscrete"), n)
        cut(scheduler, k)
        assert len(scheduler.timesteps) == n - k


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_steps_that_miss_the_next_timestep_are_refused(name, spacing):
    changes = {"skip_prk_steps": True} if name == "PNDM" else {}
    scheduler = planned(make(name, timestep_spacing=spacing, **changes), 24)
    for act in (cut, position):
        with pytest.raises(UsageError, match="goes 41 down from each timestep, but they are"):
            act(scheduler, 3)
    if spacing == "trailing":
        cut(planned(scheduler, 25), 3)


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
def test_sigmas_that_edm_takes_for_positions_are_refused(name):
    scheduler = planned(make(name), 4)
    if name == "EDMEuler":
        scheduler.set_timesteps(sigmas=torch.tensor([5, 2, 0.5, 0.1]))
        with pytest.raises(UsageError, match="expected levels that decrease to 0"):
            cut(scheduler, 1)
    scheduler.set_timesteps(4)
    assert position(scheduler, 0) == (1, pytest.approx(80))  # and not 80.006, its noise's
    assert float(carried(scheduler, None, NOISE, 0).std() / NOISE.std()) > 80.005


def test_sigmas_of_flow_matching_are_where_they_were_shifted_to():
    scheduler = make("FlowMatchEulerDiscrete", shift=3.0)
    scheduler.set_timesteps(sigmas=[0.8, 0.6, 0.4, 0.2])
    found = [position(scheduler, i).noise for i in range(5)]
    assert found == pytest.approx([0.9231, 0.8182, 0.6667, 0.4286, 0], abs=1e-4)


def test_what_is_not_known_is_one_sentence():
    unset = make("EulerDiscrete")
    refused = [
        (make("IPNDM"), "IPNDMScheduler: where its state is, is not known"),
        (make("KDPM2AncestralDiscrete"), "KDPM2AncestralDiscreteScheduler: where its state is"),
        (unset, "no levels yet: call set_timesteps first"),
        (planned(make("PNDM"), 12), "expected skip_prk_steps=True"),
        (planned(make("FlowMatchEulerDiscrete", invert_sigmas=True), 12), "invert_sigmas"),
    ]
    for scheduler, said in refused:
        for act in (cut, position):
            with pytest.raises(UsageError, match=said):
                act(scheduler, 1)
    scheduler = planned(unset, 12)
    for act, value in ((cut, 12), (cut, -1), (position, 13), (position, -1)):
        with pytest.raises(UsageError, match=rf"{value}.*expected 0 to 1[12]"):
            act(scheduler, value)
    odd = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    with pytest.raises(UsageError, match="expected a multiple of solver_order, 2"):
        cut(planned(make("DPMSolverSinglestep", **odd), 12), 3)


# A model as a network.

KINDS = ["epsilon", "sample", "v_prediction"]
PREDICTED = {
    **dict.fromkeys(("DDIM", "DDPM", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete"), KINDS),
    **{name: [*KINDS, "flow_prediction"] for name in ("DPMSolverMultistep", "UniPCMultistep")},
    **dict.fromkeys(("DPMSolverSinglestep", "DEISMultistep"), KINDS),
    **dict.fromkeys(("PNDM", "KDPM2Discrete", "EDMEuler", "EDMDPMSolverMultistep"), KINDS[::2]),
    **{name: [None] for name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")},
}
CASES = [(name, kind, False) for name, kinds in PREDICTED.items() for kind in kinds]
CASES += [("DDIM", kind, True) for kind in KINDS] + [("EulerDiscrete", "continuous", False)]
CASES += [("UniPCMultistep", kind, True) for kind in [*KINDS, "flow_prediction"]]


def scheduler_of(name, kind, special):
    """`special`: without signal at the start, or by flow's levels."""
    changes = {} if kind is None else {"prediction_type": kind}
    if kind == "continuous":
        changes = {"prediction_type": "v_prediction", "timestep_type": "continuous"}
    if special:
        changes["rescale_betas_zero_snr" if name == "DDIM" else "use_flow_sigmas"] = True
    return make(name, **changes)


def seen_at(scheduler, t):
    """Where the network's input is at t, from the tables, by the rules of the schedulers."""
    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return Position(1 - t / 1000, t / 1000)
    if hasattr(config, "sigma_data") or config.get("timestep_type") == "continuous":
        return exact.of_sigma(scheduler, math.exp(4 * t), config)
    kept = scheduler.alphas_cumprod.double().numpy()
    with np.errstate(divide="ignore"):
        table = np.log(np.sqrt((1 - kept) / kept))
    return exact.of_sigma(scheduler, math.exp(np.interp(t, np.arange(1000), table)), config)


@pytest.mark.parametrize(("name", "kind", "special"), CASES)
def test_a_gaussian_that_is_asked_by_diffusers_rules_is_its_denoiser(name, kind, special):
    scheduler = scheduler_of(name, kind, special)

    def model(y, t):
        at = [seen_at(scheduler, float(each)) for each in t]
        made = [
            exact.predicted(scheduler, one[None], each, MODEL.denoise(one[None], each))
            for one, each in zip(y, at, strict=True)
        ]
        return torch.cat([torch.cat(made), torch.full_like(y, math.nan)], 1)  # and a variance

    network = network_of_model(model, scheduler, shape=SHAPE, dtype=torch.float64)
    low, high = network.sigma_min or 1e-3, min(network.sigma_max, 100)
    sigma = torch.from_numpy(np.geomspace(low, high, 4))
    x = MODEL.sample(4, 0.0, torch.Generator().manual_seed(0)).view(4, *SHAPE)
    x = x + sigma.view(-1, 1, 1, 1) * NOISE
    assert relative_error(network(x, sigma), MODEL.denoise(x, sigma)) < 1e-13
    assert relative_error(network(x, sigma[1]), MODEL.denoise(x, sigma[1])) < 1e-13


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    return diffusers.UNet2DModel(
        8, in_channels=3, out_channels=3, num_class_embeds=5, **small, **blocks
    ).eval()


def classes(count):
    return torch.arange(count) % 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["DDIM", "DDPM", "EulerDiscrete", "EDMEuler"])
def test_a_random_unet_denoises_as_its_scheduler_predicts(unet, name, kind):
    if (name, kind) == ("EDMEuler", "sample"):
        return
    scheduler = planned(make(name, prediction_type=kind), 10)
    network = network_of_model(unet, scheduler)
    assert (network.shape, network.label_dim, network.dtype) == (SHAPE, 5, torch.float64)
    bound = network.bind(classes(4))
    for i in range(0, 9, 3):
        stepped = planned(make(name, prediction_type=kind), 10)
        stepped.sigmas = getattr(stepped, "sigmas", torch.zeros(1)).double()
        if hasattr(stepped, "set_begin_index"):
            stepped.set_begin_index(i)
        (a, b), t = position(scheduler, i), scheduler.timesteps[i]
        state = (a * torch.ones_like(NOISE) + b * NOISE).float()
        with torch.no_grad():
            output = unet(stepped.scale_model_input(state, t), t, class_labels=classes(4)).sample
        theirs = stepped.step(output, t, state).pred_original_sample
        ours = bound(state.double() / a, torch.tensor(b / a, dtype=torch.float64))
        assert relative_error(ours, theirs.double()) < 1e-6


def test_a_transformer_is_told_the_time_by_its_name():
    torch.manual_seed(0)
    tiny = {"num_layers": 1, "attention_head_dim": 4, "num_attention_heads": 2}
    tiny |= {"joint_attention_dim": 4, "caption_projection_dim": 8, "pooled_projection_dim": 4}
    model = diffusers.SD3Transformer2DModel(8, 2, 4, out_channels=4, **tiny).eval()
    told = {"encoder_hidden_states": torch.ones(1, 2, 4), "pooled_projections": torch.ones(1, 4)}
    network = network_of_model(model, make("FlowMatchEulerDiscrete"), **told)
    x, sigma = exact.standard(2, 4, 8, 8), torch.tensor([0.5, 4]).double()
    t = (sigma / (1 + sigma)).view(-1, 1, 1, 1)
    y, told = (1 - t) * x, {name: value.expand(2, *value.shape[1:]) for name, value in told.items()}
    with torch.no_grad():
        velocity = model(y.float(), timestep=1000 * t.flatten(), **told).sample
    assert relative_error(network(x, sigma), y - t * velocity) < 1e-6


def test_a_network_walks_is_told_apart_and_refuses_levels_it_does_not_know(unet):
    scheduler = make("DDIM")
    network = network_of_model(unet, scheduler, class_labels=torch.tensor([2]))
    assert network.sigma_min == pytest.approx(0.0292, abs=1e-4)
    assert network.sigma_max == pytest.approx(14.61, abs=0.01)
    grid = sigma_grid(4, network.sigma_min, network.sigma_max)
    assert torch.isfinite(final(heun(network, NOISE * grid[0], grid))).all()
    for sigma in (0.02, 15.0):
        with pytest.raises(UsageError, match=rf"sigma {sigma:g} is outside .* 0\.02917 to 14\.61"):
            network(NOISE, torch.tensor(sigma))
    one, other = make("DDIM"), make("DDIM", prediction_type="sample")
    digests = [network_of_model(unet, each).digest for each in (one, one, other)]
    assert digests[0] == digests[1] != digests[2]
    assert network_of_model(unet, one).digest == digests[0]
    with pytest.raises(UsageError, match="expected a shape="):
        network_of_model(nn.Identity(), scheduler)
    with pytest.raises(UsageError, match="prediction 'velocity': expected epsilon, sample"):
        network_of_model(unet, make("DDIM", prediction_type="velocity"))
    with pytest.raises(UsageError, match=r"gives a list: expected a tensor"):
        network_of_model(lambda y, t: [], scheduler, shape=SHAPE)(NOISE, torch.tensor(1.0))


# Pipelines.

LATENT = (4, 8, 8)
LATENTS = exact.gaussian(256)
DRAWN = exact.standard(4, *LATENT, seed=2)
PIPED = ["DDIM", "PNDM", "Euler", "Heun", "LMS", "DPM++ 2M", "DPM++ 2S", "UniPC", "DEIS", "KDPM2"]
FLOWS = ["flow Euler, shift 3", "flow Heun, shift 3"]
CALLS = {"Heun": (39, 25), "KDPM2": (39, 25), "flow Heun, shift 3": (39, 25), "PNDM": (21, 14)}


class Piped:
    """A pipeline of diffusers around the network of a Gaussian, with embeddings for its prompt."""

    def __init__(self, scheduler, model=LATENTS):
        pytest.importorskip("transformers")
        self.stable3 = type(scheduler).__name__.startswith("FlowMatch")
        told = {"in_channels": 4, "sample_size": 8, "time_cond_proj_dim": None, "patch_size": 2}
        self.network = Exact(model, lambda: self.pipe.scheduler, **told)
        if self.stable3:
            kind, none = diffusers.StableDiffusion3Pipeline, [None] * 7
            self.pipe = kind(self.network, scheduler, *none)
        else:
            kind, checked = diffusers.StableDiffusionPipeline, {"requires_safety_checker": False}
            self.pipe = kind(None, None, None, self.network, scheduler, None, None, **checked)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, latents, steps=20, count=None, **told):
        embeddings = torch.zeros(1, 2, 3, dtype=self.network.dtype)
        pooled = {"pooled_prompt_embeds": embeddings[:, 0]} if self.stable3 else {}
        self.network.calls = 0
        return self.pipe(
            prompt_embeds=embeddings,
            latents=latents,
            num_inference_steps=steps,
            num_images_per_prompt=count or len(latents),
            output_type="latent",
            **{"guidance_scale": 1.0} | pooled | told,
        ).images


def apart(x, start, scheduler, model=LATENTS):
    """The relative error of samples x of `start` at a scheduler's first level."""
    truth = model.flow(start, position(planned(scheduler, 20), 0), END)
    return float((x - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", [*PIPED, *FLOWS])
def test_inside_a_pipeline_seven_of_twenty_steps_are_saved_and_nothing_is_lost(name):
    setting = SETTINGS[name]
    scheduler = setting.scheduler()
    piped = Piped(scheduler)
    whole, calls = piped(DRAWN), [piped.network.calls]
    with teleported(piped.pipe, LATENTS, steps=20, skip=7, noise=DRAWN) as latents:
        skipped = piped(latents)
        again = piped(latents)
    calls.append(piped.network.calls)
    assert piped.pipe.scheduler is scheduler and torch.equal(skipped, again)
    assert torch.equal(piped(DRAWN), whole)  # as it was before
    start = start_of(planned(setting.scheduler(), 20), DRAWN)
    full, found = (apart(x, start, setting.scheduler()) for x in (whole, skipped))
    print(f"{name}: {calls[0]} {full:.4f}, {calls[1]} {found:.4f}")
    assert tuple(calls) == CALLS.get(name, (20, 13))
    assert found <= full * (1.1 if name == "DEIS" else 1)


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "Euler", "Heun", "UniPC", *FLOWS])
@pytest.mark.parametrize("skip", [0, 7])
def test_what_does_not_start_from_the_latents_is_refused(name, skip):
    """In silence it would start from noise, at a level where noise is not what is there."""
    piped = Piped(SETTINGS[name].scheduler())
    told, refused = {"steps": 20, "noise": DRAWN}, "not given the latents .*: pass latents=latents"
    *_, near = carried(planned(SETTINGS[name].scheduler(), 20), LATENTS, DRAWN, skip + 1)
    with teleported(piped.pipe, LATENTS, skip=skip, **told) as latents:
        wrong = [None, near[None], torch.cat([latents[:1], DRAWN.flip(1)])]
        for given in [*wrong, DRAWN] if skip else wrong:
            with pytest.raises(UsageError, match=refused):
                piped(given, count=4 if given is None else None)
        assert relative_error(piped(latents), piped(latents.clone())) == 0


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "Euler", "flow Euler, shift 3"])
def test_some_of_the_latents_may_be_given_and_in_half_precision(name):
    piped = Piped(SETTINGS[name].scheduler())
    with teleported(piped.pipe, LATENTS, steps=20, skip=7, noise=DRAWN) as latents:
        whole = piped(latents)
        for some in ([0, 1], [3], [2, 2, 0, 1, 1]):
            assert relative_error(piped(latents[some]), whole[some]) < 1e-6
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert relative_error(piped(latents.to(dtype)).double(), whole) < 0.05
            assert relative_error(piped(latents.to(dtype).double()), whole) < 0.05


def test_frames_that_a_pipeline_of_videos_steps_are_left_to_it():
    """Some make samples of them, (B, C, T, H, W) as (B T, C, H, W)."""
    pipe, video = SimpleNamespace(scheduler=make("DDIM")), exact.standard(2, 4, 3, 8, 8)
    model = Isotropic(torch.zeros(768).double(), 1.0)
    with teleported(pipe, model, steps=20, skip=7, noise=video) as latents:
        pipe.scheduler.set_timesteps(20)
        first, cropped = pipe.scheduler.timesteps[0], latents[..., :4]
        with pytest.raises(UsageError, match="not given the latents that were carried"):
            pipe.scheduler.step(cropped, first, cropped)
        pipe.scheduler.set_timesteps(20)
        frames = latents.movedim(2, 1).flatten(0, 1)
        pipe.scheduler.step(frames, first, frames)


LOOPED = {name: setting.scheduler for name, setting in SETTINGS.items()}
LOOPED |= {name: lambda name=name: make(name, **STOCHASTIC[name]) for name in STOCHASTIC}
LOOPED |= {name: lambda name=name: make(name) for name in ("LCM", "TCD")}


@pytest.mark.parametrize("name", LOOPED)
def test_what_a_loop_with_gradients_has_left_in_a_scheduler_stays_there(name):
    """States that gradients go through cannot be copied; what a teleport changes is its own."""
    scheduler, factor = planned(LOOPED[name](), 10), torch.ones((), requires_grad=True)

    def held():
        values = vars(scheduler).items()
        return {name: value[:] if isinstance(value, list) else [value] for name, value in values}

    def walked(own, x, count):
        network = Exact(MODEL, lambda: own)
        return [*islice(walk(lambda y, t: factor * network(y, t)[0], own, x), count)]

    walked(scheduler, start_of(scheduler), 5)
    before, pipe = held(), SimpleNamespace(scheduler=scheduler)
    with teleported(pipe, MODEL, steps=10, skip=3, noise=NOISE, draw=True) as latents:
        pipe.scheduler.set_timesteps(10)
        walked(pipe.scheduler, latents, 5)
    after = held()
    assert before.keys() == after.keys() and pipe.scheduler is scheduler
    for name, values in before.items():
        assert len(values) == len(after[name]) and all(map(is_, values, after[name])), name


@pytest.mark.parametrize("name", ["DDIM", "Heun", "DPM++ 2M", "flow Euler, shift 3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_of_half_precision_are_rounded_once(name, dtype):
    """And a pipeline goes on from them: what is lost is what its own steps lose."""
    setting, noise = SETTINGS[name], DRAWN.to(dtype)
    scheduler = planned(setting.scheduler(), 20)
    exactly = carried(scheduler, LATENTS, noise.double(), 7)
    assert torch.equal(carried(scheduler, LATENTS, noise, 7), exactly.to(dtype))
    piped = Piped(setting.scheduler())
    piped.network.dtype = dtype
    with teleported(piped.pipe, LATENTS, steps=20, skip=7, noise=noise) as latents:
        found = piped(latents)
    start = start_of(planned(setting.scheduler(), 20), noise)
    assert found.dtype == dtype
    lost = [apart(x.double(), start, setting.scheduler()) for x in (piped(noise), found)]
    print(f"{name} {dtype}: {lost}")
    assert lost[1] <= 1.1 * lost[0]


def test_no_skip_is_the_pipeline_itself():
    piped = Piped(SETTINGS["Euler"].scheduler())
    with teleported(piped.pipe, LATENTS, steps=20, skip=0, noise=DRAWN) as latents:
        teleport = piped(latents)
    assert relative_error(teleport, piped(DRAWN)) < 1e-6


def test_what_a_scheduler_does_not_take_is_said():
    piped = Piped(make("FlowMatchEulerDiscrete", use_dynamic_shifting=True))
    for told, said in (({}, r"set_timesteps\(20\) fails: `mu` must"), ({"mus": 1}, "mus=.* fails")):
        with (
            pytest.raises(UsageError, match=said),
            teleported(piped.pipe, LATENTS, steps=20, skip=7, noise=DRAWN, **told),
        ):
            raise AssertionError


def test_other_steps_than_the_latents_were_carried_along_are_refused():
    piped = Piped(SETTINGS["flow Euler"].scheduler())
    with teleported(piped.pipe, LATENTS, steps=20, skip=7, noise=DRAWN) as latents:
        spaced = np.geomspace(1, 0.01, 20)
        for other in ({"steps": 30}, {"sigmas": [1.0, 0.5]}, {"sigmas": list(spaced)}):
            with pytest.raises(UsageError, match="are not the 20 that the latents were carried"):
                piped(latents, **other)


def test_what_else_is_told_of_the_timesteps_is_told_to_both():
    piped = Piped(make("FlowMatchEulerDiscrete", use_dynamic_shifting=True))
    told = {"mu": 0.8, "sigmas": list(np.linspace(1, 1 / 20, 20))}
    with teleported(piped.pipe, LATENTS, steps=20, skip=7, noise=DRAWN, **told) as latents:
        piped(latents, **told)
    assert piped.network.calls == 13


def test_a_draw_has_the_spread_that_the_start_of_stable_diffusion_lacks():
    """At a low first level the start is not the model's: the flow keeps that, a draw does not."""
    scheduler, noise = planned(make("EulerDiscrete"), 20), exact.standard(4000, *LATENT)
    (a, b), top = position(scheduler, 4), LATENTS.basis[:, 0]
    spread = [
        (carried(scheduler, LATENTS, noise, 4, draw).flatten(1) @ top).var() for draw in (0, 1)
    ]
    drawn = a**2 * float(LATENTS.eigenvalues[0]) + b**2
    first = position(scheduler, 0).noise ** 2
    kept = drawn * first / (float(LATENTS.eigenvalues[0]) + first)
    assert [float(each) for each in spread] == pytest.approx([kept, drawn], rel=0.1)


def test_guided_pipelines_are_teleported_by_the_guided_gaussian():
    """A network of two means that differ: with guidance by 3, the pipeline's samples are those of
    the extrapolated mean, and teleported ones too."""
    conditional = Gaussian(LATENTS.mean + 1, LATENTS.basis, LATENTS.eigenvalues)

    class Both(Exact):
        def forward(self, y, t, **told):
            halves, models = y.chunk(2), (LATENTS, conditional)
            at = exact.seen(self.scheduler(), t)
            made = [
                exact.predicted(self.scheduler(), half, at, model.denoise(half, at))
                for half, model in zip(halves, models, strict=True)
            ]
            self.calls += 1
            return (torch.cat(made),)

    piped = Piped(SETTINGS["Heun"].scheduler())
    piped.network.__class__ = Both
    told = {"guidance_scale": 3.0, "negative_prompt_embeds": torch.zeros(1, 2, 3).double()}
    model = guided(conditional, LATENTS, 3.0)
    start = start_of(planned(SETTINGS["Heun"].scheduler(), 20), DRAWN)
    assert apart(piped(DRAWN, **told), start, SETTINGS["Heun"].scheduler(), model) < 0.01
    with teleported(piped.pipe, model, steps=20, skip=7, noise=DRAWN) as latents:
        found = piped(latents, **told)
    assert apart(found, start, SETTINGS["Heun"].scheduler(), model) < 0.003


def test_pipelines_that_pack_and_models_that_do_not_fit_are_refused():
    piped = Piped(SETTINGS["Euler"].scheduler())

    def entered(noise=DRAWN, model=LATENTS, skip=7, **told):
        with teleported(piped.pipe, model, steps=20, skip=skip, noise=noise, **told):
            raise AssertionError

    with pytest.raises(UsageError, match=r"packs its latents into rows .* noise \(4, 64"):
        entered(noise=DRAWN.view(4, 64, 4))
    with pytest.raises(UsageError, match=r"noise \(4, 4, 8, 8\): the model describes 192 values"):
        entered(model=MODEL)
    with pytest.raises(UsageError, match="skip 20: with 20 steps expected 0 to 19"):
        entered(skip=20)
    with pytest.raises(UsageError, match="GaussianMixture has no `draw`: expected a Gaussian"):
        entered(model=GaussianMixture(torch.ones(1).double(), (LATENTS,)), draw=True)
    piped.pipe._pack_latents = None
    with pytest.raises(UsageError, match="StableDiffusionPipeline packs its latents"):
        entered()


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint", "XLImg2Img", "XLInpaint", "3Inpaint"])
def test_pipelines_that_start_from_an_image_are_refused(kind):
    """What paints into one takes latents, too, and noises by them what it leaves as it is."""
    pytest.importorskip("transformers")
    pipe = object.__new__(getattr(diffusers, f"StableDiffusion{kind}Pipeline"))
    with (
        pytest.raises(UsageError, match=f"StableDiffusion{kind}Pipeline starts from an image"),
        teleported(pipe, LATENTS, steps=20, skip=7, noise=DRAWN),
    ):
        raise AssertionError


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "Euler", "UniPC"])
def test_pipelines_that_leave_steps_out_are_refused(name):
    pipe = SimpleNamespace(scheduler=SETTINGS[name].scheduler())
    with teleported(pipe, LATENTS, steps=20, skip=7, noise=DRAWN) as latents:
        for late, said in ((0, None), (3, "of its own accord, not where the latents are")):
            pipe.scheduler.set_timesteps(20)
            with nullcontext() if said is None else pytest.raises(UsageError, match=said):
                pipe.scheduler.step(latents, pipe.scheduler.timesteps[late], latents)


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_an_own_loop_is_the_pipeline(name):
    """Also with a model that has no closed flow: a mixture of one Gaussian is that Gaussian."""
    scheduler, steps = SETTINGS[name].scheduler(), {"steps": 20, "skip": 7}
    piped, network = Piped(SETTINGS[name].scheduler()), Exact(LATENTS, lambda: scheduler)
    with teleported(piped.pipe, LATENTS, noise=DRAWN, **steps) as latents:
        expected = piped(latents)
    found = sample(network, scheduler, DRAWN, model=LATENTS, **steps)
    assert torch.equal(found, expected)
    alone = GaussianMixture(torch.ones(1).double(), (LATENTS,))
    found = sample(network, scheduler, DRAWN, model=alone, **steps)
    assert relative_error(found, expected) < 1e-2
    with pytest.raises(UsageError, match="skip 7 needs a model"):
        sample(network, scheduler, DRAWN, **steps)
    for wrong in ({"steps": 0}, {"skip": 1.5}, {"skip": 20}):
        with pytest.raises(UsageError, match="expected"):
            sample(network, scheduler, DRAWN, model=LATENTS, **steps | wrong)
    with pytest.raises(WorkError, match="NaN or infinite"):
        sample(network, scheduler, DRAWN * math.nan, model=LATENTS, **steps)


def test_an_own_loop_is_the_pipeline_that_takes_no_latents(unet):
    scheduler = make("DDPM")
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.class_embedding = None  # a pipeline of one class tells none
    theirs = pipe(2, torch.Generator().manual_seed(3), 10, output_type="pt").images
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, *SHAPE, generator=generator)
    ours = sample(unet, scheduler, noise, steps=10, generator=generator)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs)


def test_a_pipelines_suggested_skip_is_large_where_the_model_is_right_and_small_where_it_is_not():
    piped = Piped(SETTINGS["DPM++ 2M"].scheduler())
    told = {"steps": 20, "noise": exact.standard(12, *LATENT)}
    *_, best = suggested_skip(piped.pipe, LATENTS, piped, **told)
    assert best.skip == 19
    wrong = Isotropic(LATENTS.mean, float(LATENTS.eigenvalues.mean().sqrt()))
    found = list(suggested_skip(piped.pipe, wrong, piped, **told))
    assert [effect.skip for effect in found] == list(range(19, found[-1].skip - 1, -1))
    assert 0 < found[-1].skip < 10 and found[-1].size <= 0.24 < found[-2].size
    mixture = GaussianMixture(torch.ones(1).double(), (LATENTS,))
    assert next(suggested_skip(piped.pipe, mixture, piped, **told)).size == pytest.approx(
        best.size, rel=1e-3
    )
    with pytest.raises(UsageError, match="run: expected a call of the pipeline"):
        list(suggested_skip(piped.pipe, LATENTS, lambda latents: None, **told))
    with pytest.raises(UsageError, match="not given the latents that were carried"):
        list(suggested_skip(piped.pipe, LATENTS, lambda x: piped(None, count=len(x)), **told))


def test_the_pages_code_around_a_pipeline_runs_as_typed():
    """With a prompt, guidance and pictures: what is made there of `pipe`, a random decoder ends."""
    page = (ROOT / "docs/diffusers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```py\n(.*?)```", page, re.S)
    piped = Piped(SETTINGS["DPM++ 2M"].scheduler())
    tiny = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    piped.pipe.vae = diffusers.AutoencoderKL(**tiny).double()
    embeddings = torch.zeros(1, 2, 3).double()
    piped.pipe.encode_prompt = lambda prompt, device, copies, *_, **__: (
        embeddings.expand(copies, 2, 3),
        embeddings.expand(copies, 2, 3),
    )
    space = {"pipe": piped.pipe, "gaussian": LATENTS, "prompt": "a cat", "noise": DRAWN[:1]}
    space["images"] = exact.standard(6, 3, 8, 8).split(2)
    teleport, fit, suggest = blocks
    exec(teleport, space)
    space["noise"] = exact.standard(9, *LATENT)
    exec(suggest, space)
    assert space["image"].size == (8, 8) and space["best"].skip == 19
    exec(fit, space)
    assert space["latents"].shape == (6, *LATENT) and space["gaussian"].shape == LATENT
    exec(teleport, space | {"noise": DRAWN[:1]})


def test_what_the_page_installs_is_an_extra_of_the_package():
    page = (ROOT / "docs/diffusers.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extra,) = re.findall(r"^pip install -e '\.\[(\w+)\]'$", page, re.M)
    assert extra in extras["optional-dependencies"]


def test_what_a_pipeline_tells_of_its_timesteps_stays_with_the_copy():
    """Some schedulers write `mu` into their configuration."""
    scheduler = make("DPMSolverMultistep", use_dynamic_shifting=True, **exact.FLOW)
    with teleported(
        SimpleNamespace(scheduler=scheduler), LATENTS, steps=20, skip=7, noise=DRAWN, mu=1.0
    ):
        pass
    assert scheduler.config.flow_shift == 1.0


NOISY = {
    "EulerAncestralDiscrete": ({}, "such as EulerDiscreteScheduler"),
    "DDPM": ({}, "such as DDIMScheduler"),
    "LCM": ({}, "but there is none of the same levels"),
    "TCD": ({}, "but there is none of the same levels"),
    "SASolver": ({}, "such as DPMSolverMultistepScheduler"),
    "DPMSolverMultistep": (
        {"algorithm_type": "sde-dpmsolver++"},
        r"such as algorithm_type='dpmsolver\+\+'",
    ),
    "DPMSolverSinglestep": (
        {"algorithm_type": "sde-dpmsolver++"},
        r"such as algorithm_type='dpmsolver\+\+'",
    ),
    "EDMDPMSolverMultistep": (
        {"algorithm_type": "sde-dpmsolver++"},
        r"such as algorithm_type='dpmsolver\+\+'",
    ),
    "FlowMatchEulerDiscrete": ({"stochastic_sampling": True}, "such as stochastic_sampling=False"),
}


@pytest.mark.parametrize("name", NOISY)
def test_no_skip_is_suggested_for_a_scheduler_that_adds_noise(name):
    """Its samples differ from run to run, whatever the model is; a teleport is right for it."""
    changes, instead = NOISY[name]
    pipe = SimpleNamespace(scheduler=make(name, **changes))
    with pytest.raises(UsageError, match=f"{name}Scheduler adds noise .* scheduler, {instead}$"):
        suggested_skip(pipe, LATENTS, print, steps=20, noise=DRAWN)


QUIET = ("DDIM", "EulerDiscrete", "LMSDiscrete", "DPMSolverMultistep", "UniPCMultistep")


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", ["EulerAncestralDiscrete", "DDPM", "LCM", "TCD", "SASolver"])
def test_what_is_named_in_its_place_has_the_same_levels(name, spacing):
    """Nothing has those of LCM and TCD: a few of the 50 that a network was distilled at."""
    noisy, named = make(name, timestep_spacing=spacing), re.search(r"(\w+)Sch", NOISY[name][1])
    for quiet in named.groups() if named else QUIET:
        other = getattr(diffusers, quiet + "Scheduler").from_config(noisy.config)
        times = [planned(each, 4).timesteps.double() for each in (noisy, other)]
        assert torch.equal(*times) == bool(named)


@pytest.mark.parametrize("seeded", ["no", "a generator", "all"])
def test_no_skip_is_suggested_where_a_run_adds_noise(seeded):
    """Told to the call alone, also where each call draws the same."""
    piped = Piped(SETTINGS["DDIM"].scheduler())

    def run(latents, eta=0.1):
        seed = torch.manual_seed if seeded == "all" else torch.Generator().manual_seed
        piped(latents, eta=eta, generator=None if seeded == "no" else seed(0))

    told = {"steps": 20, "noise": DRAWN}
    with torch.random.fork_rng([]):
        with pytest.raises(UsageError, match="from the same latents its samples differ by 0"):
            next(suggested_skip(piped.pipe, LATENTS, run, **told))
        found = suggested_skip(piped.pipe, LATENTS, lambda latents: run(latents, 0.0), **told)
        assert next(found).skip == 19


@pytest.mark.parametrize("name", ["Euler", "EDM Euler", "flow Heun, shift 3"])
def test_no_skip_is_suggested_where_steps_churn(name):
    piped = Piped(SETTINGS[name].scheduler())
    base = type(piped.pipe.scheduler)
    churning = lambda *args, **told: base.step(*args, s_churn=2.0, **told)  # noqa: E731
    piped.pipe.scheduler.__class__ = type(base.__name__, (base,), {"step": churning})
    with pytest.raises(UsageError, match="expected eta=0, s_churn=0"):
        next(suggested_skip(piped.pipe, LATENTS, piped, steps=20, noise=DRAWN))


def test_what_no_skip_can_be_suggested_by_is_refused():
    piped = Piped(SETTINGS["DDIM, no signal at the start"].scheduler())
    mixture = GaussianMixture(torch.ones(1).double(), (LATENTS,))
    refused = [
        (mixture, DRAWN, "no signal is left at scale 0"),
        (LATENTS, DRAWN[:1], r"noise \(1, 4, 8, 8\): expected that of more samples than one"),
        (LATENTS, DRAWN.view(4, 64, 4), "packs its latents into rows"),
        (MODEL, DRAWN, "the model describes 192 values"),
    ]
    for model, noise, said in refused:
        with pytest.raises(UsageError, match=said):
            list(suggested_skip(piped.pipe, model, piped, steps=20, noise=noise))
    with pytest.raises(WorkError, match="NaN or infinite"):
        list(suggested_skip(piped.pipe, LATENTS, piped, steps=20, noise=DRAWN * math.nan))


def test_a_schedule_without_signal_at_its_start_is_suggested_for_too():
    piped = Piped(SETTINGS["DDIM, no signal at the start"].scheduler())
    found = suggested_skip(piped.pipe, LATENTS, piped, steps=20, noise=exact.standard(4, *LATENT))
    assert next(found).skip == 19


def test_the_adapter_never_imports_diffusers():
    """It is given what it needs of it."""
    for file in (ROOT / "edm/adapters/diffusers").glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        named = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
        named += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert named and not any(name.split(".")[0] == "diffusers" for name in named), file
