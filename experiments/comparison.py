"""A network beside analytic models: their scores at the same states, their solutions from the
same noise.

Scores are compared through denoised images, since `s = (D - x) / sigma^2`:

    relative error     |s_model - s_network| / |s_network| = |D_model - D_network| / |D_network - x|
    explained share    1 - sum |s_model - s_network|^2 / sum |s_network - mean s_network|^2
    share of a sample  1 - |s_model - s_network|^2 / |s_network|^2, and its mean over the samples

At pure noise x = sigma z the mean score is taken as 0, so the unexplained share is a ratio of mean
squares: what the figures of Wang and Vastola 2023 show. Their text of 2024 has the share of a
sample, at noised images.

Solutions start in the state of the network's trajectory at sigma_T. A Gaussian's is closed; that
of another model is Heun's on a grid with `REFINEMENT` steps for each of the network's.

The models, all of the same images:

    isotropic      the mean alone: every direction shrinks alike; and with one variance, trace / D
    Gaussian       mean and covariance
    classes        a mixture of the Gaussian of each class
    mixture of K   k-means clusters, each a Gaussian; also of low rank r, so with nothing beside it
    point cloud    every image, as a point

The low rank is that of the directions which hold 95 % of the variance that the Gaussian holds.
What is measured of a model at the states of a block of seeds stays on disk.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.sampling import Sampling, computed_in
from linear_structure import fit, parameters
from linear_structure.denoise import Denoiser, Model
from linear_structure.gaussian import EigenGaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.points import PointCloud
from linear_structure.sampling.samplers import Step, final, heun
from linear_structure.system.files import digest_of_tensor
from linear_structure.system.machine import Machine
from linear_structure.system.store import Block, folder_of
from linear_structure.teleport import flow, has_flow

COMPONENTS = (1, 2, 5, 10, 20, 50, 100)
VARIANCE_HELD = 0.95
REFINEMENT = 4
LEVELS = 24  # of noised images, evenly in log sigma over the grid's range
NOISE_SEED = 2**32 - 1  # no sample's seed: samples may be the images that are noised
QUARTILES = (0.25, 0.5, 0.75)
PARTS = ("noised", "noise", "trajectory", "solution")


@dataclass(frozen=True)
class Key:
    """Which model: its kind, and of a mixture, how many components and of which rank."""

    kind: str
    components: int = 0
    rank: int | None = None

    @property
    def title(self) -> str:
        """What tables and legends call it."""
        names = {
            "gaussian": "Gaussian",
            "by_class": "Gaussian of each class",
            "spherical": "isotropic with variance",
            "classes": "mixture of the classes",
            "mixture": f"mixture of {self.components}",
            "pointcloud": "point cloud",
        }
        rank = "" if self.rank is None else f", rank {self.rank}"
        return names.get(self.kind, self.kind) + rank

    @property
    def slug(self) -> str:
        """The title as a part of a file's name."""
        return self.title.replace(", ", "-").replace(" ", "-")


ISOTROPIC, GAUSSIAN, POINTS = Key("isotropic"), Key("gaussian"), Key("pointcloud")
BY_CLASS = Key("by_class")  # a Gaussian for each class, which is known
SPHERICAL, CLASSES = Key("spherical"), Key("classes")
Makers = Mapping[Key, Callable[[], Model]]
"""What makes each model; one is made when it is called, so few are held at a time."""


@dataclass(frozen=True, eq=False)
class Made:
    """What makes the model of a key that is known by a Gaussian and the images that it is of."""

    key: Key
    gaussian: EigenGaussian
    images: Tensor | None
    make: Callable[[], Model]

    def __call__(self) -> Model:
        return self.make()

    def is_of(self, key: Key, gaussian: Model, images: Tensor | None) -> bool:
        """Whether these tell it from another."""
        return self.key == key and self.gaussian is gaussian and self.images is images


def low_rank(gaussian: EigenGaussian) -> int:
    """How many directions hold 95 % of the variance."""
    eigenvalues = gaussian.eigenvalues.sort(descending=True).values
    held = eigenvalues.cumsum(0) / eigenvalues.sum()
    return int((held < VARIANCE_HELD).sum()) + 1


def models(
    gaussian: EigenGaussian,
    images: Tensor | None,
    components: Sequence[int] = COMPONENTS,
    labels: Tensor | None = None,
) -> Makers:
    """The analytic models of some images.

    Args:
        gaussian: of the images.
        images: uint8 (n, C, H, W), or None: the models that need them are left out.
        components: of the mixtures; those above n are left out, as is the full-rank one of 1.
        labels: classes (n,) of the images, if they have any, for a mixture of them.
    """
    variance = float(gaussian.eigenvalues.sum()) / gaussian.dim
    makers: dict[Key, Callable[[], Model]] = {
        ISOTROPIC: lambda: Isotropic(gaussian.mean),
        SPHERICAL: lambda: Isotropic(gaussian.mean, variance**0.5),
        GAUSSIAN: lambda: gaussian,
    }
    if images is not None and labels is not None and labels.unique(return_counts=True)[1].min() > 1:
        makers[CLASSES] = partial(_of_classes, images, labels)
    if images is not None:
        rank = low_rank(gaussian)
        for count in (count for count in components if count <= len(images)):
            if count > 1:
                makers[Key("mixture", count)] = partial(fit.mixture_of, images, count)
            makers[Key("mixture", count, rank)] = partial(fit.mixture_of, images, count, rank)
        makers[POINTS] = lambda: PointCloud(images.flatten(1))
    return {
        key: make if key == CLASSES else Made(key, gaussian, images, make)  # it has labels, too
        for key, make in makers.items()
    }


def _of_classes(images: Tensor, labels: Tensor) -> Model:
    return fit.fit_mixture(from_uint8(images.flatten(1)), labels)


def quartiles(values: Tensor) -> Tensor:
    """(L, 3): lower quartile, median and upper quartile of (n, L) over the n samples."""
    return values.quantile(torch.tensor(QUARTILES).to(values), dim=0).T


def norms(x: Tensor) -> Tensor:
    """Length of each sample: (n, *S) -> (n,)."""
    return x.flatten(1).norm(dim=1)


def on_noised(network: Denoiser, images: Tensor, sigmas: Iterable[Tensor]) -> Iterator[Step]:
    """The network at images (n, C, H, W) in [-1, 1] plus noise, the same noise at every level."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    for sigma in sigmas:
        x = images.double() + sigma * noise.to(images).double()
        yield Step(x, sigma, network(x, sigma))


def _known(steps: Iterable[Step]) -> list[Step]:
    """The Steps at which the network was called: all but that at sigma = 0."""
    return [step for step in steps if step.sigma > 0]


def scores(steps: Iterable[Step], denoise: Denoiser, centred: bool = True) -> Tensor:
    """A model's score at the states where the network's is known: (n, L, 3) float64.

    Of each sample and level: the relative error, the squared difference of the denoised images, and
    the squared distance of the network's score, in those units, to its mean over the samples; or
    to 0, where it is not `centred`.
    """
    found = []
    for x, sigma, denoised in _known(steps):
        score, difference = denoised - x, denoise(x, sigma) - denoised
        about = norms(score - score.mean(0) if centred else score)
        error = norms(difference) / norms(score)
        found.append(torch.stack([error, norms(difference) ** 2, about**2], 1))
    return torch.stack(found, 1).double().cpu()


def agreement(measured: Tensor) -> dict[str, Any]:
    """What `scores` measured, over all samples, by level: quartiles of the relative error, the
    explained share of the network's score, and the mean share of a sample."""
    error, difference, spread = measured.unbind(2)
    explained, share = 1 - difference.sum(0) / spread.sum(0), 1 - error.square().mean(0)
    return {
        "error": quartiles(error).tolist(),
        "explained": explained.tolist(),
        "share": share.tolist(),
    }


def solution(model: Model, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """The model's trajectory from x at sigmas[0]: a Step for each of the levels above 0.

    Args:
        x: (n, *S) float64.
        sigmas: (N + 1,), as `sigma_grid` makes them, ending in 0.
    """
    levels = sigmas[:-1]
    if has_flow(model):
        for sigma in levels:
            moved = flow(model, x, levels[0], sigma)
            yield Step(moved, sigma, model.denoise(moved, sigma))
        return
    yield from islice(heun(model.denoise, x, refined(sigmas)), None, None, REFINEMENT)


def refined(sigmas: Tensor) -> Tensor:
    """A grid (N + 1,) ending in 0, with `REFINEMENT` steps in place of each but the last.

    Between two levels sigma^(1 / 7) is linear, as in the grid of Karras et al. 2022.
    """
    root = sigmas[:-1] ** (1 / 7)
    share = torch.arange(REFINEMENT).to(sigmas) / REFINEMENT
    between = root[:-1, None] + share * (root[1:] - root[:-1])[:, None]
    fine = torch.cat([between.flatten() ** 7, sigmas[-2:]])
    fine[:-1:REFINEMENT] = sigmas[:-1]
    return fine


def solutions(steps: Sequence[Step], model: Model, sigmas: Tensor) -> Tensor:
    """Relative distances of the model's solution from the network's: (n, L, 2) float64.

    Of each sample and level: of the state, and of the denoised image.
    """
    ours = solution(model, steps[0].x, sigmas)
    found = [
        torch.stack([norms(a - b) / norms(b) for a, b in ((own.x, x), (own.denoised, denoised))], 1)
        for (x, _, denoised), own in zip(_known(steps), ours, strict=True)
    ]
    return torch.stack(found, 1).double().cpu()


def deviation(measured: Tensor) -> dict[str, Any]:
    """Quartiles of what `solutions` measured, over all samples, by level."""
    state, denoised = (quartiles(part).tolist() for part in measured.unbind(2))
    return {"state": state, "denoised": denoised}


@dataclass(frozen=True)
class States:
    """A network where models are compared with it.

    Attributes:
        sampling: of the network; Heun's method, nothing skipped.
        seeds: of the trajectories, as many as images are noised.
        images: uint8 (n, C, H, W); without enough of them, and where the network has classes, its
            own samples are noised.
        noise_levels: of noised images and pure noise; (): `LEVELS`, evenly in log sigma.
    """

    sampling: Sampling
    seeds: range
    images: Tensor | None = None
    noise_levels: tuple[float, ...] = ()

    @cached_property
    def trajectory(self) -> list[Step]:
        """The network's trajectories, all levels and the end; refuses NaN."""
        with torch.inference_mode():
            steps = list(self.sampling.steps(self.seeds))
        final(steps)
        return steps

    @property
    def where(self) -> dict[str, str]:
        """What the states of each part are, for titles."""
        own = self.clean is None
        return {
            "noised": "the network's own samples, noised" if own else "noised images",
            "noise": "pure noise, x = sigma z",
            "trajectory": "the network's trajectories",
        }

    @property
    def clean(self) -> Tensor | None:
        """The images (n, C, H, W) that are noised, spread over the data; None: own samples."""
        images, count = self.images, len(self.seeds)
        if images is None or len(images) < count or self.sampling.network.label_dim:
            return None
        return from_uint8(images[:: len(images) // count][:count])

    @cached_property
    def noised(self) -> list[Step]:
        """The network at noised images, or at its own samples, noised."""
        return self._at(self.trajectory[-1].x if self.clean is None else self.clean)

    @cached_property
    def noise(self) -> list[Step]:
        """The network at pure noise."""
        return self._at(torch.zeros_like(self.trajectory[-1].x))

    def _at(self, clean: Tensor) -> list[Step]:
        denoise, network = self.sampling.drawn(self.seeds).denoise, self.sampling.network
        with torch.inference_mode():
            return list(on_noised(denoise, clean.to(network.device), self.levels("noised")))

    def levels(self, part: str) -> Tensor:
        """The noise levels of a part, float64: the grid's, those that were asked for, or evenly in
        log sigma."""
        levels = self.sampling.sigmas[:-1]
        if part not in ("noised", "noise"):
            return levels
        if self.noise_levels:
            return torch.tensor(self.noise_levels, dtype=torch.float64)
        first, last = levels[[0, -1]].log().tolist()
        return torch.linspace(first, last, LEVELS, dtype=torch.float64).exp()

    def measure(self, part: str, model: Model) -> Tensor:
        """One of `PARTS` of a model: `scores` at noised images or on trajectories, `solutions`."""
        state = torch.zeros((), dtype=torch.float64, device=self.sampling.network.device)
        model = model.to(state)  # not to be moved at each of its calls
        with torch.inference_mode():
            if part == "solution":
                return solutions(self.trajectory, model, self.sampling.sigmas)
            return scores(getattr(self, part), model.denoise, centred=part != "noise")


@dataclass(frozen=True)
class Study:
    """Models beside a network, and where the numbers stay.

    Attributes:
        makers: of the models, in the order of tables and pictures.
        inputs: what the numbers of a model depend on, beside the model's key and the seeds.
        root: folder of the numbers.
        told: more inputs of the models that the key and these do not tell.
    """

    makers: Makers
    inputs: Mapping[str, Any]
    root: Path
    told: Mapping[Key, Mapping[str, Any]]

    def numbers(self, states: States, parts: Sequence[str]) -> dict[Key, dict[str, Tensor]]:
        """Each model at the states of a block of seeds, with a bar; what is on disk is not made."""
        found = {}
        for key in (bar := tqdm(self.makers, desc="models", unit=" models", leave=False)):
            bar.set_postfix_str(key.title)
            make = cache(self.makers[key])
            found[key] = {part: self._measured(states, key, part, make) for part in parts}
        return found

    def _measured(self, states: States, key: Key, part: str, make: Callable[[], Model]) -> Tensor:
        name = f"{key.slug}-{part}-{states.seeds[0]:06d}-{states.seeds[-1]:06d}.npy"
        shape = (len(states.seeds), len(states.levels(part)), 2 if part == "solution" else 3)
        asked = {"levels": list(states.noise_levels)} if states.noise_levels else {}
        folder = folder_of(self.root, {**self.inputs, **asked, **self.told.get(key, {})})
        block = Block(folder / name, shape, torch.float64)
        return block.obtain(lambda: states.measure(part, make()))


def study_of(
    sampling: Sampling, machine: Machine, makers: Makers, images: Tensor | None, root: Path
) -> Study:
    """The study of some models; the same settings find their numbers again.

    A model of anything but the Gaussian and these images is made, to be told from another.
    """
    gaussian = makers[GAUSSIAN]()
    told = {
        key: {"model": parameters.digest(make())}
        for key, make in makers.items()
        if not (isinstance(make, Made) and make.is_of(key, gaussian, images))
    }
    inputs = {
        "network": sampling.network.digest,
        "gaussian": parameters.digest(gaussian),
        "images": None if images is None else digest_of_tensor(images),
        "sigmas": sampling.sigmas.tolist(),
        "levels": LEVELS,
        "refinement": REFINEMENT,
        **machine.inputs,
        **({"labels": "drawn"} if sampling.network.label_dim else {}),
        **computed_in(sampling.network),
    }
    return Study(makers, inputs, root, told)


def compared(states: States, measured: Mapping[str, Tensor]) -> dict[str, Any]:
    """All numbers of one model, as JSON values."""
    found: dict[str, Any] = {}
    for part, values in measured.items():
        said = deviation(values) if part == "solution" else agreement(values)
        found[part] = {"sigma": states.levels(part).tolist(), **said}
    return found
