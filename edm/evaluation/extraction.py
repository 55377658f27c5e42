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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from edm.evaluation import fid
from edm.evaluation.features import Features
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of, write_array
from linear_structure.system.machine import rank, share, wait_for, world_size


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


def identity(source: str) -> list[tuple[str, int, int]] | str:
    """What tells the files of a dataset from changed ones: names, sizes and times; or its name."""
    root = Path(source)
    if not root.exists():
        return source
    files = sorted(path for path in (root, *root.rglob("*")) if path.is_file())
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in map(Path.resolve, files)]


@dataclass(frozen=True)
class Selection:
    """Images to be measured.

    Attributes:
        source: name or path of their dataset.
        dataset: where they are.
        chosen: their indices, ascending.
        key: JSON value that tells them from others, and from files that changed.
    """

    source: str
    dataset: Dataset
    chosen: Sequence[int]
    key: Any

    @classmethod
    def of(cls, source: str, num: int | None = None, seed: int = 0) -> "Selection":
        """So many images of a dataset, or all; see `subset`.

        Raises:
            UsageError: the dataset cannot be read, or has fewer images than are needed.
        """
        told = identity(source)
        dataset = datasets.load(source)
        chosen = subset(dataset, num, seed)
        return cls(source, dataset, chosen, {"images": told, "chosen": chosen})

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
class Extraction:
    """What to compute, and the folder where the blocks appear.

    Attributes:
        images: whose features.
        features: the network.
        batch: images in a block.
        folder: for these images, this network and this batch alone.
    """

    images: Selection
    features: Features
    batch: int
    folder: Path

    def compute(self) -> int:
        """Compute the missing blocks of this process; returns the number of images they hold.

        Raises:
            UsageError: the images are damaged, or of a kind that the network does not take.
        """
        mine = share(range(self._block_count))
        missing = [block for block in mine if self._stored(block) is None]
        images = sum(len(self._indices(block)) for block in missing)
        quiet = True if rank() else None
        with tqdm(total=images, desc=self.images.dataset.name, unit="img", disable=quiet) as bar:
            for block in missing:
                self._make(block)
                bar.update(len(self._indices(block)))
        return images

    def blocks(self) -> Iterator[Tensor]:
        """All features in order, (b, dim) float32 at a time; waits for those of other processes."""
        for block in range(self._block_count):
            wait_for([self._path(block)])
            stored = self._stored(block)
            # The process to which a damaged block belongs may be making it again just now: both
            # write the same, and neither is waited for.
            yield self._make(block) if stored is None else torch.from_numpy(np.array(stored))

    @property
    def _block_count(self) -> int:
        return -(-len(self.images.chosen) // self.batch)

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:06d}.npy"

    def _indices(self, block: int) -> Sequence[int]:
        return self.images.chosen[block * self.batch : (block + 1) * self.batch]

    def _stored(self, block: int) -> np.ndarray | None:
        """A block on disk, not yet in memory; None if it is missing or damaged."""
        try:
            rows = open_memmap(self._path(block), mode="r")
        except (FileNotFoundError, ValueError, EOFError):
            return None
        expected = (len(self._indices(block)), self.features.dim)
        return rows if rows.dtype == np.float32 and rows.shape == expected else None

    def _make(self, block: int) -> Tensor:
        rows = self.images.features(self.features, self._indices(block))
        write_array(self._path(block), rows.numpy())
        return rows


@dataclass(frozen=True)
class Measured:
    """A set of images as a distance sees it.

    Attributes:
        statistics: the Gaussian of the features.
        rows: all features (n, D) float32, where they are kept.
        made: speed and memory, for the record.
    """

    statistics: fid.Statistics
    rows: Tensor | None = None
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Extractor:
    """A feature network and how it is used.

    Attributes:
        features: the network, on its device.
        batch: images in a block.
        device: its kind, recorded: "cpu", "cuda", ...
        work: folder of the features, one for all processes.
    """

    features: Features
    batch: int
    device: str
    work: Path

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the features of given images depend on."""
        return {
            "features": self.features.name,
            "weights": self.features.digest,
            "batch": self.batch,
            "device": self.device,
            "threads": torch.get_num_threads(),
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
        folder = self.work / self.key(images)[:16]
        extraction = Extraction(images, self.features, self.batch, folder)
        start = time.perf_counter()
        computed = extraction.compute()
        rate = computed / (time.perf_counter() - start)
        if rank():
            return None
        rows = torch.cat(list(extraction.blocks())) if keep else None
        blocks = extraction.blocks() if rows is None else [rows]
        statistics = fid.measure(blocks, self.features.digest)
        return Measured(statistics, rows, {"images_per_second": rate} | _resources())


def _resources() -> dict[str, int]:
    """Processes, and the greatest memory of this one so far: bytes, on the host and on the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "processes": world_size(),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device_memory": torch.cuda.max_memory_allocated(),
    }
