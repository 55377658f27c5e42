"""The paper's comparisons for one preset: numbers first, kept on disk, then pictures and tables.

Everything starts from the same seeds: the network's trajectories, then each analytic model beside
them, one at a time, so that a stop loses one model's numbers at most.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import comparison, figures
from experiments.comparison import ISOTROPIC, Key, Makers, States, Study, solution
from experiments.findings import Settling, settling, summary
from experiments.presets import Preset
from experiments.sampling import Sampling
from experiments.sweep import Sweep
from experiments.tables import write_table
from linear_structure.gaussian import Gaussian
from linear_structure.sampling.samplers import final
from linear_structure.system.files import write_json
from linear_structure.system.store import kept
from linear_structure.teleport import Teleport

SHOWN = 9  # images in a row of a figure
ROWS = 4  # of skips that are all shown; of more, every second one


@dataclass(frozen=True)
class Reproduction:
    """A sweep, the images its network was trained on if they are at hand, and where numbers go.

    Attributes:
        gaussian: of the sweep's teleport.
        images: uint8 (n, C, H, W), or None: then models that need images are left out.
        count: trajectories, of the first seeds of the preset, and noised images.
        folder: of all numbers and pictures.
        labels: classes (n,) of the images, if they have any.
    """

    sweep: Sweep
    gaussian: Gaussian
    images: Tensor | None
    count: int
    folder: Path
    labels: Tensor | None = None

    @property
    def preset(self) -> Preset:
        return self.sweep.preset

    @property
    def sigmas(self) -> Tensor:
        """The preset's grid, (N + 1,) float64."""
        return self.sweep.sampling.sigmas

    @cached_property
    def sampling(self) -> Sampling:
        """Heun's method, its first steps teleported by the Gaussian of all images."""
        return Sampling(self.sweep.network, self.sigmas, Teleport(self.gaussian))

    @cached_property
    def states(self) -> States:
        """Where the models are compared with the network."""
        return States(self.sampling, self._seeds(self.count), self.images)

    def _seeds(self, count: int) -> range:
        (seeds,) = self.preset.seeds.head(count).blocks(count)
        return seeds

    @cached_property
    def makers(self) -> Makers:
        """What makes each analytic model."""
        return comparison.models(self.gaussian, self.images, labels=self.labels)

    @cached_property
    def study(self) -> Study:
        """The models beside the network; numbers that are on disk are not made again."""
        folder, machine = self.folder / "models", self.sweep.machine
        return comparison.study_of(self.sampling, machine, self.makers, self.images, folder)

    def numbers(self) -> dict[Key, dict[str, Any]]:
        """Each model beside the network, with a bar."""
        found = self.study.numbers(self.states, comparison.PARTS)
        return {key: comparison.compared(self.states, each) for key, each in found.items()}

    def settled(self) -> Settling:
        """How principal components settle along the network's trajectories."""
        inputs = {**self.study.inputs, "seeds": list(self.states.seeds)}
        path, states = self.folder / "components.json", self.states
        found = kept(path, inputs, lambda: asdict(settling(states.trajectory, self.gaussian)))
        return Settling(**found)

    def samples(self, skip: int, count: int) -> Tensor:
        """Images (count, C, H, W) of the first seeds, by the preset's sampler after a teleport."""
        preset = self.preset
        own = replace(self.sampling, sampler=preset.row, settings=preset.settings)
        with torch.inference_mode():
            return final(own.steps(self._seeds(count), skip))


def write_comparisons(r: Reproduction) -> None:
    """Figures 1, 3, 4 and 5, each with its numbers as CSV, the components, and the findings."""
    numbers, settled = r.numbers(), r.settled()
    name, count = r.preset.title, f"{r.count} seeds"
    figures.overview(r.folder / "figure1.png", numbers, f"{name}: network and theory, {count}")
    where = r.states.where
    for states in where:
        _write(r.folder / f"figure3_{states}.csv", numbers, states, "error", "explained", "share")
    title = f"{name}: analytic scores against the network's, {count}"
    figures.score_comparison(r.folder / "figure3.png", numbers, where, title)
    parts = {"figure4": ("state", "state x"), "figure5": ("denoised", "denoised image D(x)")}
    for figure, (part, what) in parts.items():
        _write(r.folder / f"{figure}.csv", numbers, "solution", part)
        title = f"{name}: solutions from the same noise, {count}"
        label = f"relative deviation of the {what}"
        figures.solution_deviation(r.folder / f"{figure}.png", numbers, part, label, title)
    title = f"{name}: principal components along the network's trajectories, {count}"
    figures.settling_order(r.folder / "components.png", asdict(settled), title)
    write_json(r.folder / "findings.json", summary(numbers, settled, where["noised"]))


def write_pictures(r: Reproduction) -> None:
    """Figures 2 A, B and C: what the network, the models and the teleported sampler make."""
    levels = torch.linspace(0, len(r.sigmas) - 2, SHOWN).round().long().tolist()
    title = f"{r.preset.title}: denoised images of one trajectory, from noise to image"
    columns = [f"{r.sigmas[i]:.2g}" for i in levels]
    steps = r.states.trajectory
    rows = {"network": torch.cat([steps[i].denoised[:1] for i in levels])}
    ours = list(solution(r.gaussian, steps[0].x[:1], r.sigmas))
    rows["Gaussian"] = torch.cat([ours[i].denoised for i in levels])
    figures.image_rows(r.folder / "figure2a.png", rows, columns, "sigma", title)
    title = f"{r.preset.title}: samples from the same noise"
    shown = min(SHOWN, r.count)
    seeds = [str(r.preset.seeds.first + i) for i in range(shown)]
    figures.image_rows(r.folder / "figure2b.png", _model_samples(r), seeds, "seed", title)
    rows = {f"{k} skipped": r.samples(k, shown) for k in shown_skips(r.preset.skips)}
    title = f"{r.preset.title}: samples whose first steps are teleported"
    figures.image_rows(r.folder / "figure2c.png", rows, seeds, "seed", title)


def shown_skips(skips: Sequence[int]) -> list[int]:
    """0 and all others of a few skips, every second one of many."""
    others = [skip for skip in skips if skip]
    return [0, *(others[1::2] if len(others) > ROWS else others)]


def _model_samples(r: Reproduction) -> dict[str, Tensor]:
    """Where the trajectories of the network and of some models end, from the same noise."""
    steps = r.states.trajectory
    start, found = steps[0].x[:SHOWN], {"network": steps[-1].x[:SHOWN]}
    for key in figures.FEW:
        if key in r.makers and key != ISOTROPIC:
            model = r.makers[key]().to(start)  # not to be moved there at each of its calls
            with torch.inference_mode():
                *_, last = solution(model, start, r.sigmas)
            found[key.title] = last.denoised
    return found


def _write(path: Path, numbers: figures.Numbers, part: str, *columns: str) -> None:
    """A part's quartiles, the first of the columns, and what stands beside them, by sigma."""
    rows = [
        [key.title, sigma, *quartiles, *rest]
        for key, parts in numbers.items()
        for sigma, quartiles, *rest in zip(
            *(parts[part][column] for column in ("sigma", *columns)), strict=True
        )
    ]
    head = ("model", "sigma", "lower_quartile", "median", "upper_quartile", *columns[1:])
    write_table(path, head, rows)
