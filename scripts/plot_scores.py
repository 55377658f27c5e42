"""Relative error of analytic scores against a network's, along its sampling trajectory."""

if __name__ == "__main__":
    import start  # noqa: F401

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiments import comparison, figures, loading, options, published, tables
from experiments.comparison import GAUSSIAN, Key, Makers, States
from experiments.presets import Preset
from experiments.results import copied, surroundings
from experiments.sampling import Sampling, grid_of
from linear_structure import parameters
from linear_structure.data.datasets import Dataset
from linear_structure.fit import fit_gaussian
from linear_structure.system.errors import run_command
from linear_structure.system.files import digest_of_file, digest_of_tensor, write_json
from linear_structure.system.machine import Machine

FOLDER = Path("scores")
SEEDS = 1000


def errors_of(
    preset: Preset, sampling: Sampling, makers: Makers, images: Tensor | None, machine: Machine
) -> dict[Key, Tensor]:
    """Relative errors (n, L) of each model along the trajectories of all seeds, with a bar."""
    study = comparison.study_of(sampling, machine, makers, images, FOLDER / "blocks")
    found: dict[Key, list[Tensor]] = {key: [] for key in makers}
    with tqdm(total=preset.seeds.count, desc="trajectories", unit=" seeds") as bar:
        for seeds in preset.seeds.blocks(preset.block):
            numbers = study.numbers(States(sampling, seeds), ("trajectory",))
            for key, parts in numbers.items():
                found[key].append(parts["trajectory"][:, :, 0])
            bar.update(len(seeds))
    return {key: torch.cat(blocks) for key, blocks in found.items()}


def inputs_of(
    preset: Preset, sampling: Sampling, makers: Makers, images: Tensor | None, machine: Machine
) -> dict[str, Any]:
    """What the numbers depend on, as JSON values."""
    return {
        "network": sampling.network.digest,
        "models": [[key.title, parameters.digest(make())] for key, make in makers.items()],
        "sampler": "heun",
        "sigmas": sampling.sigmas.tolist(),
        "block": preset.block,
        **machine.inputs,
        **({"labels": "drawn"} if sampling.network.label_dim else {}),
        "preset": preset.name,
        "dataset": preset.dataset,
        "images": None if images is None else digest_of_tensor(images),
        "seeds": [preset.seeds.first, preset.seeds.last],
    }


def write_published(
    preset: Preset, sampling: Sampling, makers: Makers, images: Tensor | None, machine: Machine
) -> list[Path]:
    """The authors' shares of NVIDIA's network beside those of this one, as CSV and PNG: the table.

    Where their images are others, or there is one seed and so no interval, those of an earlier run
    are removed, which would stand beside scores of this one.
    """
    table, picture = (FOLDER / preset.name / f"published.{end}" for end in ("csv", "png"))
    count = min(published.IMAGES, preset.seeds.count)
    if preset.name not in published.BESIDE or "dataset" in preset.replaced or count == 1:
        table.unlink(missing_ok=True)
        picture.unlink(missing_ok=True)
        return []
    if images is None:
        gaussian = loading.gaussian_of(preset, makers[GAUSSIAN]())
    else:
        gaussian, _ = fit_gaussian(Dataset.of(preset.name, images))
        makers = published.models(gaussian, images)
    (seeds,) = preset.seeds.head(count).blocks(count)
    states = States(sampling, seeds, images)
    study = comparison.study_of(sampling, machine, makers, images, FOLDER / "blocks")
    ours = published.measured(study, states, gaussian)
    head = ("model", "sigma", "published", "ours", "half_interval")
    tables.write_table(table, head, published.beside(ours))
    where = f"{preset.title} at {states.where['noised']} ({count})"
    title = f"{where}; dotted: the authors' table of NVIDIA's network"
    figures.published_shares(picture, ours, title)
    return [table]


def main() -> None:
    """Compare or continue; then write the numbers, their settings, and the picture, and copies."""
    typed = options.command(__doc__, "run_plot_scores").parse_args()
    unused = ("sampler", *options.SETTINGS, "by_class", "skips", "features", "reference")
    options.check_unused(typed, unused, "scores are compared along Heun's whole trajectory")
    preset = options.chosen_preset(typed)
    machine = options.chosen_machine(typed, preset)
    if typed.seeds is None:
        preset = replace(preset, seeds=preset.seeds.head(SEEDS))
    network = loading.load_network(preset, machine)
    sampling = Sampling(network, grid_of(preset, network))
    makers, images = loading.load_models(preset, network)
    errors = errors_of(preset, sampling, makers, images, machine)
    sigmas = sampling.sigmas[:-1].tolist()
    folder = FOLDER / preset.name
    made = table, record, picture = [folder / f"scores.{end}" for end in ("csv", "json", "png")]
    rows = (
        [key.title, sigma, *row.tolist(), len(values)]
        for key, values in errors.items()
        for sigma, row in zip(sigmas, comparison.quartiles(values), strict=True)
    )
    head = ("model", "sigma", "lower_quartile", "median", "upper_quartile", "seeds")
    tables.write_table(table, head, rows)
    count, titled = f"{preset.seeds.count:,} trajectories", loading.at_home(preset, network)
    title = f"{titled.title}: analytic scores against the network's, {count}"
    figures.score_errors(picture, errors, sigmas, title)
    written = [table, *write_published(titled, sampling, makers, images, machine)]
    outputs = {path.name: digest_of_file(path) for path in written}
    inputs = inputs_of(preset, sampling, makers, images, machine)
    write_json(record, {"inputs": inputs, "outputs": outputs, "made": surroundings()})
    print(copied(preset.name, made, FOLDER))


if __name__ == "__main__":
    sys.exit(run_command(main))
