"""Distance against skipped steps: the experiment of the paper, resumable and in any number of
processes.

Seeds are cut into blocks by their absolute value. A block is always computed whole, by one
process, from seeds to features, and leaves them on disk (n x dim, float32); statistics are made
once, from the blocks in the order of their seeds. So a run that was killed and resumed, and one
of several processes, end with the bytes of one that was not.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.evaluation import fid
from edm.evaluation.features import Features
from edm.evaluation.paired import Sample
from edm.network import Network
from experiments import results
from experiments.presets import PARTS, Preset
from experiments.results import Result
from experiments.sampling import Sampling, computed_in, grid_of, restarts_of
from linear_structure.images import is_whole_png, save_png
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system import machine
from linear_structure.system.arrays import read_npz
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, write_arrays, write_json
from linear_structure.system.machine import Machine, patience
from linear_structure.system.store import Block, folder_of
from linear_structure.teleport import Teleport

ROWS = "rows"  # name of an array
MOST_ROWS = 2000  # of a reference: their kernel is 32 MB
OF_RESULT = ("seeds", "reference")  # what a result depends on and the features of a seed do not


@dataclass(frozen=True)
class Sweep:
    """Everything a sweep needs, loaded once.

    Attributes:
        preset: grid, skips, seeds and block size.
        network: the denoiser, on the machine's device.
        teleport: what carries states past skipped steps.
        features: the feature network, on that device.
        reference: statistics of the real images.
        rows: features (m, D) of `sampled_rows` of these, for KID; None where none is needed.
        root: folder of results, features and images.
        save_images: write PNGs as well.
        alone: measure the teleport's model alone, too, all steps skipped.

    Raises:
        UsageError: two of these do not fit together, or there are fewer than two seeds.
    """

    preset: Preset
    network: Network
    teleport: Teleport
    features: Features
    reference: fid.Statistics
    machine: Machine
    root: Path = results.ROOT
    save_images: bool = False
    alone: bool = False
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        check_seeds(self.preset.seeds)
        self.teleport.check(self.network)
        self.reference.refuse_other(self.features.dim, self.features.digest)

    @cached_property
    def sampling(self) -> Sampling:
        """How seeds become images."""
        preset, sigmas = self.preset, grid_of(self.preset, self.network)
        restarts = restarts_of(preset, self.network)
        return Sampling(self.network, sigmas, self.teleport, preset.row, preset.settings, restarts)

    @cached_property
    def network_digest(self) -> str:
        """What the network is, found once."""
        return self.network.digest

    @property
    def skips(self) -> tuple[int, ...]:
        """What is measured: the preset's numbers of skipped steps, and all of them."""
        return self.preset.skips + (self.preset.steps,) * self.alone

    @property
    def folder(self) -> Path:
        """Where the results of this preset and these seeds lie."""
        return self.path(0).parent

    def path(self, skip: int) -> Path:
        """Where the result of one number of skipped steps lies."""
        return results.path_of(self.root, self.preset.name, self.preset.seeds, skip)

    def reusable(self, skip: int) -> Result | None:
        """The result that is there, if it was made from these inputs."""
        return results.reusable(self.path(skip), self.inputs(skip))

    def image_inputs(self, skip: int) -> dict[str, Any]:
        """What the image of a seed depends on."""
        sigmas = self.sampling.sigmas
        return {
            "preset": self.preset.name,
            "n_skip": skip,
            "sigma_skip": float(self.sampling.grid(skip)[skip]),
            "block": self.preset.block,
            "sampler": self.preset.sampler,
            "sigmas": sigmas.tolist(),
            **self.preset.row.inputs(sigmas, self.preset.settings),
            "network": self.network_digest,
            **({"restarted": True} if self.preset.sigma_skip else {}),
            **self.teleport.inputs,
            **self.machine.inputs,
            **computed_in(self.network),
        }

    def sampling_inputs(self, skip: int) -> dict[str, Any]:
        """What the features of a seed depend on."""
        return {
            **self.image_inputs(skip),
            "features": f"{self.features.name}:{self.features.digest}",
            "distance_name": self.features.distance_name,
        }

    def inputs(self, skip: int) -> dict[str, Any]:
        """What a result depends on."""
        seeds = [self.preset.seeds.first, self.preset.seeds.last]
        told = dict(zip(OF_RESULT, (seeds, self.reference.digest), strict=True))
        return {**self.sampling_inputs(skip), **told}


def stored_features(root: Path, result: Result, dim: int) -> Tensor | None:
    """Features (n, dim) of a result's seeds, in order; None where they are not on disk, or damaged.

    Args:
        root: the folder of all results.
    """
    inputs = {name: value for name, value in result.inputs.items() if name not in OF_RESULT}
    folder = folder_of(root / inputs["preset"] / "features", inputs)
    blocks = _cover(folder, result.seeds, inputs.get("block", result.seeds.count), dim, result.skip)
    parts = []
    for block in blocks:
        rows = block.read() if block.is_whole else None
        if rows is None:
            return None
        parts.append(rows[block.within(result.seeds)])
    return torch.cat(parts)


def stored_reference(root: Path, result: Result) -> fid.Statistics | None:
    """What a result was compared with; None where it is not on disk, or damaged."""
    try:
        return _reference(root, result.inputs["preset"], result.inputs["reference"])
    except KeyError:
        return None


def _reference(root: Path, preset: str, digest: str) -> fid.Statistics | None:
    try:
        found = fid.read(_reference_path(root, preset, digest))
    except UsageError:
        return None
    return found if found.digest == digest else None


def _keep_reference(sweep: Sweep) -> None:
    """Put what a sweep is compared with on disk, unless it is there and whole."""
    preset, digest = sweep.preset.name, sweep.reference.digest
    if _reference(sweep.root, preset, digest) is None:
        fid.write(_reference_path(sweep.root, preset, digest), sweep.reference)
    if sweep.rows is not None and stored_rows(sweep.root, preset, sweep.reference) is None:
        path = _rows_path(sweep.root, preset, digest)
        write_arrays(path, {ROWS: sweep.rows.numpy()})


def sampled_rows(count: int) -> range:
    """Of so many images, evenly spaced, those whose features serve for KID."""
    return range(0, count, -(-count // MOST_ROWS))


def stored_rows(root: Path, preset: str, reference: fid.Statistics) -> Tensor | None:
    """Features of `sampled_rows` of a reference's images; None where they are not on disk."""
    path = _rows_path(root, preset, reference.digest)
    if not path.is_file() or not reference.count:
        return None
    with suppress(UsageError, KeyError):
        found = torch.from_numpy(read_npz(path, ROWS)[ROWS])
        if found.shape == (len(sampled_rows(reference.count)), reference.dim):
            return found
    return None


def _rows_path(root: Path, preset: str, digest: str) -> Path:
    return _reference_path(root, preset, digest).with_suffix(f".{ROWS}.npz")


def _reference_path(root: Path, preset: str, digest: str) -> Path:
    return root / preset / "references" / f"{digest[:16]}.npz"


def check_seeds(seeds: SeedRange) -> None:
    """Refuse fewer images than a covariance needs (UsageError)."""
    if seeds.count < 2:
        raise UsageError(f"seeds {seeds}: a distance needs at least two images, such as 0-999")


@dataclass(frozen=True, kw_only=True)
class SeedBlock(Block):
    """The features of consecutive seeds from `first` on, at one number of skipped steps."""

    skip: int
    first: int

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + self.shape[0])

    def within(self, seeds: SeedRange) -> slice:
        """The part of the block whose seeds belong to the range."""
        return slice(max(seeds.first - self.first, 0), seeds.last + 1 - self.first)


def block_starts(seeds: SeedRange, size: int) -> range:
    """The first seed of each of the blocks that cover some seeds."""
    return range(seeds.first - seeds.first % size, seeds.last + 1, size)


def blocks_of(sweep: Sweep, skip: int) -> list[SeedBlock]:
    """The blocks that cover the preset's seeds, in order."""
    preset, dim = sweep.preset, sweep.features.dim
    folder = folder_of(sweep.root / preset.name / "features", sweep.sampling_inputs(skip))
    return _cover(folder, preset.seeds, preset.block, dim, skip)


def _cover(folder: Path, seeds: SeedRange, size: int, dim: int, skip: int) -> list[SeedBlock]:
    return [
        SeedBlock(path=folder / f"{first:06d}.npy", shape=(size, dim), skip=skip, first=first)
        for first in block_starts(seeds, size)
    ]


def run(sweep: Sweep) -> Iterator[Result]:
    """Yield each number of skipped steps as soon as all of its blocks are there.

    What exists is reused, what was begun is continued. Every process of a group iterates over
    this; only the first one writes results and yields them.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    unsettled = list(sweep.skips) if machine.rank() == 0 else []
    if unsettled:
        _keep_reference(sweep)
    clock = began = time.monotonic()
    for _ in chain([None], _sampled(sweep)):
        while unsettled and not any(_is_missing(sweep, b) for b in blocks_of(sweep, unsettled[0])):
            yield _settled(sweep, unsettled.pop(0), time.monotonic() - clock, patience(began))
            clock = time.monotonic()
    until = patience(began)
    for skip in unsettled:
        yield _settled(sweep, skip, time.monotonic() - clock, until)


def _mine(sweep: Sweep) -> list[SeedBlock]:
    """This process's share of all blocks, the same whatever is finished when it looks."""
    every = [block for skip in sweep.skips for block in blocks_of(sweep, skip)]
    return list(machine.share(every))


def _sampled(sweep: Sweep) -> Iterator[SeedBlock]:
    """Sample this process's blocks that are missing, with a bar."""
    missing = [block for block in _mine(sweep) if _is_missing(sweep, block, is_whole_png)]
    quiet = machine.rank() != 0 or not missing
    for block in tqdm(missing, desc="sampling", unit=" blocks", disable=quiet):
        block.write(_features(sweep, block))
        yield block


def _is_missing(
    sweep: Sweep, block: SeedBlock, is_there: Callable[[Path], bool] = Path.exists
) -> bool:
    """Whether a block has to be sampled: for its images, or for features that no result has."""
    if sweep.save_images and not all(map(is_there, _images_of(sweep, block))):
        return True
    return not block.is_whole and sweep.reusable(block.skip) is None


def _features(sweep: Sweep, block: SeedBlock) -> Tensor:
    """Seeds to features (block, dim); the images are written where they are wanted."""
    with torch.inference_mode():
        pixels = sweep.sampling.pixels(block.seeds, block.skip)
        features = sweep.features(pixels).cpu().float()
    if sweep.save_images:
        paths, asked = _images_of(sweep, block), block.within(sweep.preset.seeds)
        write_json(paths[0].parent / "inputs.json", sweep.image_inputs(block.skip))
        for path, image in zip(paths, pixels.cpu()[asked], strict=True):
            save_png(path, image)
    return features


def _images_of(sweep: Sweep, block: SeedBlock) -> list[Path]:
    """Paths of the block's images whose seeds were asked for, in a folder for their settings."""
    key = digest_of(sweep.image_inputs(block.skip))[:16]
    folder = sweep.root / sweep.preset.name / "images" / f"{block.skip}-{key}"
    return [folder / f"{seed:06d}.png" for seed in block.seeds[block.within(sweep.preset.seeds)]]


def features_of(sweep: Sweep, skip: int, until: float = 0.0) -> Iterator[Tensor]:
    """Features of the preset's seeds, in order, in blocks (n, dim); what is missing is made.

    What other processes make is waited for `until` then, in seconds of `time.monotonic`: by
    default not at all, for after a sweep all are there.
    """
    asked, mine = sweep.preset.seeds, {block.path for block in _mine(sweep)}
    for block in blocks_of(sweep, skip):
        rows = block.obtain(partial(_features, sweep, block), block.path in mine, until)
        yield rows[block.within(asked)]


def _settled(sweep: Sweep, skip: int, seconds: float, until: float) -> Result:
    """The result that is there, or a new one from the blocks on disk."""
    preset, path = sweep.preset, sweep.path(skip)
    if earlier := sweep.reusable(skip):
        results.write(path, earlier)  # it is the latest now, and sealed if an old one was not
        return earlier
    sample = Sample(torch.cat(list(features_of(sweep, skip, until))), sweep.reference)
    result = Result(
        inputs=sweep.inputs(skip),
        outputs={
            "distance": sample.distance,
            "count": preset.seeds.count,
            "nfe": preset.calls(skip),
        },
        made={
            "seconds": round(seconds, 3),
            **results.surroundings(),
            "replaced": [name for name in preset.replaced if name in PARTS],
        },
    )
    results.write(path, result)
    return result
