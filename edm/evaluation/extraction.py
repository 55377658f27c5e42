"""Features of a set of images, left on disk in blocks: memory does not grow with the images.

The images are cut into blocks of fixed size. A block is computed whole, by one process, and appears
as one file, (b, dim) float32. Several processes take every world_size-th block each and meet
through the files alone, in a folder that all of them see. So a run that was stopped continues, and
ends, as one of several processes does, with the features of a single uninterrupted one: on a CPU
bit for bit, at equal block sizes and thread counts.
"""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edm.evaluation import fid
from edm.evaluation.features import Features
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.data.pictures import images_below
from linear_structure.system.download import fetch
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, digest_of_file
from linear_structure.system.machine import Machine, patience, rank, share, world_size
from linear_structure.system.store import Block


def subset(dataset: Dataset, num: int | None, seed: int) -> list[int]:
    """Indices, ascending, of `num` images drawn as EDM's `fid.py` draws them; of all for None.

    Raises:
        UsageError: the dataset has fewer images, or these are fewer than two.
    """
    wanted = dataset.count if num is None else num
    if wanted > dataset.count:
        raise UsageError(f"{dataset.name} has {dataset.count} images, not the {num} asked for")
    if wanted < 2:
        raise UsageError(f"{wanted} of {dataset.name}: a distance needs two images or more")
    if wanted == dataset.count:
        return list(range(dataset.count))
    order = np.arange(dataset.count)
    # The old generator, because the published subsets were drawn with it.
    np.random.RandomState(seed % (1 << 31)).shuffle(order)
    return sorted(order[:num].tolist())


def identity(source: str, chosen: Sequence[int]) -> dict[str, Any]:
    """What tells images of a dataset from others: the content of their files, wherever they lie.

    Args:
        source: name or path of the dataset.
        chosen: indices of the images.
    """
    if source in datasets.NAMES:
        files = [fetch(each) for each in datasets.sources_of(source)]
        return {"dataset": source, "files": [*map(digest_of_file, files)], "chosen": chosen}
    root = Path(source)
    if file := datasets.file_of(root):
        return {"files": [digest_of_file(file)], "chosen": chosen}
    names = images_below(root)
    bar = tqdm([names[i] for i in chosen], "comparing", unit=" files", disable=None, leave=False)
    return {"files": [digest_of_file(root / name) for name in bar]}


@dataclass(frozen=True)
class Selection:
    """Images to be measured."""

    source: str  # name or path of their dataset
    dataset: Dataset
    chosen: Sequence[int]  # their indices, ascending
    key: dict[str, Any]  # JSON values that tell them from others, and from files that changed

    @classmethod
    def of(cls, source: str, num: int | None = None, seed: int = 0) -> "Selection":
        """So many images of a dataset, or all; raises as `datasets.load` and `subset`."""
        dataset = datasets.load(source)
        chosen = subset(dataset, num, seed)
        return cls(source, dataset, chosen, {"images": identity(source, chosen)})

    def features(self, features: Features, indices: Sequence[int]) -> Tensor:
        """Features (b, dim) float32 of some of its dataset's images.

        Raises:
            UsageError: the images are damaged, or of a kind that the network does not take.
        """
        images = torch.cat([self.dataset.read(i, i + 1) for i in indices])
        try:
            return features(images).float().cpu()
        except ValueError as error:
            raise UsageError(f"{self.dataset.name} does not suit the features: {error}") from error


@dataclass(frozen=True)
class Measured:
    """A set of images as a distance sees it."""

    statistics: fid.Statistics
    rows: Tensor | None = None  # all features (n, D) float32, where they are kept
    made: dict[str, Any] = field(default_factory=dict)  # speed and memory, for the record


@dataclass(frozen=True)
class Extractor:
    """A feature network and how it is used."""

    features: Features  # on its device
    batch: int  # images in a block
    machine: Machine
    work: Path  # folder of the features, one for all processes

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the features of given images depend on."""
        return {
            "features": self.features.name,
            "weights": self.features.digest,
            "batch": self.batch,
            "device": self.machine.device.type,
            "threads": self.machine.threads,
            "torch": torch.__version__,
        }

    def key(self, images: Selection) -> str:
        """Digest of all that the features of these images depend on."""
        return digest_of(self.inputs | images.key)

    def measure(self, images: Selection, keep: bool = False) -> Measured | None:
        """The features of images, as every process takes its part in; the first has the result.

        Args:
            keep: hold all features in memory at the end.

        Raises:
            UsageError: the images are damaged, or of a kind that the network does not take.
        """
        start = time.monotonic()
        rate = self.compute(images) / (time.monotonic() - start)
        if rank():
            return None
        until = patience(start)
        rows = torch.cat(list(self.blocks(images, until))) if keep else None
        blocks = self.blocks(images, until) if rows is None else [rows]
        statistics = fid.measure(blocks, self.features.digest)
        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        made = {
            "images_per_second": rate,
            "processes": world_size(),
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            "peak_device_memory": torch.cuda.max_memory_allocated(),
        }
        return Measured(statistics, rows, made)

    def compute(self, images: Selection) -> int:
        """Compute the missing blocks of this process; returns the number of images they hold."""
        blocks = self._blocks(images)
        missing = [n for n in share(range(len(blocks))) if not blocks[n].is_whole]
        total = sum(blocks[n].shape[0] for n in missing)
        quiet = True if rank() else None
        with tqdm(total=total, desc=images.dataset.name, unit="img", disable=quiet) as bar:
            for n in missing:
                blocks[n].write(self._made(images, n))
                bar.update(blocks[n].shape[0])
        return total

    def blocks(self, images: Selection, until: float = 0.0) -> Iterator[Tensor]:
        """All features in order, (b, dim) float32 at a time.

        Those of other processes are waited for `until` then, in seconds of `time.monotonic`: by
        default not at all.
        """
        blocks = self._blocks(images)
        mine = share(range(len(blocks)))
        for n, block in enumerate(blocks):
            yield block.obtain(partial(self._made, images, n), n in mine, until)

    def _blocks(self, images: Selection) -> list[Block]:
        """In a folder for these images, this network and this batch alone."""
        folder, count = self.work / self.key(images)[:16], len(images.chosen)
        sizes = [min(self.batch, count - start) for start in range(0, count, self.batch)]
        shapes = [(size, self.features.dim) for size in sizes]
        return [Block(folder / f"{n:06d}.npy", shape) for n, shape in enumerate(shapes)]

    def _made(self, images: Selection, block: int) -> Tensor:
        indices = images.chosen[block * self.batch : (block + 1) * self.batch]
        return images.features(self.features, indices)
