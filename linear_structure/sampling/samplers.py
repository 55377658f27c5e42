"""Samplers of the probability-flow ODE `dx/dsigma = (x - D(x, sigma)) / sigma`, as generators.

A sampler takes x (B, *S) at level sigmas[0] and a grid of M decreasing levels, sigmas (M,). It
yields M Steps: a trajectory, a progress bar and the final image are all iteration over it,

    *_, last = heun(denoise, x, sigmas[k:])

and a skip is a slice. The state is float64 and unscaled. Each Step but the last is one evaluation:
its `denoised` is D at exactly its `x` and its `sigma`. The last Step, `Step(x, sigmas[-1], x)`,
is made without a call: where the grid ends in 0, `D(x, 0) = x`; a grid that ends above 0, as for
measuring an order, ends with x itself in that place.

`heun`, `euler` and `ablation` remember nothing between steps: from the state at level k, the
sliced grid gives the rest of the full trajectory. `dpmpp_2m` and `unipc` use earlier evaluations
and start at order one wherever they start. A grid may live on the CPU while x lives elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser, slope
from linear_structure.sampling.ablation import Schedule
from linear_structure.sampling.grids import Churn, Lift
from linear_structure.system.errors import UsageError, WorkError

Noise = Callable[[Tensor], Tensor]
"""Draws standard normal noise in the shape, dtype and device of x: (B, *S) -> (B, *S)."""


class Step(NamedTuple):
    """One evaluation of the denoiser."""

    x: Tensor  # (B, *S) float64, unscaled
    sigma: Tensor  # (), the noise level of x
    denoised: Tensor  # (B, *S), `D(x, sigma)`


def euler(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """First order: N calls for N levels and a final 0."""
    x = x.to(torch.float64)
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoise(x, sigma)
        yield Step(x, sigma, denoised)
        x = x + (sigma_next - sigma) * (x - denoised) / sigma
    yield Step(x, sigmas[-1], x)


def heun(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    lifts: Sequence[Lift] | None = None,
    noise: Noise | None = None,
) -> Iterator[Step]:
    """Second order, deterministic or with churn: 2N - 1 calls for N levels and a final 0.

    Karras et al. 2022, algorithms 1 and 2. With churn a Step is what the denoiser saw: the raised
    level sigma_hat and the noised state x_hat there. Noise, once given, is drawn at every step,
    also at those that add none of it, so that a step's noise depends on its number alone.

    Args:
        lifts: the M - 1 amounts of churn, made from the full grid (`Churn.lifts`), sliced alike.
        noise: draws what the lifts add.

    Raises:
        ValueError: not as many lifts as steps, or a lift adds noise and none is given.
    """
    lifts = Churn().lifts(sigmas) if lifts is None else lifts
    if len(lifts) != len(sigmas) - 1:
        raise ValueError(f"{len(lifts)} lifts for {len(sigmas) - 1} steps: slice both alike")
    x = x.to(torch.float64)
    for (sigma, amount), sigma_next in zip(lifts, sigmas[1:], strict=True):
        x = _lifted(x, amount, noise)
        denoised = denoise(x, sigma)
        yield Step(x, sigma, denoised)
        d = (x - denoised) / sigma
        x_next = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            d = (d + slope(denoise, x_next, sigma_next)) / 2
            x_next = x + (sigma_next - sigma) * d
        x = x_next
    yield Step(x, sigmas[-1], x)


def ablation(
    denoise: Denoiser, x: Tensor, schedule: Schedule, noise: Noise | None = None
) -> Iterator[Step]:
    """Any solver, discretization, schedule, scaling and alpha (Karras et al. 2022, algorithm 3).

    What they are is in the schedule's weights; calls and Steps are those of `heun`, or of `euler`.

    Args:
        x: (B, *S), unscaled, at level schedule.sigmas[0].
        schedule: made from the full grid (`Ablation.plan`), or a slice of it.
        noise: draws what its lifts add; a ValueError where they add some and none is given.
    """
    x = x.to(torch.float64)
    for step in schedule.stages:
        x, sigma = _lifted(x, step.lift.noise, noise), step.lift.sigma
        denoised = denoise(x, sigma)
        yield Step(x, sigma, denoised)
        d = (x - denoised) / sigma
        x_next = step.keep * x + step.first * d
        if step.second:
            trial = step.trial_keep * x + step.trial_first * d
            x_next = x_next + step.second * slope(denoise, trial, step.trial_sigma)
        x = x_next
    yield Step(x, schedule.sigmas[-1], x)


def discard(noise: Noise, x: Tensor, steps: int) -> None:
    """Draw and drop the noise of skipped steps, for states like x, (B, *S) float64.

    Whoever skips does so, before it samples the rest.
    """
    for _ in range(steps):
        noise(x)


def _lifted(x: Tensor, amount: Tensor, noise: Noise | None) -> Tensor:
    if noise is not None:
        return x + amount * noise(x)
    if amount > 0:
        raise ValueError("the lifts add noise: noise(x) is needed")
    return x


def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """DPM-Solver++(2M): second order, N calls for N levels and a final 0.

    Lu et al. 2022 (arXiv 2211.01095), algorithm 2. A step between equal levels, as networks round
    them, changes neither the state nor what is remembered.
    """
    x, last = x.to(torch.float64), None
    for sigma, sigma_next in pairwise(sigmas):
        now = Step(x, sigma, denoise(x, sigma))
        yield now
        if sigma_next < sigma:
            x, last = _predict(x, last, now, sigma_next), now
    yield Step(x, sigmas[-1], x)


def unipc(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """UniPC-2 (B_2) with its corrector: third order, N calls for N levels and a final 0.

    Zhao et al. 2023 (arXiv 2302.04867). The predictor is DPM-Solver++(2M). The evaluation at the
    predicted x corrects the step that led there and serves the next one: a Step is the predicted x
    with its own `denoised`; the corrected x is not evaluated and not seen. The final x is a
    prediction. Steps between equal levels are as in `dpmpp_2m`.
    """
    x = corrected = x.to(torch.float64)
    before, last = None, None
    for sigma, sigma_next in pairwise(sigmas):
        now = Step(x, sigma, denoise(x, sigma))
        yield now
        if sigma_next < sigma:
            corrected = _correct(corrected, before, last, now)
            x = _predict(corrected, last, now, sigma_next)
            before, last = last, now
    yield Step(x, sigmas[-1], x)


def _predict(x: Tensor, last: Step | None, now: Step, sigma_next: Tensor) -> Tensor:
    """From x at now.sigma to sigma_next, with D linear in lambda = -log sigma through both steps.

    Constant D, which is exact to first order, for the first step and for the one to 0.
    """
    keep, denoised = sigma_next / now.sigma, now.denoised
    if last is not None and sigma_next > 0:
        r = (last.sigma / now.sigma).log() / (now.sigma / sigma_next).log()
        denoised = denoised + (now.denoised - last.denoised) / (2 * r)
    return keep * x + (1 - keep) * denoised


def _correct(x: Tensor, before: Step | None, last: Step | None, now: Step) -> Tensor:
    """Repeat the step from x at last.sigma to now.sigma with D interpolated up to `now`."""
    if last is None:
        return x
    keep = now.sigma / last.sigma
    change = now.denoised - last.denoised
    if before is None:
        return keep * x + (1 - keep) * (last.denoised + change / 2)
    h = (last.sigma / now.sigma).log()
    r = (before.sigma / last.sigma).log() / h
    curvature = (before.denoised - last.denoised + r * change) / (r + r**2)
    first_moment = 1 - (1 - keep) / h
    second_moment = 1 - 2 * first_moment / h
    return (
        keep * x
        + (1 - keep) * last.denoised
        + first_moment * (change - curvature)
        + second_moment * curvature
    )


def check_skip(skip: int, steps: int) -> None:
    """Raise a UsageError unless at least one of the steps is left, and skip >= 0."""
    if skip not in range(steps):
        raise UsageError(f"skip {skip}: with {steps} steps expected 0 to {steps - 1}")


def ended(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps of a grid that ends in 0, as they come; a UsageError unless the last is at level 0."""
    sigma = None
    for step in steps:
        sigma = float(step.sigma)
        yield step
    if sigma != 0:
        found = "yields no Step" if sigma is None else f"ends at noise level {sigma:g}"
        raise UsageError(f"the sampler {found}: its last Step must be the images, Step(x, 0, x)")


def final(steps: Iterable[Step]) -> Tensor:
    """Where a trajectory ends: (B, *S) float64; a WorkError where it is NaN or infinite."""
    for step in steps:
        last = step
    if not bool(torch.isfinite(last.x).all()):
        raise WorkError(
            "the network gave NaN or infinity: its weights, or half precision, are unusable"
        )
    return last.x
