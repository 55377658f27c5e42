"""How far analytic scores are from a network's, along the network's own sampling trajectory.

The relative error of a model's score at (x, sigma) needs only denoised images:

    |s_model - s_network| / |s_network| = |D_model - D_network| / |D_network - x|
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from edm.precondition import Preconditioned
from edm.samplers import heun
from experiments.presets import Preset, SeedRange
from experiments.sampling import grid_of, image_shape, start
from linear_structure.denoise import Denoiser
from linear_structure.files import write_text

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Comparison:
    """Relative errors of one model's score.

    Attributes:
        sigmas: (N,) float64, noise levels of the trajectory.
        errors: (N, n) float64, for each level and seed.
    """

    sigmas: Tensor
    errors: Tensor

    @property
    def quartiles(self) -> Tensor:
        """(N, 3): lower quartile, median and upper quartile over the seeds."""
        return self.errors.quantile(torch.tensor(QUARTILES).to(self.errors), dim=1).T


def relative_errors(
    network: Denoiser, models: Mapping[str, Denoiser], x: Tensor, sigmas: Tensor
) -> Iterator[dict[str, Tensor]]:
    """For each step of Heun's method from x (n, *S) at sigmas[0]: name -> errors (n,)."""
    for step in heun(network, x, sigmas):
        if step.sigma == 0:
            return
        size = (step.denoised - step.x).flatten(1).norm(dim=1)
        yield {
            name: (
                (denoise(step.x, step.sigma) - step.denoised).flatten(1).norm(dim=1) / size
            ).cpu()
            for name, denoise in models.items()
        }


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def compare(
    network: Preconditioned,
    models: Mapping[str, Denoiser],
    preset: Preset,
    seeds: SeedRange,
    device: torch.device,
) -> dict[str, Comparison]:
    """Errors of each model along the trajectories of these seeds, with a bar."""
    sigmas, shape = grid_of(preset, network), image_shape(network)
    parts = []
    with tqdm(total=seeds.count, desc="trajectories", unit=" seeds") as bar:
        for block in seeds.blocks(preset.block):
            x = start(block, shape, sigmas, 0, None, device)
            with torch.inference_mode():
                parts.append(list(relative_errors(network, models, x, sigmas)))
            bar.update(len(block))
    return joined(parts, sigmas)


def joined(parts: Sequence[Sequence[dict[str, Tensor]]], sigmas: Tensor) -> dict[str, Comparison]:
    """Comparisons by name from the errors of several batches of seeds, one dict for each level."""
    levels = sigmas[sigmas > 0]
    names = parts[0][0]
    return {
        name: Comparison(
            levels,
            torch.stack([torch.cat([part[i][name] for part in parts]) for i in range(len(levels))]),
        )
        for name in names
    }


def write_table(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """CSV: model, sigma, lower quartile, median, upper quartile, seeds."""
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "sigma", "lower_quartile", "median", "upper_quartile", "seeds"])
    for name, comparison in comparisons.items():
        count = comparison.errors.shape[1]
        for sigma, row in zip(comparison.sigmas, comparison.quartiles, strict=True):
            values = [f"{float(value):.6g}" for value in (sigma, *row)]
            table.writerow([name, *values, count])
    write_text(path, text.getvalue())
