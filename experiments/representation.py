"""Pairs of an encoder and a denoiser on disk, and codes of images at every noise level.

    pair.safetensors     the averaged weights; both configurations; where they come from
    training-state.pt    all that the next step needs, the raw weights among it
    codes.npz            z (n, K, d), and of which images and noise levels it is

The arrays of codes.npz: z (n, K, d) float32; sigmas (K,) float64; source (n,) and part (n,) int64,
as in `linear_structure.data.factors.Factors`; `label_<factor>` (n,) int64 for each factor; and
inputs, a string of JSON: all that the codes depend on.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edm.checkpoints import checkpoint
from edm.representation.encoder import BLOCK, Encode, check_levels, trajectory
from edm.representation.objective import Pair
from edm.representation.training import Coloured, PairRecipe
from edm.training.data import Drawn
from edm.training.loss import Loss, denoising_loss
from edm.training.runs import Job
from experiments.losses import Mean
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.data.factors import PARTS, Factors, in_fixed_colours, in_parts, pooled
from linear_structure.images import from_uint8
from linear_structure.moments import HALF_WIDTH
from linear_structure.sampling.grids import ve_grid
from linear_structure.system.arrays import read_npz
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import (
    check_writable,
    digest_of,
    digest_of_tensor,
    write_arrays,
)
from linear_structure.system.machine import Machine
from linear_structure.system.store import Block, folder_of

PAIR, CODES = "pair.safetensors", "codes.npz"
LEVELS = 11
MOST_LEVELS = 1000
MEASURED, DRAWS, BATCH = 600, 4, 100  # images of a measured loss, noise levels of each, at a time
LABEL = "label_"
ROUNDING = 1e-6  # of noise levels


class Colouring(NamedTuple):
    """Grey images, how many of their pixels are averaged to either side, and how many colourings
    each has, by part."""

    dataset: str
    pool: int
    each: tuple[int, int, int]


COLOURED = {
    "coloured-digits": Colouring("digits", 1, (3, 3, 2)),
    "coloured-mnist": Colouring("MNIST", 2, (1, 1, 1)),
    "coloured-mnist-28": Colouring("MNIST", 1, (1, 1, 1)),
}


@dataclass(frozen=True)
class Material:
    """What a pair learns from, and the images that it is asked about.

    Attributes:
        factors: all images that are encoded, in parts.
        training: those of the first part, or what draws them.
    """

    factors: Factors
    training: Dataset | Drawn

    @cached_property
    def sigma_data(self) -> float:
        """Standard deviation of the pixels in [-1, 1] of the first part, to four digits."""
        counts = torch.bincount(self.factors.within("train").flatten(), minlength=256).double()
        share, values = counts / counts.sum(), from_uint8(torch.arange(256), torch.float64)
        mean = share @ values
        return round(float((share @ (values - mean) ** 2).sqrt()), 4)


def load_material(
    name: str, device: torch.device, grey: str | None = None, data_dir: Path | None = None
) -> Material:
    """The data of a word in `COLOURED`, or images at a path or of a known name.

    Args:
        device: that training goes to.
        grey: name or path of the images that are coloured, in place of the usual ones.

    Raises:
        UsageError: there are none of this name, too few, or they cannot be coloured.
    """
    if name not in COLOURED:
        return _uncoloured(name, grey, data_dir)
    colouring = COLOURED[name]
    dataset = datasets.load(grey or colouring.dataset, data_dir)
    factors = in_fixed_colours(dataset, colouring.each, colouring.pool)
    sources = factors.source[factors.part == PARTS.index("train")].unique()
    images = pooled(dataset.images(), colouring.pool)[sources]
    return Material(factors, Coloured(name, images, device))


def _uncoloured(name: str, grey: str | None, data_dir: Path | None) -> Material:
    if grey is not None:
        raise UsageError(f"{name} is not coloured: --grey is for {', '.join(COLOURED)}")
    if name not in datasets.NAMES and not Path(name).exists():
        known = ", ".join((*COLOURED, *datasets.NAMES))
        raise UsageError(f"{name!r} are no data that are known ({known}), nor an existing path")
    dataset = datasets.load(name, data_dir)
    factors = in_parts(dataset)
    if not len(images := factors.within("train")):
        raise UsageError(f"{dataset.name} has {dataset.count} images: expected ten or more")
    return Material(factors, Dataset.of(dataset.name, images))


def check_same(material: Material, story: Mapping[str, Any]) -> None:
    """UsageError unless a pair with this story was trained on the material."""
    training = material.training
    if isinstance(training, Dataset):
        found = digest_of_tensor(training.images())
    else:
        found = training.identity["images"]
    if found != story.get("images"):
        raise UsageError(f"{story['data']} are not the images that the pair was trained on")


def job_of(
    recipe: PairRecipe, material: Material, folder: Path, machine: Machine, story: Mapping[str, Any]
) -> Job:
    """The training of a pair; `story` says which data, so that they are found again."""
    return Job(
        recipe.shared_by(1),
        material.training,
        folder,
        machine.device,
        samples=None,
        weights=PAIR,
        story=story,
    )


class Losses(NamedTuple):
    """Loss per pixel with the code, at z = 0, and their difference, over source images."""

    told: Mean
    untold: Mean
    difference: Mean

    def __str__(self) -> str:
        value, half = self.difference.value, HALF_WIDTH * self.difference.error
        return (
            f"{self.told.value:.4f} with the code, {self.untold.value:.4f} at z = 0 (never learnt)"
            f"; difference {value:+.4f} [{value - half:+.4f}, {value + half:+.4f}]"
        )


def measure_losses(pair: Pair, loss: Loss, factors: Factors) -> Losses:
    """Of the first of the validation part, at equal noise; always the same.

    No pair learns from z = 0: a denoiser that was trained without a code does better than this.
    """
    chosen = (factors.part == PARTS.index("validation")).nonzero()[:MEASURED, 0]
    images, source = factors.images[chosen], factors.source[chosen]
    nothing: Encode = lambda clean, sigma: clean.new_zeros(len(clean), pair.dim)  # noqa: E731
    told, untold = (
        _by_source(_mean_losses(pair, loss, images, labels), source)
        for labels in (pair.code, nothing)
    )
    return Losses(Mean.of(told), Mean.of(untold), Mean.of(told - untold))


@torch.no_grad()
def _mean_losses(pair: Pair, loss: Loss, images: Tensor, labels: Encode) -> Tensor:
    """Loss per pixel of each image (n,) float64, over `DRAWS`."""
    torch.manual_seed(0)
    parts = []
    for part in images.split(BATCH):
        clean = from_uint8(part.to(pair.network.device))
        draws = [denoising_loss(loss, pair.network, clean, labels) for _ in range(DRAWS)]
        parts.append(torch.stack(draws).double().mean((0, 2, 3, 4)).cpu())
    return torch.cat(parts)


def _by_source(values: Tensor, source: Tensor) -> Tensor:
    """The mean of values (n,) over the images of each source."""
    _, which = source.unique(return_inverse=True)
    return torch.bincount(which, values) / torch.bincount(which)


def load_pair(folder: Path) -> Pair:
    """The pair in a folder, averaged weights, on the CPU, in evaluation mode.

    Raises:
        UsageError: there is none, or something else.
    """
    if not (path := folder / PAIR).is_file():
        raise UsageError(f"{folder} holds no {PAIR}: expected a folder of represent.py train")
    return checkpoint.load_module(path, Pair.of)


def finished_story(folder: Path) -> dict[str, Any]:
    """Where the pair in a folder comes from.

    Raises:
        UsageError: it does not say, or its training has not come to its end.
    """
    story = checkpoint.provenance(folder / PAIR)
    if not {"data", "grey", "seed", "images_seen", "duration"} <= story.keys():
        raise UsageError(f"{folder / PAIR} does not say which data it was trained on")
    if story["images_seen"] < story["duration"]:
        raise UsageError(
            f"the training in {folder} has seen {story['images_seen']:,} of {story['duration']:,} "
            "images: give its command again, which continues it"
        )
    return story


def initial_pair(pair: Pair, seed: int) -> Pair:
    """As a pair was before its training by a recipe of this seed."""
    torch.manual_seed(seed)
    untrained = Pair.of(pair.config).eval().requires_grad_(False)
    return untrained.to(pair.network.device)


def own_images(path: str, pair: Pair, data_dir: Path | None = None) -> Factors:
    """The user's images, with classes where they have any.

    Raises:
        UsageError: they are of another size than those of the pair, or cannot be read.
    """
    dataset = datasets.load(path, data_dir)
    if dataset.shape != pair.network.shape:
        found, wanted = (" x ".join(map(str, s)) for s in (dataset.shape, pair.network.shape))
        raise UsageError(
            f"{dataset.name} has images of {found} (channels x height x width), the pair was "
            f"trained on {wanted}: expected the same"
        )
    return in_parts(dataset)


def levels_between(pair: Pair, count: int = LEVELS) -> Tensor:
    """So many noise levels in geometric steps over those of training: (count,) float64, rising.

    Raises:
        UsageError: count is below 1, or above `MOST_LEVELS`.
    """
    if not 1 <= count <= MOST_LEVELS:
        raise UsageError(f"{count} noise levels: expected 1 or more, and {MOST_LEVELS} at most")
    low, high = pair.network.sigma_min, pair.network.sigma_max
    if count == 1:
        return torch.tensor([(low * high) ** 0.5], dtype=torch.float64)
    return ve_grid(count, low, high)[:-1].flip(0)


@dataclass(frozen=True, eq=False)
class Codes:
    """What is in codes.npz.

    Attributes:
        z: (n, K, d) float32.
        sigmas: (K,) float64.
        labels: of each factor by its name, (n,) int64.
        source, part: (n,) int64.
        inputs: what the codes depend on, as JSON values.
    """

    z: Tensor
    sigmas: Tensor
    labels: Mapping[str, Tensor]
    source: Tensor
    part: Tensor
    inputs: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all that the codes depend on."""
        return digest_of(dict(self.inputs))

    def write(self, path: Path) -> None:
        """Keep them as .npz, whole or not at all."""
        tensors = {"z": self.z, "sigmas": self.sigmas, "source": self.source, "part": self.part}
        labels = {LABEL + name: each for name, each in self.labels.items()}
        arrays = {name: each.numpy() for name, each in {**tensors, **labels}.items()}
        text = json.dumps(dict(self.inputs), sort_keys=True)
        write_arrays(path, {**arrays, "inputs": np.array(text)})

    @classmethod
    def read(cls, path: Path) -> "Codes":
        """Codes that `write` kept.

        Raises:
            UsageError: there are none, or something else.
        """
        if not path.exists():
            raise UsageError(f"{path} does not exist: represent.py encode makes it")
        try:
            arrays = read_npz(path)
            inputs = dict(json.loads(str(arrays.pop("inputs"))))
            tensors = {name: torch.tensor(array) for name, array in arrays.items()}
            named = {name: tensors.pop(name) for name in ("z", "sigmas", "source", "part")}
            labels = {name.removeprefix(LABEL): each for name, each in tensors.items()}
            codes = cls(**named, labels=labels, inputs=inputs)
            codes._check()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UsageError(f"{path} holds no codes: make them elsewhere") from error
        return codes

    def _check(self) -> None:
        """ValueError unless all sizes agree."""
        count, levels, _ = self.z.shape
        lengths = [len(each) for each in (self.source, self.part, *self.labels.values())]
        if self.sigmas.shape != (levels,) or set(lengths) != {count}:
            raise ValueError("arrays of different lengths")


def load_codes(folder: Path) -> Codes:
    """The codes in a folder, of the pair in that folder.

    Raises:
        UsageError: one of the two is missing or something else, or the codes are another pair's.
    """
    pair, codes = load_pair(folder), Codes.read(folder / CODES)
    if codes.inputs.get("encoder") != pair.encoder.digest:
        raise UsageError(
            f"{folder / CODES} holds codes of another encoder than that of {folder / PAIR}: "
            "expected those that represent.py encode makes"
        )
    return codes


@dataclass(frozen=True)
class Encoding:
    """Images to be encoded at some noise levels.

    Attributes:
        pair: its encoder has averaged weights, or initial ones.
        factors: the images.
        sigmas: (K,) float64, rising or falling.
        weights: which the encoder's are: "averaged" or "initial".
        path: file of the codes; what is unfinished lies in a folder beside it.

    Raises:
        UsageError: the noise levels are not in order, or none that the pair was trained on.
    """

    pair: Pair
    factors: Factors
    sigmas: Tensor
    weights: str
    machine: Machine
    path: Path

    def __post_init__(self) -> None:
        check_levels(self.sigmas)
        low, high = self.pair.network.sigma_min, self.pair.network.sigma_max
        if self.sigmas.min() < low * (1 - ROUNDING) or self.sigmas.max() > high * (1 + ROUNDING):
            raise UsageError(
                f"noise levels from {self.sigmas.min():g} to {self.sigmas.max():g}: the pair was "
                f"trained on {low:g} to {high:g}"
            )

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the codes depend on, as JSON values."""
        factors = self.factors
        told = {**factors.labels, "source": factors.source, "part": factors.part}
        return {
            "encoder": self.pair.encoder.digest,
            "kind": self.pair.kind,
            "weights": self.weights,
            "images": digest_of_tensor(factors.images),
            "labels": {name: digest_of_tensor(each) for name, each in told.items()},
            "sigmas": self.sigmas.tolist(),
            "block": BLOCK,
            **self.machine.inputs,
        }

    def run(self) -> Codes:
        """The codes: those that are there, else made, block by block, with a bar.

        Raises:
            UsageError: what is at the path are no codes.
            WorkError: the encoder gives NaN or infinity.
        """
        if self.path.exists() and (found := Codes.read(self.path)).inputs == self.inputs:
            return found
        check_writable(self.path.parent)
        unfinished = self.path.with_suffix(".unfinished")
        folder, factors = folder_of(unfinished, self.inputs), self.factors
        starts = tqdm(range(0, len(factors.images), BLOCK), "codes", unit=" blocks", disable=None)
        z = torch.cat([self._block(folder, start) for start in starts])
        codes = Codes(z, self.sigmas, factors.labels, factors.source, factors.part, self.inputs)
        codes.write(self.path)
        shutil.rmtree(unfinished)
        return codes

    def _block(self, folder: Path, start: int) -> Tensor:
        """Codes of the images from `start` on."""
        images = self.factors.images[start : start + BLOCK]
        shape = len(images), len(self.sigmas), self.pair.dim
        make: Callable[[], Tensor] = partial(self._encode, images)
        return Block(folder / f"{start:08d}.npy", shape).obtain(make)

    def _encode(self, images: Tensor) -> Tensor:
        clean = from_uint8(images.to(self.pair.network.device))
        z = trajectory(self.pair.code, clean, self.sigmas).cpu()
        if not bool(torch.isfinite(z).all()):
            raise WorkError("the encoder gives NaN or infinity: its weights are unusable")
        return z
