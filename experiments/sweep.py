"""Distance against skipped steps: the experiment of the paper, resumable and in any number of
processes.

Seeds are cut into blocks by their absolute value. A block is always computed whole, by one
process, from seeds to features, and leaves them on disk (n x dim, float32); statistics are made
once, from the blocks in the order of their seeds. So a run that was killed and resumed, and one
of several processes, end with the bytes of one that was not.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.evaluation import fid
from edm.evaluation.features import Features
from edm.precondition import Preconditioned
from experiments import blocks, results
from experiments.presets import Preset, SeedRange
from experiments.results import Result
from experiments.sampling import SAMPLERS, Sampling, grid_of, image_shape, nfe
from experiments.teleports import (
    SOLVER_STEPS,
    check_classes,
    check_shape,
    flow_of,
    flows_of,
    has_closed_flow,
)
from linear_structure.images import save_png
from linear_structure.parameters import Parameters
from linear_structure.system import machine
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, write_array, write_json

POLL = 0.2  # seconds between two looks for what another process makes


@dataclass(frozen=True)
class Sweep:
    """Everything a sweep needs, loaded once.

    Attributes:
        preset: grid, skips, seeds and block size.
        network: the denoiser, on `device`; `network_digest` identifies its weights.
        parameters: the model to teleport with.
        features: the feature network, on `device`.
        reference: statistics of the real images.
        threads: of the CPU, recorded, since sums depend on it in the last bits.
        root: folder of results, features and images.
        save_images: write PNGs as well.
        tf32: whether the network computes in TF32 on a GPU.
        by_class: class -> parameters to teleport its samples with, in place of `parameters`.

    Raises:
        UsageError: two of these do not fit together, or there are fewer than two seeds.
    """

    preset: Preset
    network: Preconditioned
    network_digest: str
    parameters: Parameters
    features: Features
    reference: fid.Statistics
    device: torch.device
    threads: int
    root: Path = results.ROOT
    save_images: bool = False
    tf32: bool = False
    by_class: Mapping[int, Parameters] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_seeds(self.preset.seeds)
        check_sampler(self.preset.sampler)
        check_shape(self.parameters.model, self.network)
        if self.by_class:
            check_classes(self.by_class, self.network.label_dim)
        self.reference.refuse_other(self.features.dim, self.features.digest)

    @cached_property
    def sigmas(self) -> Tensor:
        """The full grid, (N + 1,) float64."""
        return grid_of(self.preset, self.network)

    @property
    def folder(self) -> Path:
        """Where the results of this preset and these seeds lie."""
        return self.root / self.preset.name / str(self.preset.seeds)

    def sampling(self, skip: int) -> Sampling:
        """How seeds become images after `skip` skipped steps."""
        return Sampling(
            image_shape(self.network),
            self.sigmas,
            skip,
            flow_of(self.parameters.model),
            self.device,
            self.preset.sampler,
            flows_of(self.by_class),
        )

    def image_inputs(self, skip: int) -> dict[str, Any]:
        """What the image of a seed depends on."""
        return {
            "preset": self.preset.name,
            "n_skip": skip,
            "sigma_skip": float(self.sigmas[skip]),
            "block": self.preset.block,
            "sampler": self.preset.sampler,
            "sigmas": self.sigmas.tolist(),
            "network": self.network_digest,
            **teleport_inputs(self.parameters, self.by_class),
            "device": self.device.type,
            "threads": self.threads,
            **({"tf32": True} if self.tf32 else {}),
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
        return {**self.sampling_inputs(skip), "seeds": seeds, "reference": self.reference.digest}


def teleport_inputs(own: Parameters, by_class: Mapping[int, Parameters]) -> dict[str, Any]:
    """What a teleport depends on, beside the grid."""
    classes = [by_class[label].digest for label in sorted(by_class)]
    return {
        "parameters": own.digest,
        **({"by_class": classes} if classes else {}),
        **({} if has_closed_flow(own.model) else {"solver_steps": SOLVER_STEPS}),
    }


def check_seeds(seeds: SeedRange) -> None:
    """Refuse fewer images than a covariance needs.

    Raises:
        UsageError: there is only one.
    """
    if seeds.count < 2:
        raise UsageError(f"seeds {seeds}: a distance needs at least two images, such as 0-999")


def check_sampler(name: str) -> None:
    """Refuse a sampler that is not known.

    Raises:
        UsageError: it is not; the message lists the known ones.
    """
    if name not in SAMPLERS:
        raise UsageError(f"sampler is {name!r}: expected one of {', '.join(SAMPLERS)}")


@dataclass(frozen=True)
class Block:
    """The seeds first..first + size - 1 at one number of skipped steps; their features' path."""

    skip: int
    first: int
    size: int
    path: Path

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + self.size)

    @property
    def is_whole(self) -> bool:
        """Whether its features are on disk."""
        return blocks.is_whole(self.path, self.size)

    def within(self, seeds: SeedRange) -> slice:
        """The part of the block whose seeds belong to the range."""
        return slice(max(seeds.first - self.first, 0), seeds.last + 1 - self.first)


def block_starts(preset: Preset) -> range:
    """The first seed of each of the blocks that cover the preset's seeds."""
    first = preset.seeds.first - preset.seeds.first % preset.block
    return range(first, preset.seeds.last + 1, preset.block)


def blocks_of(sweep: Sweep, skip: int) -> list[Block]:
    """The blocks that cover the preset's seeds, in order."""
    preset = sweep.preset
    key = digest_of(sweep.sampling_inputs(skip))[:16]
    folder = sweep.root / preset.name / "features" / key
    return [
        Block(skip, start, preset.block, folder / f"{start:06d}.npy")
        for start in block_starts(preset)
    ]


def run(sweep: Sweep) -> Iterator[Result]:
    """Yield each number of skipped steps as soon as all of its blocks are there.

    What exists is reused, what was begun is continued. Every process of a group iterates over
    this; only the first one writes results and yields them.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    unsettled = list(sweep.preset.skips) if machine.rank() == 0 else []
    clock = time.perf_counter()
    for _ in chain([None], _sampled(sweep)):
        while unsettled and not any(_is_missing(sweep, b) for b in blocks_of(sweep, unsettled[0])):
            yield _settled(sweep, unsettled.pop(0), time.perf_counter() - clock)
            clock = time.perf_counter()
    for skip in unsettled:
        yield _settled(sweep, skip, time.perf_counter() - clock)


def _sampled(sweep: Sweep) -> Iterator[Block]:
    """Sample this process's share of the blocks that are missing, with a bar."""
    every = [block for skip in sweep.preset.skips for block in blocks_of(sweep, skip)]
    # Shared before the finished ones are left out: processes that look at different times agree.
    mine = [block for block in machine.share(every) if _is_missing(sweep, block)]
    quiet = machine.rank() != 0 or not mine
    for block in tqdm(mine, desc="sampling", unit=" blocks", disable=quiet):
        _sample_block(sweep, block)
        yield block


def _reusable(sweep: Sweep, skip: int) -> Result | None:
    path = results.path_of(sweep.root, sweep.preset.name, sweep.preset.seeds, skip)
    return results.reusable(path, sweep.inputs(skip))


def _is_missing(sweep: Sweep, block: Block) -> bool:
    """Whether a block has to be sampled: for its images, or for features that no result has."""
    if sweep.save_images and not all(path.exists() for path in _images_of(sweep, block)):
        return True
    return not block.is_whole and _reusable(sweep, block.skip) is None


def _sample_block(sweep: Sweep, block: Block) -> None:
    """Seeds to features on disk; the images as well where they are wanted."""
    with torch.inference_mode():
        pixels = sweep.sampling(block.skip).pixels(sweep.network, block.seeds)
        features = sweep.features(pixels).cpu().float().numpy()
    if sweep.save_images:
        _save_images(sweep, block, pixels.cpu())
    write_array(block.path, features)


def _save_images(sweep: Sweep, block: Block, pixels: Tensor) -> None:
    """Write the images of the asked seeds, and beside them what they depend on."""
    paths = _images_of(sweep, block)
    write_json(paths[0].parent / "inputs.json", sweep.image_inputs(block.skip))
    for path, image in zip(paths, pixels[block.within(sweep.preset.seeds)], strict=True):
        save_png(path, image)


def _images_of(sweep: Sweep, block: Block) -> list[Path]:
    """Paths of the block's images whose seeds were asked for, in a folder for their settings."""
    key = digest_of(sweep.image_inputs(block.skip))[:16]
    folder = sweep.root / sweep.preset.name / "images" / f"{block.skip}-{key}"
    return [folder / f"{seed:06d}.png" for seed in block.seeds[block.within(sweep.preset.seeds)]]


def _settled(sweep: Sweep, skip: int, seconds: float) -> Result:
    """The result that is there, or a new one from the blocks on disk."""
    if earlier := _reusable(sweep, skip):
        results.path_of(sweep.root, sweep.preset.name, sweep.preset.seeds, skip).touch()
        return earlier
    preset = sweep.preset
    statistics = fid.measure(_features_of(block, preset.seeds) for block in blocks_of(sweep, skip))
    result = Result(
        inputs=sweep.inputs(skip),
        outputs={
            "distance": fid.frechet(statistics, sweep.reference),
            "count": statistics.count,
            "nfe": nfe(preset.steps, skip, preset.sampler),
        },
        made={"seconds": round(seconds, 3), **results.surroundings()},
    )
    results.write(results.path_of(sweep.root, preset.name, preset.seeds, skip), result)
    return result


def _features_of(block: Block, seeds: SeedRange) -> Tensor:
    """The rows of a block whose seeds belong to the range; waits for another process's block."""
    while not block.is_whole:
        time.sleep(POLL)
    return blocks.read(block.path)[block.within(seeds)]
