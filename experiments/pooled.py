"""All seeds of a sweep together: its distances, and how they change against skip 0.

Results are a number for each range of seeds; the features that they leave on disk tell more, since
images of equal seeds are compared with each other (`edm.evaluation.paired`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from edm.evaluation import paired
from edm.evaluation.fid import Statistics, singular
from edm.evaluation.paired import UNCHANGED, Change, Kernel, Knee, Sample
from experiments import sweep
from experiments.results import Result
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system.errors import UsageError


class Unpooled(UsageError):
    """Why the seeds of a sweep cannot be put together."""


@dataclass(frozen=True)
class Pooled:
    """One number of skipped steps, of all seeds together.

    Attributes:
        unbiased: the distance less its bias; None with no more images than features.
        change: against skip 0; None of skip 0 itself.
        kernel, kernel_change: KID of the same features, and its change, where there are no more
            images than these, and some of the reference's are on disk.
    """

    distance: float
    unbiased: float | None
    change: Change | None
    kernel: float | None = None
    kernel_change: Change | None = None


@dataclass(frozen=True)
class Pool:
    """A sweep of equal seeds for each number of skipped steps.

    Attributes:
        rows: by skipped steps.
        steps: of the grid; where all of them are skipped, the teleport's model samples alone.
        ranges: of the seeds, in order.
        count: of all images of a row.
        dim: of their features.
        name: of the distance.
    """

    rows: dict[int, Pooled]
    steps: int
    ranges: tuple[SeedRange, ...]
    count: int
    dim: int
    name: str

    @property
    def changes(self) -> dict[int, Change]:
        """Against skip 0, where the network is called."""
        found = {skip: row.change for skip, row in self.rows.items() if skip < self.steps}
        return {skip: change for skip, change in found.items() if change is not None}

    @property
    def has_kernel(self) -> bool:
        """Whether KID is known."""
        return all(row.kernel is not None for row in self.rows.values())

    @property
    def knee(self) -> Knee:
        """Where quality begins to change."""
        return paired.knee(self.changes, self.rows[0].distance)

    @property
    def verdict(self) -> str:
        """What the changes say in a sentence; empty where only skip 0, or noise, is known."""
        if not self.changes or self.warning:
            return ""
        knee, start, last = self.knee, self.rows[0].distance, max(self.changes)
        end = ", the highest measured" if knee.by_interval == last else ""
        return (
            f"Measured: up to skip {knee.by_interval}{end}, the 95 % interval of the change stays "
            f"below {100 * UNCHANGED:g} % of the {start:.3f} at skip 0; up to skip "
            f"{knee.by_point}, the change itself."
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers could mistake."""
        said = [singular(self.count, self.dim)] if self.count <= self.dim else []
        if self.has_kernel:
            said.append("So KID stands beside it, which needs no covariance and is unbiased.")
        return [*said, self.warning] if self.warning else said

    @property
    def warning(self) -> str:
        """That the network is of no use, in a sentence; empty where it is of some."""
        alone = self.rows.get(self.steps)
        if not alone or not alone.change or alone.change.interval[0] > 0:
            return ""
        return (
            "The network is of no use: at skip 0 its images are no nearer to the reference than "
            f"the teleport's model alone ({self.name} {self.rows[0].distance:.4g} and "
            f"{alone.distance:.4g})."
        )


def pool(root: Path, results: Sequence[Result]) -> Pool:
    """The results of one sweep, from the ranges of seeds that all of its skips have, with a bar.

    The teleport's model alone, which earlier versions did not measure, is left out before a range.

    Raises:
        Unpooled: something of them is not on disk, or no range has all skips and skip 0.
    """
    first = results[0]
    steps, name = len(first.inputs["sigmas"]) - 1, first.inputs["distance_name"]
    by_skip: dict[int, dict[SeedRange, Result]] = {}
    for result in results:
        by_skip.setdefault(result.skip, {})[result.seeds] = result
    common = (set(row) for skip, row in by_skip.items() if skip < steps)
    if 0 not in by_skip or not (ranges := set.intersection(*common)):
        raise Unpooled("no range of seeds has skip 0 and all other skips to compare with it")
    skips = [skip for skip in sorted(by_skip) if ranges <= by_skip[skip].keys()]
    reference = sweep.stored_reference(root, first)
    if reference is None:
        raise Unpooled(
            "the reference statistics of this sweep are not on disk: its command, run again, "
            "keeps them and samples nothing"
        )
    order = tuple(sorted(ranges, key=lambda seeds: seeds.first))
    samples = ((k, _sample(root, [by_skip[k][s] for s in order], reference)) for k in skips)
    count = sum(seeds.count for seeds in order)
    few = 2 < count <= reference.dim
    real = sweep.stored_rows(root, first.inputs["preset"], reference) if few else None
    rows = dict(_compared(tqdm(samples, "changes", len(skips), leave=False, disable=None), real))
    return Pool(rows, steps, order, count, reference.dim, name)


def _sample(root: Path, results: Sequence[Result], reference: Statistics) -> Sample:
    """The features of results of one number of skipped steps."""
    parts = []
    for result in results:
        rows = sweep.stored_features(root, result, reference.dim)
        if rows is None:
            raise Unpooled(
                f"the features of seeds {result.seeds} at skip {result.skip} are not on disk"
            )
        parts.append(rows)
    return Sample(torch.cat(parts), reference)


def _compared(
    samples: Iterable[tuple[int, Sample]], real: Tensor | None
) -> Iterator[tuple[int, Pooled]]:
    """Rows in order; the first sample is that of skip 0. With real features (m, D), KID too."""
    baseline: Sample | None = None
    start: Kernel | None = None
    for skip, sample in samples:
        unbiased = sample.unbiased if sample.has_influence else None
        row = Pooled(
            sample.distance, unbiased, paired.change(sample, baseline) if baseline else None
        )
        if real is not None:
            kernel = Kernel.of(sample.features, real)
            moved = kernel.change(start) if start else None
            row, start = replace(row, kernel=kernel.distance, kernel_change=moved), start or kernel
        baseline = baseline or sample
        yield skip, row


def pool_or_say(root: Path, results: Sequence[Result]) -> Pool | None:
    """As `pool`; or None, after a sentence that says what is missing."""
    try:
        return pool(root, results)
    except Unpooled as missing:
        print(f"No change against skip 0, and no interval of it: {missing}.")
        return None
