"""The paper's comparisons for one preset: numbers first, kept on disk, then pictures and tables.

Everything starts from the same seeds: the network's trajectories, then each analytic model beside
them, one at a time, so that a stop loses one model's numbers at most.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiments import figures, models
from experiments.findings import Settling, settling, summary
from experiments.kept import kept
from experiments.presets import Preset
from experiments.sampling import carry, final
from experiments.sweep import Sweep
from experiments.tables import write_table
from experiments.trajectories import REFINEMENT, compared, on_noised, solution
from linear_structure.denoise import Denoiser
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.parameters import Model
from linear_structure.sampling.samplers import Step, heun
from linear_structure.system.files import digest_of_tensor, write_json

LEVELS = 24  # of noised images, evenly in log sigma over the grid's range
SHOWN = 9  # images in a row of a figure


@dataclass(frozen=True)
class Reproduction:
    """A sweep, the images its network was trained on if they are at hand, and where numbers go.

    Attributes:
        gaussian: the sweep's parameters.
        images: uint8 (n, C, H, W), or None: then models that need images are left out.
        count: trajectories, of the first seeds of the preset, and noised images.
        folder: of all numbers and pictures.
    """

    sweep: Sweep
    gaussian: Gaussian
    images: Tensor | None
    count: int
    folder: Path

    @property
    def preset(self) -> Preset:
        return self.sweep.preset

    @property
    def sigmas(self) -> Tensor:
        """The preset's grid, (N + 1,) float64."""
        return self.sweep.sigmas

    @cached_property
    def trajectory(self) -> list[Step]:
        """The network's trajectories, all levels and the end."""
        denoise, start = self._drawn(self.count)
        with torch.inference_mode():
            steps = list(heun(denoise, start, self.sigmas))
        final(steps)  # refuses NaN
        return steps

    def _drawn(self, count: int) -> tuple[Denoiser, Tensor]:
        """The denoiser of the first seeds, told their classes if it has any, and their states."""
        (seeds,) = self.preset.seeds.head(count).blocks(count)
        denoise, start, _ = self.sweep.sampling(0).drawn(self.sweep.network, seeds)
        return denoise, start

    @cached_property
    def noised(self) -> list[Step]:
        """The network at noised images."""
        ends = self.sigmas[[0, -2]].log()
        levels = torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64).exp()
        denoise, _ = self._drawn(self.count)
        with torch.inference_mode():
            return list(on_noised(denoise, self._clean().to(self.sweep.device), levels))

    def _clean(self) -> Tensor:
        """Images spread over the data; the network's samples where it has classes, or no images."""
        if self.images is None or len(self.images) < self.count or self.sweep.network.label_dim:
            return self.trajectory[-1].x
        return from_uint8(self.images[:: len(self.images) // self.count][: self.count])

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What all numbers depend on."""
        return {
            "preset": self.preset.name,
            "network": self.sweep.network_digest,
            "gaussian": self.sweep.parameters.digest,
            "images": None if self.images is None else digest_of_tensor(self.images),
            "device": self.sweep.device.type,
            "threads": self.sweep.threads,
            "levels": LEVELS,
            "refinement": REFINEMENT,
            "sigmas": self.sigmas.tolist(),
            "first_seed": self.preset.seeds.first,
            "count": self.count,
        }

    @cached_property
    def makers(self) -> dict[str, Callable[[], Model]]:
        """By name, what makes each analytic model."""
        return models.known(self.gaussian, self.images)

    def model(self, name: str) -> Model:
        """An analytic model where the states are: not to be moved there at each of its calls."""
        return self.makers[name]().to(self.trajectory[0].x)

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Each model beside the network, with a bar; those that are on disk are not made again."""
        found = {}
        for name in (bar := tqdm(self.makers, desc="models", unit=" models")):
            bar.set_postfix_str(name)
            path = self.folder / "models" / f"{name.replace(', ', '-').replace(' ', '-')}.json"
            inputs = {**self.inputs, "model": name}
            found[name] = kept(path, inputs, partial(self._compared, name))
        return found

    def _compared(self, name: str) -> dict[str, Any]:
        with torch.inference_mode():
            return compared(self.model(name), self.noised, self.trajectory, self.sigmas)

    def settled(self) -> Settling:
        """How principal components settle along the network's trajectories."""
        found = kept(
            self.folder / "components.json",
            self.inputs,
            lambda: asdict(settling(self.trajectory, self.gaussian)),
        )
        return Settling(**found)

    def samples(self, skip: int, seeds: int) -> Tensor:
        """Images (seeds, C, H, W) of the first trajectories, their first steps teleported."""
        denoise, start = self._drawn(seeds)
        x = carry(start, self.sigmas, skip, self.gaussian)
        with torch.inference_mode():
            return final(heun(denoise, x, self.sigmas[skip:]))


def write_comparisons(r: Reproduction) -> None:
    """Figures 1, 3, 4 and 5, each with its numbers as CSV, the components, and the findings."""
    numbers, settled = r.numbers(), r.settled()
    name, count = r.preset.name, f"{r.count} seeds"
    figures.overview(r.folder / "figure1.png", numbers, f"{name}: network and theory, {count}")
    for states in ("noised", "trajectory"):
        _write_agreement(r.folder / f"figure3_{states}.csv", numbers, states)
    title = f"{name}: analytic scores against the network's, {count}"
    figures.score_comparison(r.folder / "figure3.png", numbers, title)
    parts = {"figure4": ("state", "state x"), "figure5": ("denoised", "denoised image D(x)")}
    for figure, (part, what) in parts.items():
        _write_deviation(r.folder / f"{figure}.csv", numbers, part)
        title = f"{name}: solutions from the same noise, {count}"
        label = f"relative deviation of the {what}"
        figures.solution_deviation(r.folder / f"{figure}.png", numbers, part, label, title)
    title = f"{name}: principal components along the network's trajectories, {count}"
    figures.settling_order(r.folder / "components.png", asdict(settled), title)
    write_json(r.folder / "findings.json", summary(numbers, settled))


def write_pictures(r: Reproduction) -> None:
    """Figures 2 A, B and C: what the network, the models and the teleported sampler make."""
    levels = torch.linspace(0, len(r.sigmas) - 2, SHOWN).round().long().tolist()
    title = f"{r.preset.name}: denoised images of one trajectory, from noise to image"
    columns = [f"{r.sigmas[i]:.2g}" for i in levels]
    rows = {"network": torch.cat([r.trajectory[i].denoised[:1] for i in levels])}
    ours = list(solution(r.gaussian, r.trajectory[0].x[:1], r.sigmas))
    rows["Gaussian"] = torch.cat([ours[i].denoised for i in levels])
    figures.image_rows(r.folder / "figure2a.png", rows, columns, "sigma", title)
    title = f"{r.preset.name}: samples from the same noise"
    shown = min(SHOWN, r.count)
    seeds = [str(r.preset.seeds.first + i) for i in range(shown)]
    figures.image_rows(r.folder / "figure2b.png", _model_samples(r), seeds, "seed", title)
    skips = [0, *[k for k in r.preset.skips if k][1::2]]
    rows = {f"{k} skipped": r.samples(k, shown) for k in skips}
    title = f"{r.preset.name}: samples whose first steps are teleported"
    figures.image_rows(r.folder / "figure2c.png", rows, seeds, "seed", title)


def _model_samples(r: Reproduction) -> dict[str, Tensor]:
    """Where the trajectories of the network and of some models end, from the same noise."""
    start = r.trajectory[0].x[:SHOWN]
    found = {"network": r.trajectory[-1].x[:SHOWN]}
    for name in figures.FEW:
        if name in r.makers and name != "isotropic":
            with torch.inference_mode():
                *_, last = solution(r.model(name), start, r.sigmas)
            found[name] = last.denoised
    return found


def _write_agreement(path: Path, numbers: Mapping[str, Mapping[str, Any]], states: str) -> None:
    rows = [
        [name, sigma, *error, explained]
        for name, parts in numbers.items()
        for sigma, error, explained in zip(
            *(parts[states][column] for column in ("sigma", "error", "explained")), strict=True
        )
    ]
    head = ("model", "sigma", "lower_quartile", "median", "upper_quartile", "explained")
    write_table(path, head, rows)


def _write_deviation(path: Path, numbers: Mapping[str, Mapping[str, Any]], part: str) -> None:
    rows = [
        [name, sigma, *quartiles]
        for name, parts in numbers.items()
        for sigma, quartiles in zip(
            parts["solution"]["sigma"], parts["solution"][part], strict=True
        )
    ]
    write_table(path, ("model", "sigma", "lower_quartile", "median", "upper_quartile"), rows)
