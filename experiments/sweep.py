"""Distance against skipped steps: the experiment of the paper, resumable and in any number of
processes.

Seeds are cut into blocks by their absolute value. A block is always computed whole, by one
process, from seeds to features, and leaves them on disk (n x dim, float32); statistics are made
once, from the blocks in the order of their seeds. So a run that was killed and resumed, and one
of several processes, end with the bytes of one that was not.
"""

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edm import fid
from edm.features import Features
from edm.precondition import Preconditioned
from experiments import results
from experiments.presets import Preset, SeedRange
from experiments.results import Result
from experiments.sampling import check_shape, flow_of, grid_of, image_shape, nfe, sample_pixels
from linear_structure import distributed
from linear_structure.files import digest_of, write_array
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import save_png
from linear_structure.parameters import Parameters


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

    def __post_init__(self) -> None:
        check_shape(self.teleport, self.network)

    @property
    def teleport(self) -> Gaussian | Isotropic:
        """The model whose flow skips the first steps.

        Raises:
            UsageError: the parameters are of a kind without a closed-form flow.
        """
        return flow_of(self.parameters)

    @cached_property
    def sigmas(self) -> Tensor:
        """The full grid, (N + 1,) float64."""
        return grid_of(self.preset, self.network)

    @property
    def folder(self) -> Path:
        """Where the results of this preset and these seeds lie."""
        return self.root / self.preset.name / str(self.preset.seeds)

    def sampling_inputs(self, skip: int) -> dict[str, Any]:
        """What the features of a seed depend on."""
        return {
            "preset": self.preset.name,
            "n_skip": skip,
            "sigma_skip": float(self.sigmas[skip]),
            "block": self.preset.block,
            "sampler": "heun",
            "sigmas": self.sigmas.tolist(),
            "network": self.network_digest,
            "parameters": self.parameters.digest,
            "features": f"{self.features.name}:{self.features.digest}",
            "distance_name": self.features.distance_name,
            "device": self.device.type,
            "threads": self.threads,
        }

    def inputs(self, skip: int) -> dict[str, Any]:
        """What a result depends on."""
        seeds = [self.preset.seeds.first, self.preset.seeds.last]
        return {**self.sampling_inputs(skip), "seeds": seeds, "reference": self.reference.digest}


@dataclass(frozen=True)
class Block:
    """The seeds first..first + size - 1 at one number of skipped steps."""

    skip: int
    first: int
    size: int
    path: Path

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + self.size)


def blocks_of(sweep: Sweep, skip: int) -> list[Block]:
    """The blocks that cover the preset's seeds, in order."""
    preset = sweep.preset
    key = digest_of(sweep.sampling_inputs(skip))[:16]
    folder = sweep.root / preset.name / "features" / key
    first = preset.seeds.first - preset.seeds.first % preset.block
    return [
        Block(skip, start, preset.block, folder / f"{start:06d}.npy")
        for start in range(first, preset.seeds.last + 1, preset.block)
    ]


def run(sweep: Sweep) -> Iterator[Result]:
    """Yield each number of skipped steps as soon as all of its blocks are there.

    What exists is reused, what was begun is continued. Every process of a group iterates over
    this; only the first one writes results and yields them.
    """
    sweep.folder.mkdir(parents=True, exist_ok=True)
    unsettled = list(sweep.preset.skips) if distributed.rank() == 0 else []
    clock = time.perf_counter()
    for _ in chain([None], _sampled(sweep)):
        while unsettled and not any(_is_missing(sweep, b) for b in blocks_of(sweep, unsettled[0])):
            yield _settled(sweep, unsettled.pop(0), time.perf_counter() - clock)
            clock = time.perf_counter()
    for skip in unsettled:
        yield _settled(sweep, skip, time.perf_counter() - clock)


def _sampled(sweep: Sweep) -> Iterator[Block]:
    """Sample this process's share of the blocks that are missing, with a bar."""
    blocks = [block for skip in sweep.preset.skips for block in blocks_of(sweep, skip)]
    # Shared before the finished ones are left out: processes that look at different times agree.
    mine = [block for block in distributed.share(blocks) if _is_missing(sweep, block)]
    quiet = distributed.rank() != 0 or not mine
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
    return not block.path.exists() and _reusable(sweep, block.skip) is None


def _sample_block(sweep: Sweep, block: Block) -> None:
    """Seeds to features on disk; the images as well where they are wanted."""
    with torch.inference_mode():
        pixels = sample_pixels(
            sweep.network,
            block.seeds,
            image_shape(sweep.network),
            sweep.sigmas,
            block.skip,
            sweep.teleport,
            sweep.device,
        )
        features = sweep.features(pixels).cpu().float().numpy()
    if sweep.save_images:
        for path, image in zip(_images_of(sweep, block), pixels.cpu(), strict=True):
            save_png(path, image)
    write_array(block.path, features)


def _images_of(sweep: Sweep, block: Block) -> list[Path]:
    return [sweep.folder / str(block.skip) / f"{seed:06d}.png" for seed in block.seeds]


def _settled(sweep: Sweep, skip: int, seconds: float) -> Result:
    """The result that is there, or a new one from the blocks on disk."""
    if earlier := _reusable(sweep, skip):
        results.path_of(sweep.root, sweep.preset.name, sweep.preset.seeds, skip).touch()
        return earlier
    preset, blocks = sweep.preset, blocks_of(sweep, skip)
    distributed.wait_for(block.path for block in blocks)
    statistics = fid.measure(_features_of(block, preset.seeds) for block in blocks)
    result = Result(
        inputs=sweep.inputs(skip),
        outputs={
            "distance": fid.frechet(statistics, sweep.reference),
            "count": statistics.count,
            "nfe": nfe(preset.steps, skip),
        },
        made={
            "seconds": round(seconds, 3),
            "host": platform.node(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        },
    )
    results.write(results.path_of(sweep.root, preset.name, preset.seeds, skip), result)
    return result


def _features_of(block: Block, seeds: SeedRange) -> Tensor:
    """The rows of a block whose seeds belong to the range."""
    features = torch.from_numpy(np.load(block.path, allow_pickle=False))
    return features[max(seeds.first - block.first, 0) : seeds.last + 1 - block.first]
