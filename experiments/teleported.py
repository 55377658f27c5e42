"""The teleport before stochastic chains: what it costs, and what it changes with equal seeds.

Langevin dynamics starts at the largest distance between two images (technique 1 of
`linear_structure.sampling.scales`); the other grids reach from 80 to 0.02.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from edm.evaluation.paired import Change, Sample, change
from experiments import figures, sweep
from experiments.presets import Preset
from experiments.sampling import Sampling
from experiments.sweep import Sweep
from experiments.tables import write_table
from linear_structure.images import from_uint8
from linear_structure.sampling.samplers import final
from linear_structure.sampling.scales import largest_distance
from linear_structure.sampling.seeds import SeedRange
from linear_structure.sampling.table import Settings, find
from linear_structure.system.errors import UsageError

THIRDS = 3  # of the seeds, in their order, whose changes are also told apart
HEAD = ("sampler", "skipped_steps", "sigma", "calls", "images", "distance", "unbiased")
CHANGES = ("change", "low", "high", *(f"change_of_third_{i + 1}" for i in range(THIRDS)))
SHOWN = 5  # images in a row and a column


@dataclass(frozen=True)
class Chain:
    """One sampler with the number of its levels, and how many of them are skipped in turn."""

    sampler: str
    steps: int
    skips: tuple[int, ...]
    lowest: float = 0.02
    highest: float | None = 80.0  # None: the largest distance between two images

    def preset(self, preset: Preset, distance: float) -> Preset:
        """The preset of its sweep; `distance` is the largest between two images."""
        return replace(
            preset,
            sampler=self.sampler,
            settings=Settings(),
            steps=self.steps,
            sigma_min=self.lowest,
            sigma_max=distance if self.highest is None else self.highest,
            skips=self.skips,
        )


CHAINS = (
    Chain("heun", 18, (0, 6, 7, 8, 9), 0.002),
    Chain("ancestral", 40, (0, 17, 21, 24, 27)),
    Chain("annealed", 18, (0, 2, 4, 6, 8), 0.05, None),
    Chain("pc", 30, (0, 8, 11, 14, 16)),
)


def check_thirds(seeds: SeedRange) -> None:
    """Refuse fewer seeds than three covariances need (UsageError)."""
    if seeds.count < 2 * THIRDS:
        raise UsageError(
            f"seeds {seeds}: the change of each third of them needs two images, such as of 0-2999"
        )


def spread_of(images: Tensor) -> float:
    """The largest distance between two of the uint8 images (n, C, H, W), pixels in [-1, 1]."""
    return largest_distance(from_uint8(images).flatten(1))


@dataclass(frozen=True)
class Measured:
    """One number of skipped steps of a chain.

    Attributes:
        sigma: where the teleport ends.
        calls: of the network, for an image.
        sample: features of all seeds.
        changes: against the whole chain, of all seeds and of each third; None of the chain itself.
    """

    sampler: str
    skip: int
    sigma: float
    calls: int
    sample: Sample
    changes: tuple[Change, ...] | None

    @property
    def point(self) -> figures.Interval:
        """Its calls and its change, none without skips, with the interval's ends."""
        if self.changes is None:
            return self.calls, 0.0, 0.0, 0.0
        return self.calls, self.changes[0].difference, *self.changes[0].interval

    def row(self) -> list[object]:
        """A line of the table, under `HEAD` and `CHANGES`."""
        sample = self.sample
        unbiased = sample.unbiased if sample.has_influence else ""
        count = len(sample.features)
        told = [self.sampler, self.skip, self.sigma, self.calls, count, sample.distance, unbiased]
        if self.changes is None:
            return [*told, *[""] * len(CHANGES)]
        pooled, *thirds = self.changes
        return [*told, pooled.difference, *pooled.interval, *(each.difference for each in thirds)]


def measured(swept: Sweep) -> Iterator[Measured]:
    """Each number of skipped steps of a sweep that starts with none, made or continued."""
    whole: tuple[Sample, ...] = ()
    for result in sweep.run(swept):
        rows = torch.cat(list(sweep.features_of(swept, result.skip)))
        samples = tuple(Sample(part, swept.reference) for part in _parts(rows))
        changes = tuple(map(change, samples, whole)) or None
        whole = whole or samples
        sigma, calls = result.inputs["sigma_skip"], result.outputs["nfe"]
        yield Measured(swept.preset.sampler, result.skip, sigma, calls, samples[0], changes)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    """The features of all seeds, and of each third of them."""
    return rows, *rows.tensor_split(THIRDS)


def compared(plain: Sweep, distance: float, folder: Path) -> Iterator[Measured]:
    """All chains on the network and the seeds of a sweep; their results lie in the folder."""
    for chain in CHAINS:
        preset = chain.preset(plain.preset, distance)
        yield from measured(replace(plain, preset=preset, root=folder / chain.sampler))


def line(row: Measured) -> str:
    """One line of what is printed."""
    told = f"{row.sampler:10s} {row.skip:3d}  {row.sigma:7.3g} {row.calls:4d}"
    told = f"{told}   {row.sample.distance:.4f}"
    if row.changes is None:
        return told
    pooled = row.changes[0]
    low, high = pooled.interval
    return f"{told}   {pooled.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def write(folder: Path, rows: list[Measured], name: str, title: str) -> None:
    """The table and its picture."""
    write_table(folder / "teleported_chains.csv", HEAD + CHANGES, [row.row() for row in rows])
    curves: dict[str, list[figures.Interval]] = {}
    for row in rows:
        curves.setdefault(find(row.sampler).title, []).append(row.point)
    figures.chain_changes(folder / "teleported_chains.png", curves, name, title)


def check_shown(seeds: SeedRange) -> None:
    """Refuse fewer seeds than a panel shows images (UsageError)."""
    if seeds.count < SHOWN**2:
        raise UsageError(f"seeds {seeds}: a panel shows {SHOWN**2} images, such as of 0-24")


def write_images(preset: Preset, sampling: Sampling, path: Path) -> None:
    """Images of the preset's sampler, a panel for each of its numbers of skipped steps."""
    first = preset.seeds.first
    seeds, panels = range(first, first + SHOWN**2), {}
    for skip in tqdm(preset.skips, desc="images", unit=" panels"):
        with torch.inference_mode():
            images = final(sampling.steps(seeds, skip))
        start = f"from sigma {float(sampling.sigmas[skip]):.3g}"
        panels[f"{start}: {preset.calls(skip)} calls"] = images
    figures.image_panels(path, panels, SHOWN, f"{preset.title}: {preset.row.title}")
