"""Pipelines of diffusers whose first steps are a teleport, with their own schedulers and prompts.

    with teleported(pipe, gaussian, steps=20, skip=7, noise=noise) as latents:
        image = pipe(prompt, latents=latents, num_inference_steps=20).images[0]

For what takes no `latents` there is a loop of our own, `sample`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from edm.adapters.diffusers.models import outputs
from edm.adapters.diffusers.schedules import class_of, cut, level_count, position
from linear_structure.denoise import Model
from linear_structure.sampling.samplers import check_skip
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.teleport import flow

ROUNDED = 0.01  # of their norm, how far half precision may move latents


@contextmanager
def teleported(
    pipe: Any,
    model: Model,
    *,
    steps: int,
    skip: int,
    noise: Tensor,
    draw: bool = False,
    **timing: Any,
) -> Iterator[Tensor]:
    """Latents at level `skip` of `steps`, and within the block a pipeline that starts there.

    Give the pipeline these latents, and the same number of steps as without a skip. It may be
    called more than once; after the block it is as before.

    Args:
        pipe: a pipeline that takes `latents` (B, C, H, W), such as StableDiffusionPipeline.
        model: of the latents as the network sees them (scaled by the autoencoder's factor), with a
            `flow` where the schedule starts without any signal.
        noise: (B, *S) standard normal, as the pipeline would draw it.
        draw: whether the latents are a fresh draw of the model's from this noise, which needs a
            Gaussian, in place of the pipeline's own trajectory, continued.
        timing: what else the pipeline tells `set_timesteps`, such as `mu` or `sigmas`.

    Raises:
        UsageError: as `cut`; the model has another size; the pipeline takes no latents, or packs
            them; its levels turn out to be others, or it does not start at the first, or not
            from these latents.
    """
    check_latents(pipe, noise)
    planned = planned_of(pipe.scheduler, steps, timing)
    latents = carried(planned, model, noise, skip, draw)
    with starting_at(pipe, skip, planned, latents):
        yield latents


def check_latents(pipe: Any, noise: Tensor) -> None:
    """Raise a UsageError where a pipeline takes none, starts from an image, or packs latents.

    Where it paints into an image, it also noises that by the latents, as if they were noise.
    """
    taken = signature(pipe.__call__).parameters if callable(pipe) else ("latents",)
    if "strength" in taken:
        raise UsageError(
            f"{type(pipe).__name__} starts from an image: expected one that starts from noise"
        )
    if "latents" not in taken:
        raise UsageError(
            f"{type(pipe).__name__} takes no latents: expected a pipeline that does, or `sample`"
        )
    if hasattr(pipe, "_pack_latents") or noise.ndim < 4:
        raise UsageError(
            f"{type(pipe).__name__} packs its latents into rows of patches, or noise "
            f"{tuple(noise.shape)} is packed: expected (B, C, H, W)"
        )


def check_size(model: Model, noise: Tensor) -> None:
    """Raise a UsageError where a model is not one of samples of this noise, (B, *S)."""
    if model.dim != noise[0].numel():
        raise UsageError(f"noise {tuple(noise.shape)}: the model describes {model.dim} values")


def carried(
    scheduler: Any, model: Model | None, noise: Tensor, skip: int, draw: bool = False
) -> Tensor:
    """Noise (B, *S) as the state at level `skip` of a scheduler's timesteps, in noise's dtype.

    Raises as `teleported`; a UsageError too where a model is needed, and there is none.
    """
    check_skip(skip, level_count(scheduler))
    at, x = position(scheduler, skip * scheduler.order), noise.double()
    if not (skip or draw):
        return (_start(scheduler) * x).to(noise)
    if model is None:
        raise UsageError(f"skip {skip} needs a model to teleport with, such as a Gaussian")
    check_size(model, noise)
    if not draw:
        return flow(model, _start(scheduler) * x, position(scheduler, 0), at).to(noise)
    if not hasattr(model, "draw"):
        raise UsageError(f"{type(model).__name__} has no `draw`: expected a Gaussian")
    return model.draw(x, at).to(noise)  # type: ignore[no-any-return]


def _start(scheduler: Any) -> float:
    """What a pipeline makes its start of noise with."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def copy_of(scheduler: Any) -> Any:
    """A copy that shares a scheduler's tensors, and not what it changes in place.

    A deep one fails where gradients go through states that it keeps, of steps of a loop.
    """
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list | dict):  # states and timesteps, and the configuration
            setattr(copied, name, copy.copy(value))
    return copied


def planned_of(scheduler: Any, steps: int, timing: Mapping[str, Any]) -> Any:
    """A copy of a scheduler with its timesteps set; UsageError where it takes them not."""
    if steps < 1:
        raise UsageError(f"{steps} steps: expected 1 or more")
    planned = copy_of(scheduler)
    try:
        planned.set_timesteps(steps, **timing)
    except (TypeError, ValueError, AttributeError, AssertionError) as error:
        told = "".join(f", {name}=..." for name in timing)
        name = type(scheduler).__name__
        raise UsageError(f"{name}.set_timesteps({steps}{told}) fails: {error}") from error
    return planned


@contextmanager
def starting_at(pipe: Any, skip: int, planned: Any, latents: Tensor) -> Iterator[None]:
    """Within the block a pipeline starts at level `skip` of planned timesteps, in every call.

    Each of the samples that it starts from is one of the latents (n, *S).
    """
    base, start = type(pipe.scheduler), position(planned, skip * planned.order)
    first: list[float] = []  # timestep of a call, until it is reached

    @wraps(base.set_timesteps)  # pipelines look at its arguments
    def _set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)
        count, wanted = level_count(self), level_count(planned)
        if count != wanted or position(self, skip * self.order) != start:
            raise UsageError(
                f"the pipeline's {count} levels are not the {wanted} that the latents were carried "
                "along: give it the same number of steps, and `teleported` its mu, sigmas or other "
                "timing"
            )
        cut(self, skip)
        first[:] = [float(self.timesteps[0])]

    scale = property(lambda self: 1.0, lambda self, value: None)
    step = _begun(base.step, first, latents)
    with changed(pipe, set_timesteps=_set_timesteps, init_noise_sigma=scale, step=step):
        yield


def _begun(step: Callable[..., Any], first: list[float], latents: Tensor) -> Callable[..., Any]:
    """A scheduler's step that wants to be called at the timestep in `first`, which it removes.

    It is then to be given some of the latents.
    """

    @wraps(step)
    def _step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if first:
            _check_first(first.pop(), float(timestep), sample, latents)
        return step(self, model_output, timestep, sample, *args, **kwargs)

    return _step


def _check_first(wanted: float, timestep: float, sample: Tensor, latents: Tensor) -> None:
    """Raise a UsageError where a first step is of another timestep, or other latents."""
    if timestep != wanted:
        raise UsageError(
            f"the pipeline starts at timestep {timestep:g} of its own accord, not where "
            "the latents are: expected one that starts from noise"
        )
    if sample.ndim != latents.ndim:  # frames of a video, as samples
        return
    if sample.shape[1:] != latents.shape[1:] or not _among(sample, latents):
        raise UsageError(
            "the pipeline was not given the latents that were carried to where it starts: "
            "pass latents=latents"
        )


def _among(samples: Tensor, latents: Tensor) -> bool:
    """Whether each of the samples (B, *S) is one of the latents (n, *S), but for rounding."""
    known = latents.flatten(1).double()
    given = samples.flatten(1).to(known)
    apart = torch.cdist(given, known, compute_mode="donot_use_mm_for_euclid_dist")
    return not bool((apart / known.norm(dim=1)).amin(1).gt(ROUNDED).any())


@contextmanager
def changed(pipe: Any, **members: Any) -> Iterator[None]:
    """Within the block the class of the pipeline's scheduler has other members.

    It keeps its name, by which pipelines and this package know it.
    """
    before, base = pipe.scheduler, type(pipe.scheduler)
    pipe.scheduler = copy_of(before)
    members["__module__"] = base.__module__
    pipe.scheduler.__class__ = type(base.__name__, (base,), members)
    try:
        yield
    finally:
        pipe.scheduler = before


def walk(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    x: Tensor,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """States (B, *S) at the scheduler's timesteps, x at the first, and where the last one ends.

    Args:
        predict: F(y, t), t () as the scheduler has it.
        generator: of the noise of schedulers that add some.
    """
    takes = signature(scheduler.step).parameters
    drawn = {"generator": generator} if generator is not None and "generator" in takes else {}
    for t in scheduler.timesteps:
        yield x
        y = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predict(y, t), t, x, **drawn).prev_sample
    yield x


def sample(
    network: Callable[..., Any],
    scheduler: Any,
    noise: Tensor,
    *,
    steps: int,
    skip: int = 0,
    model: Model | None = None,
    draw: bool = False,
    generator: torch.Generator | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Tensor:
    """What a pipeline without `latents` would make (DDPM, DDIM, DiT): (B, *S), in noise's dtype.

    Args:
        network: the pipeline's, called as `network(y, t, **conditions)`.
        scheduler: left as it is.
        noise, model, draw: as in `teleported`; without a skip no model is needed.
        generator: of the noise that the scheduler adds, if any.

    Raises:
        UsageError: as `teleported`, or skip > 0 without a model.
        WorkError: samples are NaN or infinite.
    """
    scheduler, told = planned_of(scheduler, steps, {}), conditions or {}
    x = carried(scheduler, model, noise, skip, draw)
    cut(scheduler, skip)
    wide = str(scheduler.config.get("variance_type")).startswith("learned")
    kept = None if wide and class_of(scheduler) == "DDPM" else noise.shape[1]

    def predict(y: Tensor, t: Tensor) -> Tensor:
        return outputs(network, y, t, told)[:, :kept]

    with torch.no_grad():
        *_, last = walk(predict, scheduler, x, generator)
    if not bool(last.isfinite().all()):
        raise WorkError(f"{type(scheduler).__name__} ends at samples that are NaN or infinite")
    return last
