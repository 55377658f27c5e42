"""Where the state of a diffusers scheduler is, and how to start it at its level k.

A state is `x = a x_0 + b eps`, at the `Position(a, b)`. After `set_timesteps(N)`, by class:

    | family   | schedulers                                            | (a, b)                    |
    | UNSCALED | Euler, EulerAncestral, Heun, LMS, KDPM2, EDM's two    | 1, sigma                  |
    | SOLVED   | DPM-Solver++ (multistep, singlestep), UniPC, DEIS, SA | VP's, or flow's, of sigma |
    | TABLED   | DDIM, PNDM, DDPM, LCM, TCD                            | roots of abar, 1 - abar   |
    | FLOW     | FlowMatchEuler, FlowMatchHeun                         | 1 - sigma, sigma          |

Classes are told by their names: nothing here imports diffusers.
"""

from enum import Enum
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from linear_structure.denoise import Position
from linear_structure.sampling.samplers import check_skip
from linear_structure.system.errors import UsageError


class Family(Enum):
    """What a scheduler's state is, and what tells its levels."""

    UNSCALED = (
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "HeunDiscrete",
        "LMSDiscrete",
        "KDPM2Discrete",
        "EDMEuler",
        "EDMDPMSolverMultistep",
    )
    SOLVED = (
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "UniPCMultistep",
        "DEISMultistep",
        "SASolver",
    )
    TABLED = ("DDIM", "PNDM", "DDPM", "LCM", "TCD")
    FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")

    @staticmethod
    def of(scheduler: Any) -> "Family":
        """That of a scheduler; UsageError for one that is not known here."""
        name = class_of(scheduler)
        for family in Family:
            if name in family.value:
                return family
        known = ", ".join(name for family in Family for name in family.value)
        raise UsageError(
            f"{type(scheduler).__name__}: where its state is, is not known; expected one of {known}"
        )


STRIDING = ("DDIM", "PNDM")  # go to t less a fixed stride, whatever the next timestep is
COUNTING = ("LCM", "TCD")  # add noise until they have gone as many steps as were asked for
STOCHASTIC = {  # and what has the same levels, but adds no noise
    "EulerAncestralDiscrete": "such as EulerDiscreteScheduler",
    "DDPM": "such as DDIMScheduler",
    "SASolver": "such as DPMSolverMultistepScheduler",
    **dict.fromkeys(COUNTING, "but there is none of the same levels"),
}


def class_of(scheduler: Any) -> str:
    """The name of its class, without `Scheduler`."""
    return type(scheduler).__name__.removesuffix("Scheduler")


def check_deterministic(scheduler: Any) -> None:
    """Raise a UsageError for a scheduler that adds noise, by its class or its configuration."""
    config, instead = scheduler.config, STOCHASTIC.get(class_of(scheduler))
    algorithm = str(config.get("algorithm_type"))
    if algorithm.startswith("sde-"):
        instead = f"such as algorithm_type={algorithm.removeprefix('sde-')!r}"
    if config.get("stochastic_sampling"):
        instead = "such as stochastic_sampling=False"
    if instead:
        raise UsageError(
            f"{type(scheduler).__name__} adds noise in its steps, so two runs differ whatever "
            f"the model is: expected a deterministic scheduler, {instead}"
        )


def level_count(scheduler: Any) -> int:
    """The number N of levels, the final one not counted.

    Raises:
        UsageError: timesteps are not set, the class is unknown, or the levels are such that the
            scheduler would not go from one to the next.
    """
    family = Family.of(scheduler)
    name = class_of(scheduler)
    unset = getattr(scheduler, "num_inference_steps", None) is None
    if unset and not name.startswith("EDM"):  # which forget it, where they are told sigmas
        raise UsageError(f"{name}Scheduler has no levels yet: call set_timesteps first")
    if family is Family.TABLED:
        return len(_own_timesteps(scheduler))
    sigmas = scheduler.sigmas.double()
    if scheduler.config.get("invert_sigmas"):
        raise UsageError("invert_sigmas: a scheduler whose levels rise is not known here")
    if not bool((sigmas.diff() <= 0).all() and (sigmas >= 0).all() and sigmas.isfinite().all()):
        raise UsageError(
            f"the levels of {name}Scheduler are {_told(sigmas)}: expected levels that "
            "decrease to 0 (EDM's schedulers take `sigmas` for positions in [0, 1])"
        )
    return -(-len(scheduler.timesteps) // scheduler.order)


def position(scheduler: Any, i: int) -> Position:
    """Where the state is before entry i of the levels, `k * scheduler.order` for level k.

    Entry `level_count * order` is the end, where a pipeline takes the state for the data.

    Raises:
        UsageError: as `level_count`, or there is no such entry.
    """
    family, last = Family.of(scheduler), level_count(scheduler) * scheduler.order
    if not 0 <= i <= last:
        raise UsageError(f"entry {i} of the levels: expected 0 to {last}")
    if family is Family.TABLED:
        times = _own_timesteps(scheduler)
        kept = float(scheduler.alphas_cumprod[times[i]]) if i < len(times) else 1.0
        return Position(sqrt(kept), sqrt(1 - kept))
    sigma = float(scheduler.sigmas[min(i, len(scheduler.sigmas) - 1)])
    if family is Family.UNSCALED:
        return Position(1.0, sigma)
    if family is Family.FLOW or scheduler.config.use_flow_sigmas:
        return Position(1 - sigma, sigma)
    return Position(1 / sqrt(1 + sigma**2), sigma / sqrt(1 + sigma**2))


def call_of(scheduler: Any, k: int) -> int:
    """The number of the call of `step` that is given the state at level k."""
    if class_of(scheduler) == "PNDM":  # whose second call is given the first state again
        return k + (k > 0)
    return k * int(scheduler.order)


def cut(scheduler: Any, k: int) -> None:
    """Let a scheduler whose timesteps are just set start at its level k, of N: it forgets the rest.

    Its state then is that of `position(scheduler, k * order)`, as it was before. What a pipeline
    does with `set_begin_index(0)` changes nothing.

    Raises:
        UsageError: as `level_count`, or k is not in 0 to N - 1.
    """
    check_skip(k, level_count(scheduler))
    i = k * scheduler.order
    if class_of(scheduler) == "PNDM":  # evaluates its second timestep twice
        own = _own_timesteps(scheduler)[k:]
        scheduler.timesteps = torch.cat([own[:2], own[1:]])
        return
    for name in ("timesteps", "sigmas", "sigmas_interpol"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name)[i:])
    if class_of(scheduler) in COUNTING:
        scheduler.num_inference_steps = len(scheduler.timesteps)
    if hasattr(scheduler, "order_list"):
        scheduler.order_list = _orders(scheduler)
    if hasattr(scheduler, "set_begin_index"):  # else it looks for a timestep, which may recur
        scheduler.set_begin_index(0)


def _orders(scheduler: Any) -> list[int]:
    """Orders of the steps that are left, of a solver that goes by twos or threes."""
    count = len(scheduler.timesteps)
    orders: list[int] = scheduler.get_order_list(count)
    if len(orders) != count:
        raise UsageError(
            f"{count} steps are left, but lower_order_final is False: expected a multiple of "
            f"solver_order, {scheduler.config.solver_order}"
        )
    return orders


def _own_timesteps(scheduler: Any) -> Tensor:
    """Each timestep once: (N,).

    Raises:
        UsageError: the scheduler would go from one to what is not the next.
    """
    if class_of(scheduler) == "PNDM" and not scheduler.config.skip_prk_steps:
        raise UsageError("PNDM with Runge-Kutta steps cannot be cut: expected skip_prk_steps=True")
    times: Tensor = scheduler.timesteps.unique_consecutive()
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    if class_of(scheduler) in STRIDING and bool((times.diff() != -stride).any()):
        raise UsageError(
            f"{type(scheduler).__name__} goes {stride} down from each timestep, but they are "
            f"{_told(times)}: expected timestep_spacing 'leading', or as many steps as divide "
            f"{scheduler.config.num_train_timesteps}"
        )
    return times


def _told(values: Tensor) -> str:
    """A few numbers in words."""
    shown = ", ".join(f"{value:.4g}" for value in values[:4].tolist())
    return shown + (", ..." if len(values) > 4 else "")
