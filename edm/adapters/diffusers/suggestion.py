"""The largest number of steps that a pipeline can skip, from a few of its own trajectories.

    *_, best = suggested_skip(pipe, gaussian, run, steps=20, noise=noise)

by the rule of `linear_structure.suggestion`: in place of Heun's method stands the pipeline's own
scheduler, on the network with its prompt, and on the model's denoiser. It has to be deterministic:
where it adds noise, samples differ by that, and not by the teleport.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from math import inf
from typing import Any

import torch
from torch import Tensor

from edm.adapters.diffusers.pipelines import (
    carried,
    changed,
    check_latents,
    check_size,
    copy_of,
    planned_of,
    starting_at,
    walk,
)
from edm.adapters.diffusers.predictions import prediction_of
from edm.adapters.diffusers.schedules import call_of, check_deterministic, level_count, position
from linear_structure.denoise import Model, Position
from linear_structure.suggestion import PART, TOLERANCE, Comparison, Effect, effects
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.teleport import has_flow

REPEATED = 0.01  # of their spread, how far ends may be from those of the same start, by rounding


@dataclass(frozen=True, eq=False)
class PipelineTrial(Comparison):
    """A pipeline beside a teleport; see `suggested_skip`."""

    pipe: Any
    model: Model
    run: Callable[[Tensor], object]
    noise: Tensor
    planned: Any  # the pipeline's scheduler with its timesteps
    sigmas: Tensor

    @property
    def count(self) -> int:
        """N."""
        return len(self.sigmas) - 1

    @cached_property
    def reached(self) -> list[Tensor]:
        """States (n, *S) float64 of the pipeline at the N + 1 levels: the last are its samples.

        Raises:
            UsageError: the first ones, made once more, are others.
        """
        start = carried(self.planned, None, self.noise, 0).split(PART)
        first = self._ran(0, start[0])
        self._check_repeated(first[-1], self._ran(0, start[0], redrawn=True)[-1])
        parts = [first, *(self._ran(0, latents) for latents in start[1:])]
        return [torch.cat(states) for states in zip(*parts, strict=True)]

    def _check_repeated(self, ends: Tensor, again: Tensor) -> None:
        spread = ends.var(0).mean().clamp(min=torch.finfo(ends.dtype).tiny)
        apart = float(((again - ends).square().mean() / spread).sqrt())
        if apart > REPEATED:
            raise UsageError(
                f"run: from the same latents its samples differ by {apart:.2g} of their spread, "
                "whatever the model is: expected eta=0, s_churn=0 and nothing else that is random"
            )

    @cached_property
    def carried(self) -> list[Tensor]:
        """Those of the model in the network's place, in the same scheduler's steps."""
        prediction, scheduler = prediction_of(self.planned), copy_of(self.planned)
        start = carried(scheduler, None, self.noise.double(), 0)

        def predict(y: Tensor, t: Tensor) -> Tensor:
            at = prediction.inputs.position(prediction.inputs.sigma(t.double()))
            return prediction.told(y, at, _denoised(self.model, y, at))

        return _at_levels(scheduler, list(walk(predict, scheduler, start)), self.count)

    def finished(self, skip: int, x: Tensor, part: slice) -> Tensor:
        """Samples (B, *S) float64 that the pipeline makes of states x (B, *S) at level `skip`."""
        return self._ran(skip, x.to(self.noise))[-1]

    def _ran(self, skip: int, latents: Tensor, redrawn: bool = False) -> list[Tensor]:
        """The states of the pipeline at the levels from `skip` on, and where it ends."""
        count = self.count - skip
        starting = starting_at(self.pipe, skip, self.planned, latents)
        with starting, recorded(self.pipe, redrawn) as states:
            self.run(latents)
        states = [state.to(self.noise.device, torch.float64) for state in states]
        if len(states) <= call_of(self.planned, count - 1):
            raise UsageError("run: expected a call of the pipeline with the latents it is given")
        if not bool(states[-1].isfinite().all()):
            raise WorkError("run: the pipeline's latents are NaN or infinite where it ends")
        return _at_levels(self.planned, states, count)


@contextmanager
def recorded(pipe: Any, redrawn: bool = False) -> Iterator[list[Tensor]]:
    """Of a call of a pipeline, the states that `step` was given, and what the last one made.

    Each is (B, *S), of the pipeline's dtype and on its device.

    Args:
        redrawn: whether noise that `step` adds is other than the call would draw, seeded or not.
    """
    base, states = type(pipe.scheduler), list[Tensor]()

    @wraps(base.step)
    def _step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        if redrawn:
            kwargs.pop("generator", None)
            torch.rand((), device=sample.device)
        made = base.step(self, model_output, timestep, sample, **kwargs)
        states[-1:] = [sample, made[0]]
        return made

    with changed(pipe, step=_step):
        yield states


def _at_levels(scheduler: Any, states: list[Tensor], count: int) -> list[Tensor]:
    """Of all states that were given to `step`, those at levels, and the last one."""
    return [states[call_of(scheduler, k)] for k in range(count)] + states[-1:]


def _denoised(model: Model, y: Tensor, at: Position) -> Tensor:
    if has_flow(model):
        return model.denoise(y, at)  # type: ignore[arg-type]
    if not bool((torch.as_tensor(at.scale) > 0).all()):
        raise UsageError("no signal is left at scale 0, where only a closed flow can start")
    return model.denoise(y / at.scale, at.noise / at.scale)


def suggested_skip(
    pipe: Any,
    model: Model,
    run: Callable[[Tensor], object],
    *,
    steps: int,
    noise: Tensor,
    tolerance: float = TOLERANCE,
    **timing: Any,
) -> Iterator[Effect]:
    """Effects of skips from the largest down to the first within the tolerance: the suggestion.

    Args:
        pipe, timing: as in `teleported`; its scheduler adds no noise.
        model: of the latents.
        run: calls the pipeline on latents (B, *S), at most 8, with a prompt or none, for example
            `lambda latents: pipe(prompt, latents=latents, num_images_per_prompt=len(latents),
            num_inference_steps=20, output_type="latent")`.
        steps: N, as `run` tells the pipeline.
        noise: (n, *S) standard normal, n above 1; the more, the rarer the modes that are seen.
        tolerance: of the change of finished latents.

    Raises:
        UsageError: as `teleported`; the scheduler adds noise, or `run` makes other samples of the
            same latents, or does not call the pipeline; noise of a single sample.
        WorkError: the pipeline gave NaN or infinity.
    """
    check_latents(pipe, noise)
    if len(noise) < 2:
        raise UsageError(f"noise {tuple(noise.shape)}: expected that of more samples than one")
    check_size(model, noise)
    check_deterministic(pipe.scheduler)
    planned = planned_of(pipe.scheduler, steps, timing)
    entries = range(0, level_count(planned) * planned.order + 1, planned.order)
    at = [position(planned, i) for i in entries]
    sigmas = torch.tensor([b / a if a else inf for a, b in at], dtype=torch.float64)
    return effects(PipelineTrial(pipe, model, run, noise, planned, sigmas), tolerance)
