"""Denoising losses of a network and of analytic models at the same noised images.

    loss(sigma) = E |D(x_0 + sigma n, sigma) - x_0|^2 / (sigma^2 d)

for each of the d pixels of an image: the squared error of the noise that D finds in x. Every image
has noise of its own at every level, the same for all denoisers, so that these are compared by their
paired difference. The models are those of the images themselves:

    isotropic, Gaussian    closed: the noise is integrated over, and only the images are a sample
    mixture                k-means clusters, each a Gaussian
    point cloud            every image: the exact denoiser of these images, so no loss on them is
                           lower; where little noise is left it knows each of them by heart

One number for all levels is an average under the weights that a network is trained with:

    NCSN    log-uniform levels, weight 1 / sigma^2 (Song and Ermon 2019)
    DDPM    the levels of a chain of 1000 steps, weight 1 / sigma^2 (Ho et al. 2020)
    EDM     log-normal levels, weight 1 / sigma^2 + 1 / sigma_data^2 (Karras et al. 2022)

What is measured of an image is kept on disk, in blocks of images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edm.network import Network
from edm.training.loss import EDM
from experiments.comparison import GAUSSIAN, ISOTROPIC, POINTS, SPHERICAL, Key, Makers, models
from experiments.presets import Preset
from linear_structure import parameters
from linear_structure.denoise import Denoiser, Model
from linear_structure.gaussian import EigenGaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.moments import HALF_WIDTH
from linear_structure.sampling.grids import ve_grid
from linear_structure.sampling.likelihood import entropy_from_losses
from linear_structure.sampling.processes import ddpm_grid
from linear_structure.sampling.samplers import Noise
from linear_structure.sampling.seeds import SeedRange, Seeds
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import digest_of_tensor
from linear_structure.system.machine import Machine
from linear_structure.system.store import Block, folder_of

LEVELS = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 80)
COMPONENTS = (10,)  # of mixtures
NETWORK = Key("network")
Linear = EigenGaussian | Isotropic
"""A model whose denoiser is linear in x."""
FINE = 1000  # levels of an average, between which losses are interpolated
MEMORISED = (
    "The point cloud knows by heart the very images that are noised: its loss, the lowest that any "
    "denoiser has on them, is that of memorisation."
)


class Mean(NamedTuple):
    """Means over images and their standard errors, as JSON numbers, one for each level if many."""

    value: Any
    error: Any

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Of values (n,) or (n, L); the error of a single image is NaN."""
        error = values.std(0) / len(values) ** 0.5
        return cls(values.mean(0).tolist(), error.tolist())

    @property
    def halves(self) -> list[float]:
        """How far the intervals of 95 % reach on either side of the values."""
        return [HALF_WIDTH * error for error in self.error]


def noised_losses(denoise: Denoiser, clean: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
    """`|D(x_0 + sigma n, sigma) - x_0|^2 / (sigma^2 d)` of clean x_0 (n, *S): (n, L) float64.

    Args:
        sigmas: (L,), above 0; noise is drawn for each in turn.

    Raises:
        WorkError: the denoiser gives NaN or infinity.
    """
    clean, columns = clean.double(), []
    for sigma in sigmas:
        x = clean + sigma * noise(clean)
        error = (denoise(x, sigma) - clean).flatten(1)
        columns.append(error.square().mean(1) / sigma**2)
    found = torch.stack(columns, 1).cpu()
    if not bool(torch.isfinite(found).all()):
        raise WorkError("the network gave NaN or infinity: its weights are unusable")
    return found


def closed_losses(model: Linear, clean: Tensor, sigmas: Tensor) -> Tensor:
    """The means of `noised_losses` over the noise, for any clean x_0 (n, *S): (n, L) float64."""
    clean = clean.double()
    columns = [model.squared_error(clean, sigma) / (model.dim * sigma**2) for sigma in sigmas]
    return torch.stack(columns, 1).cpu()


def cross_entropies(gaussian: EigenGaussian, clean: Tensor, sigma: Tensor) -> Tensor:
    """`-E log N(x_0 + sigma n; mu, Sigma + sigma^2 I)` over the noise, of x_0 (n, *S): (n,) nats.

    Their mean over data of the Gaussian's own moments is its entropy at sigma.
    """
    square = sigma**2
    outside = gaussian.dim - len(gaussian.eigenvalues)
    noise = float((square / (gaussian.eigenvalues + square)).sum()) + outside
    return (noise / 2 - gaussian.log_prob(clean.double(), sigma)).cpu()


def between(sigmas: Tensor, at: Tensor, sigma_data: float) -> Tensor:
    """What takes losses at levels (L,), ascending, to those at others within (m,): (m, L).

    EDM's weight makes them flat: so weighted, they are interpolated linearly in log sigma.
    """
    hats = [np.interp(at.log(), sigmas.log(), row) for row in np.eye(len(sigmas))]
    own, other = (s**2 * EDM(sigma_data=sigma_data).weight(s) for s in (sigmas, at))
    return torch.from_numpy(np.stack(hats, 1)) * own / other[:, None]


def averages(sigmas: Tensor, sigma_data: float) -> dict[str, Tensor]:
    """What takes losses at levels (L,), ascending, to their average under each weight: (L,).

    The levels that a network would be trained at are those of them that lie within.
    """
    low, high = float(sigmas[0]), float(sigmas[-1])
    edm, middles = EDM(sigma_data=sigma_data), (torch.arange(FINE).double() + 0.5) / FINE
    trained = {
        "NCSN": ve_grid(FINE, low, high)[:-1],
        "DDPM": ddpm_grid(FINE)[:-1],
        "EDM": (edm.mean + edm.std * torch.special.ndtri(middles)).exp(),
    }
    found = {}
    for name, levels in trained.items():
        inside = levels[(low <= levels) & (levels <= high)]
        weight = inside**2 * edm.weight(inside) if name == "EDM" else torch.ones_like(inside)
        found[name] = weight @ between(sigmas, inside, sigma_data) / len(inside)
    return found


def entropy_bounds(
    gaussian: EigenGaussian,
    clean: Tensor,
    sigmas: Tensor,
    closed: Tensor,
    found: Tensor,
    sigma_data: float,
) -> Tensor:
    """Upper bounds of a denoiser's cross entropy at sigmas[0], in nats a pixel: (n,) float64.

    Of an image, what it costs the Gaussian less what the denoiser's losses are below the
    Gaussian's (see `likelihood`), whose image it need not be. The mean of the exact denoiser's is
    the entropy of the noised images. All up to what is lost by interpolating between the levels.

    Args:
        clean: x_0 (n, *S).
        sigmas: (L,) ascending; above the last, the two losses are taken to be equal.
        closed: losses (n, L) of the Gaussian.
        found: of the denoiser.
    """
    fine = ve_grid(FINE, float(sigmas[0]), float(sigmas[-1]))[:-1].flip(0)
    dense = between(sigmas, fine, sigma_data).T
    costs = cross_entropies(gaussian, clean, sigmas[0]) / gaussian.dim
    rows = zip(costs, closed @ dense, found @ dense, strict=True)
    each = [entropy_from_losses(float(cost), own, fine, other) for cost, own, other in rows]
    return torch.tensor(each, dtype=torch.float64)


@dataclass(frozen=True)
class Losses:
    """What a `Study` measured, by model; each (n, L) float64.

    Attributes:
        sigmas: (L,), ascending.
        noised: with the noise that all of them share.
        closed: the mean over the noise, where it is a formula.
    """

    sigmas: Tensor
    noised: Mapping[Key, Tensor]
    closed: Mapping[Key, Tensor]

    @property
    def known(self) -> dict[Key, Tensor]:
        """Each as exactly as it is known: closed, or less what chance did to the Gaussian's, times
        the slope of least squares: a control variate, whose mean over the noise is 0."""
        chance = self.noised[GAUSSIAN] - self.closed[GAUSSIAN]
        centred = chance - chance.mean(0)
        square = centred.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
        return {
            key: self.closed.get(key, each - (each * centred).sum(0) / square * chance)
            for key, each in self.noised.items()
        }

    @property
    def excesses(self) -> dict[Key, Mean]:
        """How much more than the Gaussian's they are, in percent of it, from the same noise."""
        scale, gaussian = self.closed[GAUSSIAN].mean(0) / 100, self.noised[GAUSSIAN]
        others = (key for key in self.noised if key != GAUSSIAN)
        return {key: Mean.of((self.noised[key] - gaussian) / scale) for key in others}

    @property
    def beaten(self) -> dict[float, float]:
        """The levels where the Gaussian is more accurate than the network, beyond chance, and by
        how many percent of its loss."""
        network = self.excesses[NETWORK]
        rows = zip(self.sigmas.tolist(), network.value, network.halves, strict=True)
        return {sigma: value for sigma, value, half in rows if value > half}


def levels_of(preset: Preset, network: Network) -> Tensor:
    """Those of `LEVELS` that preset and network know: (L,) float64, ascending.

    Raises:
        UsageError: they know fewer than two.
    """
    low = max(preset.sigma_min, network.sigma_min)
    high = min(preset.sigma_max, network.sigma_max)
    known = [sigma for sigma in LEVELS if low <= sigma <= high]
    if len(known) < 2:
        raise UsageError(
            f"sigma from {low:g} to {high:g}: expected a range with two or more of the levels "
            f"{', '.join(f'{sigma:g}' for sigma in LEVELS)}"
        )
    return network.round_sigma(torch.tensor(known, dtype=torch.float64)).unique()


@dataclass(frozen=True)
class Study:
    """A network and models at the same noised images, and where their losses stay.

    Attributes:
        network: on the device where all are measured.
        isotropic, gaussian: of the images.
        makers: of these two and of all other models.
        images: uint8 (n, C, H, W): those that are noised.
        labels: their classes (n,), where the network has any.
        sigmas: (L,) float64, ascending.
        block: images that are measured together.
        inputs: what the losses depend on, as JSON values.
        root: folder of the losses.
    """

    network: Network
    isotropic: Isotropic
    gaussian: EigenGaussian
    makers: Makers
    images: Tensor
    labels: Tensor | None
    sigmas: Tensor
    block: int
    inputs: Mapping[str, Any]
    root: Path

    def measure(self) -> Losses:
        """All losses, with a bar; what is on disk is not measured again."""
        linear: dict[Key, Linear] = {ISOTROPIC: self.isotropic, GAUSSIAN: self.gaussian}
        total = len(self.images) * (len(linear) + len(self.makers) + 1)
        with tqdm(total=total, desc="losses", unit=" images") as bar:
            closed = {
                key: self._found(f"{key.slug}-closed", partial(self._closed, model), bar)
                for key, model in linear.items()
            }
            noised = {
                key: self._found(key.slug, partial(self._noised, self._denoisers(make)), bar)
                for key, make in self.makers.items()
            }
            noised[NETWORK] = self._found(NETWORK.slug, partial(self._noised, self._bound), bar)
        return Losses(self.sigmas, noised, closed)

    def _found(self, name: str, measure: Callable[[range], Tensor], bar: Any) -> Tensor:
        """One (n, L), block by block."""
        bar.set_postfix_str(name)
        folder, found = folder_of(self.root, dict(self.inputs)), []
        for part in SeedRange(0, len(self.images) - 1).blocks(self.block):
            shape = len(part), len(self.sigmas)
            block = Block(folder / f"{name}-{part.start:06d}.npy", shape, torch.float64)
            found.append(block.obtain(partial(measure, part)))
            bar.update(len(part))
        return torch.cat(found)

    def _closed(self, model: Linear, part: range) -> Tensor:
        with torch.inference_mode():
            return closed_losses(model, self._clean(part), self.sigmas)

    def _noised(self, denoisers: Callable[[range], Denoiser], part: range) -> Tensor:
        noise = Seeds.of(part, self.network.device).noise
        with torch.inference_mode():
            return noised_losses(denoisers(part), self._clean(part), self.sigmas, noise)

    def _clean(self, part: range) -> Tensor:
        pixels = self.images[part.start : part.stop].to(self.network.device)
        return from_uint8(pixels, torch.float64)

    def _denoisers(self, make: Callable[[], Model]) -> Callable[[range], Denoiser]:
        """A model's, made once and only if it must, and not to be moved at each of its calls."""
        state = self.sigmas.to(self.network.device)
        made = cache(lambda: make().to(state))
        return lambda part: made().denoise

    def _bound(self, part: range) -> Denoiser:
        """The network's, told the classes if it has any."""
        if self.labels is None:
            return self.network
        return self.network.bind(self.labels[part.start : part.stop].to(self.network.device))


def study_of(
    preset: Preset,
    network: Network,
    gaussian: EigenGaussian,
    images: Tensor,
    labels: Tensor | None,
    count: int,
    machine: Machine,
    root: Path,
) -> Study:
    """The study of `count` images, spread evenly over all, or of all, and of models of all.

    The isotropic one has the Gaussian's mean and variance. The same settings find their losses
    again.

    Args:
        images: all, uint8 (N, C, H, W).
        labels: classes (N,), where the network has any.

    Raises:
        UsageError: as `levels_of`, or fewer than two images.
    """
    sigmas, total = levels_of(preset, network), len(images)
    count = min(count, total)
    if count < 2:
        raise UsageError(f"{count} image: a standard error takes two or more")
    chosen = torch.arange(count) * total // count
    own = labels[chosen] if labels is not None else None
    isotropic = Isotropic(gaussian.mean, float(gaussian.eigenvalues.sum() / gaussian.dim) ** 0.5)
    every = models(gaussian, images, COMPONENTS).items()
    makers = {key: make for key, make in every if key.rank is None and key != SPHERICAL}
    makers[ISOTROPIC] = lambda: isotropic
    inputs = {
        "network": network.digest,
        "gaussian": parameters.digest(gaussian),
        "images": digest_of_tensor(images),
        "count": count,
        "stride": total / count if total % count else total // count,
        "sigmas": sigmas.tolist(),
        "block": preset.block,
        "isotropic": isotropic.s0,
        **machine.inputs,
        **({} if own is None else {"labels": digest_of_tensor(own)}),
    }
    return Study(
        network,
        isotropic,
        gaussian,
        makers,
        images[chosen],
        own,
        sigmas,
        preset.block,
        inputs,
        root,
    )


def summary(study: Study, found: Losses) -> dict[str, Any]:
    """Averages, the network beside the Gaussian, and cross entropies, with standard errors.

    These errors are of the images alone. Between the levels losses are interpolated, which moves an
    average by up to 1 % and a cross entropy by up to 0.01 nats a pixel; the point cloud's, which
    turn sharply between two levels, by more: it has no cross entropy here.
    """
    clean = from_uint8(study.images, torch.float64)
    sigma_data = float(clean.std(correction=0))
    weights = averages(found.sigmas, sigma_data)
    means, entropies = {}, {}
    for key, each in found.known.items():
        means[key.title] = {name: Mean.of(each @ w)._asdict() for name, w in weights.items()}
        if key != POINTS:
            both = found.closed[GAUSSIAN], each
            bound = entropy_bounds(study.gaussian, clean, found.sigmas, *both, sigma_data)
            entropies[key.title] = Mean.of(bound)._asdict()
    levels = ", ".join(f"{sigma:.3g} (by {gap:.2g} %)" for sigma, gap in found.beaten.items())
    verdict = f"The Gaussian is more accurate than the network at sigma {levels}." if levels else ""
    return {
        "sigma_data": sigma_data,
        "averages": means,
        "cross_entropies": entropies,
        "network_above_gaussian_percent": found.excesses[NETWORK]._asdict(),
        "notes": [*([verdict] if verdict else []), MEMORISED],
    }
