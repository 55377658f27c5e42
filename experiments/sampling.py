"""From seeds to images: latents, the teleport, the rest of the sampler's steps, pixels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edm.precondition import Preconditioned
from edm.samplers import Step, heun
from edm.schedule import sigma_grid
from edm.seeds import Seeds
from experiments.presets import Preset
from linear_structure.denoise import Denoiser
from linear_structure.errors import UsageError, WorkError
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import to_uint8
from linear_structure.parameters import Parameters


class Flow(Protocol):
    """A model whose probability-flow ODE has a closed form."""

    def flow(self, x: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """The solution at sigma = stop of the trajectory that is at x when sigma = start."""


def image_shape(network: Preconditioned) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network makes."""
    return (network.img_channels, network.img_resolution, network.img_resolution)


def grid_of(preset: Preset, network: Preconditioned) -> Tensor:
    """The preset's grid, (N + 1,) float64, within the range that the network was made for."""
    low = max(preset.sigma_min, network.sigma_min)
    high = min(preset.sigma_max, network.sigma_max)
    levels = sigma_grid(preset.steps, low, high, preset.rho)
    return torch.cat([network.round_sigma(levels[:-1]), levels[-1:]])


def check_shape(model: Gaussian | Isotropic, network: Preconditioned) -> None:
    """Refuse a model of images of another size.

    Raises:
        UsageError: it is.
    """
    channels, height, width = image_shape(network)
    if len(model.mean) != channels * height * width:
        raise UsageError(
            f"the parameters describe images of {len(model.mean)} values, the network makes "
            f"{channels} x {height} x {width} = {channels * height * width}"
        )


def flow_of(parameters: Parameters) -> Gaussian | Isotropic:
    """The model of these parameters, whose flow skips the first steps.

    Raises:
        UsageError: they are of a kind without a closed-form flow.
    """
    if not isinstance(parameters.model, Gaussian | Isotropic):
        raise UsageError(
            f"parameters of kind {parameters.kind} have no closed-form flow: "
            "teleport with kind gaussian or isotropic"
        )
    return parameters.model


def check_skip(skip: int, steps: int) -> None:
    """Refuse to skip more than all steps but one.

    Raises:
        UsageError: it is more, or negative.
    """
    if not 0 <= skip < steps:
        raise UsageError(f"skip {skip}: with {steps} steps expected 0 to {steps - 1}")


def nfe(steps: int, skip: int) -> int:
    """Network calls of Heun's method after `skip` of `steps` steps: 2 (N - k) - 1."""
    return 2 * (steps - skip) - 1


@dataclass(frozen=True)
class Sampling:
    """From seeds to images by Heun's method, whatever the seeds and the denoiser.

    Attributes:
        shape: (C, H, W).
        sigmas: the full grid, (N + 1,) float64.
        skip: steps to skip by the flow of `teleport`.
        device: where latents are drawn.
    """

    shape: tuple[int, int, int]
    sigmas: Tensor
    skip: int = 0
    teleport: Flow | None = None
    device: torch.device | str = "cpu"

    def start(self, seeds: Iterable[int]) -> Tensor:
        """State at sigmas[skip], (n, C, H, W) float64, of these seeds; errors as in `carry`."""
        latents = Seeds.of(list(seeds), self.device).latents(self.shape)
        return carry(latents, self.sigmas, self.skip, self.teleport)

    def pixels(self, denoise: Denoiser, seeds: Iterable[int]) -> Tensor:
        """uint8 images (n, C, H, W): what a distance is measured on; errors also as in `final`."""
        steps = heun(denoise, self.start(seeds), self.sigmas[self.skip :])
        return to_uint8(final(steps))


def carry(latents: Tensor, sigmas: Tensor, skip: int, teleport: Flow | None) -> Tensor:
    """Latents (n, C, H, W), carried to sigmas[skip] by the closed-form flow: float64.

    With skip = 0 the analytic model is not called.

    Raises:
        UsageError: skip > 0 without a model, or out of the grid's range.
    """
    check_skip(skip, len(sigmas) - 1)
    x = latents.double() * sigmas[0]
    if skip == 0:
        return x
    if teleport is None:
        raise UsageError(f"skip {skip} needs a model with a closed-form flow, such as a Gaussian")
    return teleport.flow(x, sigmas[0], sigmas[skip])


def final(steps: Iterable[Step]) -> Tensor:
    """Where a trajectory ends: images (n, C, H, W) float64.

    Raises:
        WorkError: the network gave NaN or infinity.
    """
    for step in steps:
        last = step
    if not bool(torch.isfinite(last.x).all()):
        raise WorkError(
            "the network gave NaN or infinity: its weights, or half precision, are unusable"
        )
    return last.x
