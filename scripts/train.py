"""Train a denoiser on a dataset by a recipe, each of whose values is an option.

    python scripts/train.py digits --recipe digits --out training/digits
    torchrun --nproc-per-node 8 scripts/train.py CIFAR10 --out training/cifar10

The same command continues a run that was stopped.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from edm.training.recipes import RECIPES, Recipe, table
from edm.training.runs import Job
from linear_structure.data import datasets
from linear_structure.system.errors import run_command
from linear_structure.system.machine import (
    chosen_device,
    rank,
    set_threads,
    usable_cores,
    world_size,
)
from linear_structure.system.options import parse, plain
from linear_structure.system.precision import set_tf32


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The recipes:\n\n" + table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset", help="name of a dataset, a folder of images, a zip, .npy or .npz"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="published")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--data-dir", type=Path, help="where downloaded datasets are kept")
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, help="of each process; all cores shared evenly")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    group = parser.add_argument_group("values of the recipe")
    for each in fields(Recipe):
        group.add_argument(f"--{each.name.replace('_', '-')}", **_option(each))
    return parser.parse_args()


def _option(each: Any) -> dict[str, Any]:
    """How argparse reads a field of the recipe; absent means the recipe's own value."""
    common = {"default": None, "help": each.metadata["meaning"]}
    if each.type is bool:
        return {**common, "action": argparse.BooleanOptionalAction}
    if words := each.metadata.get("words"):
        return {**common, "choices": words}
    if each.type in (int, float):
        return {**common, "type": each.type, "metavar": "N"}
    return {**common, "type": int, "nargs": "*", "metavar": "N"}


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that was named, with what else was given on the command line."""
    given = {each.name: getattr(arguments, each.name) for each in fields(Recipe)}
    changes = {name: value for name, value in given.items() if value is not None}
    return parse(Recipe, {**plain(RECIPES[arguments.recipe]), **changes}, "the recipe")


def main() -> None:
    """Train, or continue."""
    arguments = parse_arguments()
    recipe = recipe_of(arguments).shared_by(world_size())
    device = chosen_device(arguments.device)
    shared = max(usable_cores() // world_size(), 1)
    set_threads(shared if arguments.threads is None else arguments.threads)
    torch.backends.cudnn.benchmark = True
    set_tf32(False)  # as the published networks were trained
    job = Job(
        recipe,
        datasets.load(arguments.dataset, arguments.data_dir),
        arguments.out,
        device,
        arguments.compile,
    )
    state = job.run()
    if rank() == 0:
        print(
            f"{state.images_seen} images in {state.seconds:.0f} s; everything is in {arguments.out}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
