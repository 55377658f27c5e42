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
from linear_structure.system.files import digest_of_file, write_json
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
    preset: Preset, sampling: Sampling, makers: Makers, machine: Machine
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
        "seeds": [preset.seeds.first, preset.seeds.last],
    }


def write_published(
    preset: Preset, sampling: Sampling, makers: Makers, images: Tensor | None, machine: Machine
) -> None:
    """The authors' shares of NVIDIA's network beside those of this one, as CSV and PNG."""
    if images is None:
        gaussian = loading.gaussian_of(preset, makers[GAUSSIAN]())
    else:
        gaussian, _ = fit_gaussian(Dataset.of(preset.name, images))
        makers = published.models(gaussian, images)
    count = min(published.IMAGES, preset.seeds.count)
    (seeds,) = preset.seeds.head(count).blocks(count)
    states = States(sampling, seeds, images)
    study = comparison.study_of(sampling, machine, makers, images, FOLDER / "blocks")
    ours, folder = published.measured(study, states, gaussian), FOLDER / preset.name
    head = ("model", "sigma", "published", "ours", "half_interval")
    tables.write_table(folder / "published.csv", head, published.beside(ours))
    where = f"{preset.title} at {states.where['noised']} ({count})"
    title = f"{where}; dotted: the authors' table of NVIDIA's network"
    figures.published_shares(folder / "published.png", ours, title)


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
    inputs, outputs = inputs_of(preset, sampling, makers, machine), digest_of_file(table)
    parts = {"inputs": inputs, "outputs": {table.name: outputs}, "made": surroundings()}
    write_json(record, parts)
    count = f"{preset.seeds.count:,} trajectories"
    titled = loading.at_home(preset, network)
    title = f"{titled.title}: analytic scores against the network's, {count}"
    figures.score_errors(picture, errors, sigmas, title)
    if preset.name in published.BESIDE and preset.seeds.count > 1:  # for an interval
        write_published(titled, sampling, makers, images, machine)
    print(copied(preset.name, made, FOLDER))


if __name__ == "__main__":
    sys.exit(run_command(main))
