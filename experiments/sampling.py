"""From seeds to images: latents, the teleport, the rest of the sampler's steps, pixels."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edm.network import Network
from experiments.presets import Preset
from linear_structure.denoise import Denoiser
from linear_structure.images import to_uint8
from linear_structure.sampling.samplers import Noise, Step, ended, final
from linear_structure.sampling.seeds import Seeds
from linear_structure.sampling.table import SAMPLERS, Sampler, Settings
from linear_structure.teleport import Teleport, carry


def grid_of(preset: Preset, network: Network) -> Tensor:
    """The preset's grid, (N + 1,) float64, within the range that the network was made for."""
    return preset.ablation.grid(network.sigma_min, network.sigma_max, network.round_sigma)


def restarts_of(preset: Preset, network: Network) -> dict[int, Tensor]:
    """Full grids (N + 1,) by skipped steps, which go on from where the preset's teleports end."""
    sigmas, found = grid_of(preset, network), {}
    for skip, level in zip(preset.skips, preset.sigma_skip, strict=False):
        left = replace(preset.ablation, steps=preset.steps - skip, sigma_max=level)
        tail = left.grid(network.sigma_min, network.sigma_max, network.round_sigma)
        found[skip] = torch.cat([sigmas[:skip], tail])
    return found


def computed_in(network: Network) -> dict[str, Any]:
    """The type that a network was told to compute in, as JSON values; nothing: as published."""
    dtype = getattr(network, "compute_dtype", None)
    return {"dtype": str(dtype).removeprefix("torch.")} if dtype else {}


class Drawn(NamedTuple):
    """What seeds decide.

    Attributes:
        denoise: the network, told the classes of the samples if it has any.
        start: states at the first noise level, (n, C, H, W) float64.
        labels: classes (n,), None without classes.
        noise: what the samples draw next.
    """

    denoise: Denoiser
    start: Tensor
    labels: Tensor | None
    noise: Noise


def drawn(network: Network, sigma: Tensor, seeds: Iterable[int], label: int | None = None) -> Drawn:
    """Latents, then classes, in the published order, for states at noise level `sigma`.

    Args:
        label: the class of all; None: each seed draws one.
    """
    source = Seeds.of(list(seeds), network.device)
    start = source.latents(network.shape).double() * sigma
    if not network.label_dim:
        return Drawn(network, start, None, source.noise)
    labels = source.labels(network.label_dim, label)
    return Drawn(network.bind(labels), start, labels, source.noise)


@dataclass(frozen=True)
class Sampling:
    """From seeds to images, whatever the seeds and the network.

    Attributes:
        network: the denoiser.
        sigmas: the full grid, (N + 1,) float64.
        teleport: what carries states past skipped steps.
        sampler: of the steps that are left, and its settings.
        restarts: grids that take the place of the full one, by skipped steps.
    """

    network: Network
    sigmas: Tensor
    teleport: Teleport | None = None
    sampler: Sampler = SAMPLERS["heun"]
    settings: Settings = field(default_factory=Settings)
    restarts: Mapping[int, Tensor] = field(default_factory=dict)

    def grid(self, skip: int) -> Tensor:
        """The full grid of samples that skip so many steps."""
        return self.restarts.get(skip, self.sigmas)

    def drawn(self, seeds: Iterable[int], skip: int = 0) -> Drawn:
        """What the seeds decide, at the first level of the grid."""
        return drawn(self.network, self.grid(skip)[0], seeds)

    def steps(self, seeds: Iterable[int], skip: int = 0) -> Iterator[Step]:
        """The Steps that are left after `skip` of them; errors as in `carry` and `ended`."""
        denoise, start, labels, noise = self.drawn(seeds, skip)
        sigmas = self.grid(skip)
        x = carry(start, sigmas, skip, self.teleport, labels)
        return ended(self.sampler.run(denoise, x, sigmas, skip, noise, self.settings))

    def pixels(self, seeds: Iterable[int], skip: int = 0) -> Tensor:
        """uint8 images (n, C, H, W): what a distance is measured on; errors also as in `final`.

        Where all N steps are skipped, they are samples of the teleport's model, without a call.
        """
        if self.teleport and skip == len(self.sigmas) - 1:
            _, start, labels, _ = self.drawn(seeds)
            x = carry(start, self.sigmas, skip - 1, self.teleport, labels)
            return to_uint8(self.teleport.denoise(x, self.sigmas[skip - 1], labels))
        return to_uint8(final(self.steps(seeds, skip)))
