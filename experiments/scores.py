"""How far analytic scores are from a network's, along the network's own sampling trajectory.

The relative error of a model's score at (x, sigma) needs only denoised images:

    |s_model - s_network| / |s_network| = |D_model - D_network| / |D_network - x|

Seeds are compared in blocks. A finished block leaves its errors on disk, in a folder for its
settings: what was stopped continues, and what is there is not computed again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm.checkpoints.checkpoint import network_digest
from edm.precondition import Preconditioned
from experiments import blocks, tables
from experiments.presets import Preset
from experiments.results import surroundings
from experiments.sampling import Sampling, grid_of, image_shape
from experiments.trajectories import QUARTILES, norms
from linear_structure import parameters
from linear_structure.denoise import Denoiser
from linear_structure.parameters import Model
from linear_structure.sampling.samplers import heun
from linear_structure.system.files import (
    digest_of,
    digest_of_file,
    write_array,
    write_json,
)


@dataclass(frozen=True)
class Study:
    """Which models are compared with which network, and where finished blocks stay.

    Attributes:
        preset: grid, seeds and block size.
        network: the denoiser, on `device`.
        models: by name, in the order of tables and pictures.
        threads: of the CPU, recorded, since sums depend on it in the last bits.
        root: folder of the blocks.
    """

    preset: Preset
    network: Preconditioned
    models: Mapping[str, Model]
    device: torch.device
    threads: int
    root: Path

    @cached_property
    def sampling(self) -> Sampling:
        """The trajectories: Heun's method, nothing skipped."""
        shape, sigmas = image_shape(self.network), grid_of(self.preset, self.network)
        return Sampling(shape, sigmas, device=self.device)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the errors of a seed depend on."""
        return {
            "network": network_digest(self.network),
            "models": [[name, parameters.digest(model)] for name, model in self.models.items()],
            "sampler": "heun",
            "sigmas": self.sampling.sigmas.tolist(),
            "block": self.preset.block,
            "device": self.device.type,
            "threads": self.threads,
            **({"labels": "drawn"} if self.network.label_dim else {}),
        }

    def path(self, seeds: range) -> Path:
        """Where the errors of a block of seeds lie."""
        key = digest_of(self.inputs)[:16]
        return self.root / key / f"{seeds[0]:06d}-{seeds[-1]:06d}.npy"


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
) -> Iterator[Tensor]:
    """For each step of Heun's method from x (n, *S) at sigmas[0]: errors (n, number of models)."""
    for step in heun(network, x, sigmas):
        if step.sigma == 0:
            return
        size = norms(step.denoised - step.x)
        errors = [
            norms(denoise(step.x, step.sigma) - step.denoised) / size for denoise in models.values()
        ]
        yield torch.stack(errors, 1).cpu()


def compare(study: Study) -> dict[str, Comparison]:
    """Errors of each model along the trajectories of all seeds, with a bar."""
    seeds, parts = study.preset.seeds, []
    with tqdm(total=seeds.count, desc="trajectories", unit=" seeds") as bar:
        for block in seeds.blocks(study.preset.block):
            path = study.path(block)
            if not blocks.is_whole(path, len(block)):
                write_array(path, _errors(study, block).numpy())
            parts.append(blocks.read(path))
            bar.update(len(block))
    errors, sigmas = torch.cat(parts), study.sampling.sigmas
    return {
        name: Comparison(sigmas[sigmas > 0], errors[:, :, i].T)
        for i, name in enumerate(study.models)
    }


def _errors(study: Study, seeds: range) -> Tensor:
    """(n, N, number of models) float64 of a block of seeds, each of the class that it draws."""
    network, x, _ = study.sampling.drawn(study.network, seeds)
    denoisers = {name: model.denoise for name, model in study.models.items()}
    with torch.inference_mode():
        return torch.stack(list(relative_errors(network, denoisers, x, study.sampling.sigmas)), 1)


def write_table(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """CSV: model, sigma, lower quartile, median, upper quartile, seeds."""
    rows = [
        [name, float(sigma), *row.tolist(), comparison.errors.shape[1]]
        for name, comparison in comparisons.items()
        for sigma, row in zip(comparison.sigmas, comparison.quartiles, strict=True)
    ]
    head = ("model", "sigma", "lower_quartile", "median", "upper_quartile", "seeds")
    tables.write_table(path, head, rows)


def write_record(path: Path, study: Study, table: Path) -> None:
    """JSON beside a table: what its numbers depend on, its digest, and where it was made."""
    preset = study.preset
    seeds = [preset.seeds.first, preset.seeds.last]
    inputs = {**study.inputs, "preset": preset.name, "dataset": preset.dataset, "seeds": seeds}
    outputs = {table.name: digest_of_file(table)}
    write_json(path, {"inputs": inputs, "outputs": outputs, "made": surroundings()})
