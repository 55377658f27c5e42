"""An exact Gaussian as a network of diffusers, and schedulers in the settings that are tested.

What the network is given, and what it is to predict, is written here once more from the papers and
from diffusers' own tables: nothing of the adapter is used.
"""

import copy
import math
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import diffusers
import torch
from torch import nn

from linear_structure.denoise import Position
from linear_structure.gaussian import Gaussian

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def gaussian(dim, seed=0):
    """Eigenvalues from 82 down to 0.5, about a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())
    mean = 0.3 * torch.randn(dim, generator=generator).double()
    eigenvalues = 82 * (-torch.arange(dim).double() / 30).exp() + 0.5
    return Gaussian(mean, basis, eigenvalues)


def standard(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def make(name, **changes) -> Any:
    """A scheduler by the name of its class, with Stable Diffusion's betas where it has any."""
    return copy.deepcopy(_made(name, tuple(sorted(changes.items()))))


@cache  # one of them takes seconds to make
def _made(name, changes) -> Any:
    kind, changes = getattr(diffusers, name + "Scheduler"), dict(changes)
    own = signature(kind.__init__).parameters
    clipping = {"clip_sample": False} if "clip_sample" in own else {}
    return kind(**({**STABLE, **clipping} if "beta_start" in own else {}) | changes)


class Setting(NamedTuple):
    """A row of the table of schedulers.

    Attributes:
        order: that a skip keeps; None where it has none to tell.
        worse: how much larger the error may be with a skip than without.
        floor: below it no error is told from another.
    """

    name: str
    changes: dict[str, Any]
    order: int | None
    worse: float = 1.0
    counts: tuple[int, ...] = (12, 24, 48)
    floor: float = 0.0

    def scheduler(self, **changes):
        return make(self.name, **self.changes | changes)


KARRAS = {"use_karras_sigmas": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ZERO = {
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
}
SETTINGS = {
    "DDIM": Setting("DDIM", {"steps_offset": 1}, 1, 1.0, (10, 20, 50)),
    "DDIM, no signal at the start": Setting("DDIM", ZERO, 1, 1.0, (10, 20, 50)),
    "Euler": Setting("EulerDiscrete", KARRAS, 1),
    "Euler, exponential": Setting("EulerDiscrete", {"use_exponential_sigmas": True}, 1),
    "Heun": Setting("HeunDiscrete", KARRAS, 2),
    "KDPM2": Setting("KDPM2Discrete", KARRAS, 2),
    "LMS": Setting("LMSDiscrete", {}, 2),
    "DPM++ 2M": Setting("DPMSolverMultistep", KARRAS, 2),
    "DPM++ 2M, beta": Setting("DPMSolverMultistep", {"use_beta_sigmas": True}, 2),
    "DPM++ 3M": Setting("DPMSolverMultistep", KARRAS | {"solver_order": 3}, 2, math.inf),
    "DPM++ 2S": Setting("DPMSolverSinglestep", KARRAS, None),
    "UniPC": Setting("UniPCMultistep", KARRAS, 2),
    "DEIS": Setting("DEISMultistep", KARRAS, None),
    "PNDM": Setting("PNDM", {"skip_prk_steps": True, "steps_offset": 1}, None, floor=5e-4),
    "flow Euler": Setting("FlowMatchEulerDiscrete", {}, 1),
    "flow Euler, shift 3": Setting("FlowMatchEulerDiscrete", {"shift": 3.0}, 1),
    "flow Heun, shift 3": Setting("FlowMatchHeunDiscrete", {"shift": 3.0}, 2),
    "DPM++ 2M, flow": Setting("DPMSolverMultistep", FLOW, None),
    "UniPC, flow": Setting("UniPCMultistep", FLOW, None),
    "EDM Euler": Setting("EDMEuler", {}, 1),
    "EDM DPM++ 2M": Setting("EDMDPMSolverMultistep", {}, 2),
}


def seen(scheduler, t) -> Position:
    """Where y is on its way, of which the network is asked next, by the scheduler's own tables."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith(("DDIM", "PNDM", "DDPM", "LCM", "TCD")):
        kept = float(scheduler.alphas_cumprod[int(t)])
        return Position(math.sqrt(kept), math.sqrt(1 - kept))
    half = name.startswith("KDPM2") and not scheduler.state_in_first_order
    levels = scheduler.sigmas_interpol if half else scheduler.sigmas
    return of_sigma(scheduler, float(levels[scheduler.step_index or 0]), config)


def of_sigma(scheduler, sigma, config) -> Position:
    """Of y, at an entry of a scheduler's `sigmas`."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return Position(1 - sigma, sigma)
    scale = 1 / math.hypot(config.sigma_data if name.startswith("EDM") else 1.0, sigma)
    return Position(scale, scale * sigma)


def predicted(scheduler, y, at, denoised):
    """F(y) of a network that knows E[x_0 | y], from the definitions."""
    (a, b), config = at, scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch"):
        return (y - a * denoised) / b - denoised
    noise, kind = (y - a * denoised) / b, config.prediction_type
    if type(scheduler).__name__.startswith("EDM"):
        s, sigma = config.sigma_data, b / a
        skip, out = s**2 / (sigma**2 + s**2), sigma * s / math.sqrt(sigma**2 + s**2)
        return (denoised - skip * y / a) / (out if kind == "epsilon" else -out)
    kinds = {"epsilon": noise, "sample": denoised, "flow_prediction": noise - denoised}
    return kinds[kind] if kind in kinds else a * noise - b * denoised


class Exact(nn.Module):
    """The network of a Gaussian; `calls` counts how often it was asked.

    Attributes:
        scheduler: makes the one that walks now, of which it takes the level.
    """

    def __init__(self, model: Gaussian, scheduler: Callable[[], Any], **config: Any) -> None:
        super().__init__()
        self.model, self.scheduler, self.calls = model, scheduler, 0
        self.config = diffusers.configuration_utils.FrozenDict(**config)
        self.dtype, self.device = torch.float64, torch.device("cpu")

    def forward(self, sample=None, timestep=None, hidden_states=None, **told):
        y = sample if hidden_states is None else hidden_states
        self.calls += 1
        scheduler = self.scheduler()
        at = seen(scheduler, timestep.flatten()[0])
        return (predicted(scheduler, y, at, self.model.denoise(y, at)).to(y),)
