"""From seeds to images: latents, the teleport, the rest of the sampler's steps, pixels."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edm.precondition import Preconditioned
from experiments.presets import Preset
from experiments.teleports import ByClass, Flow
from linear_structure.denoise import Denoiser
from linear_structure.images import to_uint8
from linear_structure.sampling.grids import ended, sigma_grid
from linear_structure.sampling.samplers import Step, dpmpp_2m, heun, unipc
from linear_structure.sampling.seeds import Seeds
from linear_structure.system.errors import UsageError, WorkError

Sampler = Callable[[Denoiser, Tensor, Tensor], Iterable[Step]]
SAMPLERS: dict[str, Sampler] = {"heun": heun, "dpmpp_2m": dpmpp_2m, "unipc": unipc}


def image_shape(network: Preconditioned) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network makes."""
    return (network.img_channels, network.img_resolution, network.img_resolution)


def grid_of(preset: Preset, network: Preconditioned) -> Tensor:
    """The preset's grid, (N + 1,) float64, within the range that the network was made for."""
    low = max(preset.sigma_min, network.sigma_min)
    high = min(preset.sigma_max, network.sigma_max)
    levels = sigma_grid(preset.steps, low, high, preset.rho)
    return ended(network.round_sigma(levels[:-1]))


def check_skip(skip: int, steps: int) -> None:
    """Refuse to skip more than all steps but one.

    Raises:
        UsageError: it is more, or negative.
    """
    if not 0 <= skip < steps:
        raise UsageError(f"skip {skip}: with {steps} steps expected 0 to {steps - 1}")


def nfe(steps: int, skip: int, sampler: str = "heun") -> int:
    """Network calls after `skip` of `steps` steps: 2 (N - k) - 1 of Heun's method, else N - k."""
    return 2 * (steps - skip) - 1 if sampler == "heun" else steps - skip


@dataclass(frozen=True)
class Sampling:
    """From seeds to images, whatever the seeds and the denoiser.

    Attributes:
        shape: (C, H, W).
        sigmas: the full grid, (N + 1,) float64.
        skip: steps to skip by the flow of `teleport`.
        device: where latents are drawn.
        sampler: one of `SAMPLERS`.
        by_class: class -> flow, in place of `teleport` where the network has classes.
    """

    shape: tuple[int, int, int]
    sigmas: Tensor
    skip: int = 0
    teleport: Flow | None = None
    device: torch.device | str = "cpu"
    sampler: str = "heun"
    by_class: Mapping[int, Flow] = field(default_factory=dict)

    def pixels(self, denoise: Denoiser, seeds: Iterable[int]) -> Tensor:
        """uint8 images (n, C, H, W): what a distance is measured on; errors also as in `final`."""
        denoise, start, teleport = self.drawn(denoise, seeds)
        x = carry(start, self.sigmas, self.skip, teleport)
        return to_uint8(final(SAMPLERS[self.sampler](denoise, x, self.sigmas[self.skip :])))

    def drawn(
        self, denoise: Denoiser, seeds: Iterable[int]
    ) -> tuple[Denoiser, Tensor, Flow | None]:
        """The denoiser, the states at sigmas[0], (n, C, H, W) float64, and the flow of these seeds.

        A network with classes gets those that the seeds draw after the latents.
        """
        drawn = Seeds.of(list(seeds), self.device)
        start = drawn.latents(self.shape).double() * self.sigmas[0]
        if not (isinstance(denoise, Preconditioned) and denoise.label_dim):
            return denoise, start, self.teleport
        labels = drawn.labels(denoise.label_dim)
        teleport = ByClass(self.by_class, labels) if self.by_class else self.teleport
        return denoise.bind(labels), start, teleport


def carry(x: Tensor, sigmas: Tensor, skip: int, teleport: Flow | None) -> Tensor:
    """States x (n, C, H, W) at sigmas[0], carried to sigmas[skip] by a model's flow.

    With skip = 0 the analytic model is not called.

    Raises:
        UsageError: skip > 0 without a model, or out of the grid's range.
    """
    check_skip(skip, len(sigmas) - 1)
    if skip == 0:
        return x
    if teleport is None:
        raise UsageError(f"skip {skip} needs a model to teleport with, such as a Gaussian")
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
