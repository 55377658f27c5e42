"""Denoising loss at each noise level: a network beside the Gaussian and other analytic models.

    python scripts/losses.py digits
    python scripts/losses.py cifar10-small --dataset CIFAR10 --count 256

The images are spread over the dataset, whose models are compared; noise is the same for all. What
was measured of them stays in the folder, and the same command continues.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments import figures, loading, losses, options, tables
from experiments.losses import NETWORK, Losses, Mean, Study
from experiments.results import SCORE_BASED, surroundings
from linear_structure.data import datasets
from linear_structure.system.errors import run_command
from linear_structure.system.files import (
    check_apart,
    check_writable,
    digest_of_file,
    write_json,
)
from linear_structure.system.options import folder, positive

COUNT = 2000
UNUSED = (
    "sampler",
    *options.SETTINGS,
    "by_class",
    "features",
    "reference",
    "steps",
    "rho",
    "skips",
    "seeds",
)


def _parse() -> argparse.Namespace:
    parser = options.command(__doc__, "losses")
    counted = f"images that are noised (default {COUNT:,}, or all where there are fewer)"
    parser.add_argument("--count", type=positive, default=COUNT, help=counted)
    parser.add_argument("--out", type=folder, help=f"folder (default {SCORE_BASED}/PRESET)")
    return parser.parse_args()


def loaded(typed: argparse.Namespace, out: Path) -> Study:
    """The network, the models and the images of the preset.

    Raises:
        UsageError: the preset has no images, or they do not suit the network.
    """
    reason = "losses are measured at noised images, not along a sampler's steps"
    options.check_unused(typed, UNUSED, reason)
    preset = options.chosen_preset(typed)
    check_writable(out)
    check_apart(out, datasets.path_of(preset.dataset))
    machine = options.chosen_machine(typed, preset)
    network = loading.load_network(preset, machine)
    labels = loading.labels_for(loading.load_dataset(preset, network), network)
    gaussian = loading.gaussian_of(preset, loading.load_teleport(preset, network).model)
    images = loading.load_images(preset, network)
    given = (preset, network, gaussian, images, labels)
    return losses.study_of(*given, typed.count, machine, out / "blocks")


def show(found: Losses, numbers: dict[str, Any]) -> None:
    """Print losses by level, averages and entropies, and where the Gaussian is the better model."""
    known = found.known
    print("   sigma" + "".join(f"{key.title:>15}" for key in known) + "   network above Gaussian")
    means = [Mean.of(each).value for each in known.values()]
    excess = found.excesses[NETWORK]
    beside = zip(found.sigmas.tolist(), *means, excess.value, excess.halves, strict=True)
    for sigma, *cells, value, half in beside:
        row = "".join(f"{cell:15.4g}" for cell in cells)
        print(f"{sigma:8.3g}{row}   {value:+.2f} +- {half:.2f} %")
    for name in ("NCSN", "DDPM", "EDM"):
        row = "".join(f"{each[name]['value']:15.4g}" for each in numbers["averages"].values())
        print(f"{name:>8}{row}   average")
    known_of = (numbers["cross_entropies"].get(title) for title in numbers["averages"])
    row = "".join(f"{each['value']:15.3f}" if each else " " * 15 for each in known_of)
    print(f" entropy{row}   cross entropy, nats per pixel at sigma {float(found.sigmas[0]):g}")
    print("\n".join(numbers["notes"]))


def write(folder: Path, name: str, study: Study, found: Losses, numbers: dict[str, Any]) -> None:
    """The table, then what stands beside it, and the picture."""
    table, record, picture = (folder / f"losses.{end}" for end in ("csv", "json", "png"))
    means = {key: Mean.of(each) for key, each in found.known.items()}
    sigmas = found.sigmas.tolist()
    rows = (
        [key.title, *row] for key, mean in means.items() for row in zip(sigmas, *mean, strict=True)
    )
    tables.write_table(table, ("model", "sigma", "loss", "standard_error"), rows)
    outputs = {table.name: digest_of_file(table), **numbers}
    made = {"inputs": study.inputs, "outputs": outputs, "made": surroundings()}
    write_json(record, made)
    figures.denoising_losses(
        picture,
        sigmas,
        {key: mean.value for key, mean in means.items()},
        {key: (m.value, m.halves) for key, m in found.excesses.items()},
        numbers["notes"],
        f"{name}: denoising losses of {len(study.images):,} images",
    )
    print(f"wrote {table}, {record} and {picture}")


def main() -> None:
    """Measure or continue; then write the numbers and the picture of them."""
    typed = _parse()
    folder = typed.out or SCORE_BASED / typed.preset
    study = loaded(typed, folder)
    found = study.measure()
    numbers = losses.summary(study, found)
    show(found, numbers)
    write(folder, typed.preset, study, found, numbers)


if __name__ == "__main__":
    sys.exit(run_command(main))
