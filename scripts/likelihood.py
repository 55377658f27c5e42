"""Bits per dimension of a network, of the Gaussian and of the isotropic model, image by image.

    python scripts/likelihood.py digits --count 64 --probes 1
    python scripts/likelihood.py cifar10-small --dataset images.zip --bound 1000

Numbers depend on sigma_min, which they are printed with. What is stopped goes on when the same
command is given again.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from typing import Any

from experiments import likelihood, loading, options
from experiments.likelihood import BATCH, SIGMA_MIN, STEPS, Images, Range, Study, measures
from experiments.presets import Preset
from experiments.results import SCORE_BASED
from linear_structure import parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.system import machine
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import check_apart, check_writable
from linear_structure.system.options import folder, word

CHANGED = ("dataset", "parameters", "eigenvalue_scale", "network")


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
        UsageError: a number is out of range, or both ways to take the trace are asked for.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("preset", type=word, help=options.named())
    add("--count", type=int, default=64, help="images, the first of the dataset (default: 64)")
    add("--probes", type=int, help="random signs for each trace (default: 1)")
    add("--exact", action="store_true", help="exact traces: as many derivatives as pixels")
    add("--bound", type=int, metavar="T", help="also the bound of a DDPM chain of T steps")
    add("--steps", type=int, default=STEPS, help=f"steps of the ODE (default: {STEPS})")
    lowest = f"noise level of the density (default: {SIGMA_MIN}, or the network's lowest above it)"
    add("--sigma-min", type=float, help=lowest)
    add("--sigma-max", type=float, help="noise level where the ODE ends (default: the highest)")
    add("--batch", type=int, default=BATCH, help=f"images at a time (default: {BATCH})")
    add("--out", type=folder, metavar="DIR", help=f"folder (default: {SCORE_BASED}/PRESET)")
    group = parser.add_argument_group("values of the preset that may be changed")
    options.add_values(group, CHANGED)
    machine.add_options(parser)
    typed = parser.parse_args()
    for name in ("probes", "bound", "steps", "batch"):
        if (number := getattr(typed, name)) is not None and number < 1:
            raise UsageError(f"--{name} {number}: expected 1 or more")
    if typed.exact and typed.probes is not None:
        raise UsageError("--probes would change nothing: --exact takes no random probes")
    return typed


def origin(preset: Preset, dataset: Dataset) -> str:
    """Whether the images are those that the parameters were made from, in a sentence."""
    known = parameters.read_story(preset.parameters).get("digest")
    if known is None:
        return f"{preset.parameters} does not say which images it was made from."
    if known != dataset.digest():
        return f"These are not the images that {preset.parameters} was made from."
    own = not {"network", "parameters"} & set(preset.replaced)
    learned = ", and the network learned from them too" if own else ""
    return (
        f"These are training images: {preset.parameters} was made from them{learned}. "
        "Images that were not seen may cost more."
    )


def inputs_of(preset: Preset, dataset: Dataset, study: Study) -> dict[str, Any]:
    """What the numbers depend on beside what stands in their columns, as JSON values."""
    return {
        "preset": preset.name,
        "dataset": dataset.name,
        "count": len(study.images.pixels),
        "batch": study.size,
        **study.inputs,
    }


def main() -> None:
    """Measure or continue; then write the numbers, their settings and the picture of them."""
    typed = parse()
    preset = options.changed(options.find(typed.preset), typed, CHANGED)
    out = typed.out or SCORE_BASED / preset.name
    chosen = options.chosen_machine(typed, preset)
    check_writable(out)
    check_apart(out, datasets.path_of(preset.dataset))
    network = loading.load_network(preset, chosen)
    within = Range.of(preset, network, typed.sigma_min, typed.sigma_max)
    probes = 0 if typed.exact else typed.probes or 1
    dataset = loading.load_dataset(preset, network)
    images = Images.of(dataset, typed.count, network)
    wanted = measures(network, within, typed.steps, probes, typed.bound or 0, images.levels)
    model = loading.load_teleport(preset, network).model
    likelihood.check_resolution(model, within.sigma_min, images.levels)
    study = Study(network, model, images, chosen, out / "blocks", typed.batch)
    said = f"{typed.count:,} images of {dataset.name}, {images.levels} grey levels"
    print(f"{said}; sigma from {within.sigma_min:g} to {within.sigma_max:g}")
    columns = study.columns(wanted)
    titled = loading.at_home(preset, network).title
    title = f"{titled}: {said}, density at sigma {within.sigma_min:g}"
    likelihood.write(out, columns, inputs_of(preset, dataset, study), title)
    print("\n".join(likelihood.lines(columns)))
    print(origin(preset, dataset))
    print(f"wrote likelihood.csv, likelihood.json and likelihood.png to {out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
