"""Train a denoiser on a dataset by a recipe, each of whose values is an option.

    python scripts/train.py digits --recipe digits --out training/digits
    torchrun --nproc-per-node 8 scripts/train.py CIFAR10 --out training/cifar10

The same command continues a run that was stopped. A DDPM, whose loss is taken at the 1000 levels of
its chain, as far as the network knows them, is made by

    python scripts/train.py digits --recipe digits --preconditioning vp --loss levels \\
        --out training/ddpm

a network of points in the plane by

    python scripts/train.py mixture --recipe plane --threads 1 --out training/plane

and one that starts from the weights of another, published or ours, by

    python scripts/train.py my-images.zip --recipe laptop --transfer network.safetensors \\
        --out training/further
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch

from edm.training.data import Points
from edm.training.recipes import RECIPES, Recipe
from edm.training.runs import STATE, Job, write_samples
from edm.training.transfer import Transfer
from experiments.options import check_unused
from linear_structure.data import datasets, plane
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import check_apart
from linear_structure.system.machine import Machine, add_options, rank, usable_cores, world_size
from linear_structure.system.options import (
    add_arguments,
    folder,
    given,
    named_path,
    parse,
    plain,
    table,
    word,
)

OF_EDM = ("sigma_mean", "sigma_std", "log_uniform")
OF_NETWORKS = (
    *("architecture", "preconditioning", "conditional", "model_channels", "channel_mult"),
    *("num_blocks", "attn_resolutions", "dropout", "sigma_data"),
)
OF_UNETS = ("channel_mult", "attn_resolutions")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The recipes:\n\n" + table(Recipe, RECIPES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = f"name of a dataset, a folder, zip, .npy, .npz or IDX file; or {', '.join(plane.DRAWS)}"
    parser.add_argument("dataset", type=word, help=kinds)
    parser.add_argument("--recipe", choices=RECIPES, default="published")
    parser.add_argument("--out", type=folder, required=True, help="folder of the run")
    parser.add_argument(
        "--transfer",
        type=word,
        metavar="NET",
        help="start from this network: path or URL of EDM's pickle or training state, or of ours",
    )
    kept = "where downloaded datasets are kept"
    parser.add_argument("--data-dir", type=named_path, help=kept)
    add_options(parser, "all usable cores, shared by all processes")
    group = parser.add_argument_group("values of the recipe")
    add_arguments(group, Recipe)
    return parser.parse_args()


def recipe_of(arguments: argparse.Namespace, transfer: Transfer | None = None) -> Recipe:
    """The recipe that was named, with what else was given on the command line, for the network.

    Raises:
        UsageError: a value is out of range, or was typed and is of another loss or architecture.
    """
    changes = given(arguments, [each.name for each in fields(Recipe)])
    recipe = parse(Recipe, {**plain(RECIPES[arguments.recipe]), **changes}, "the recipe")
    if transfer:
        check_unused(arguments, OF_NETWORKS, "the network of --transfer has its own")
        recipe = transfer.recipe(recipe)
    if recipe.loss != "own" or recipe.preconditioning != "edm":
        reason = "it is of the loss that belongs to --preconditioning edm, with --loss own"
        check_unused(arguments, OF_EDM, reason)
    if recipe.preconditioning != "edm":
        check_unused(arguments, ("sigma_data",), "it belongs to --preconditioning edm")
    if recipe.architecture == "mlp":
        check_unused(arguments, OF_UNETS, "an mlp has --model-channels and --num-blocks alone")
    return recipe


def check_kept(source: str, out: Path) -> None:
    """Refuse (UsageError) to start from a network that the run would write over."""
    place, written = Path(source).resolve(), (STATE, Job.weights.format(images="*"))
    if place.parent == out.resolve() and any(map(place.match, written)):
        raise UsageError(f"--transfer {source} lies where the run writes: name another --out")


def data_of(arguments: argparse.Namespace, device: torch.device) -> Dataset | Points:
    """What was named: points in the plane, or images."""
    if arguments.dataset in plane.DRAWS:
        return Points(arguments.dataset, plane.find(arguments.dataset), device)
    check_apart(arguments.out, datasets.path_of(arguments.dataset))
    return datasets.load(arguments.dataset, arguments.data_dir)


def main() -> None:
    """Train, or continue."""
    arguments = parse_arguments()
    if arguments.transfer:
        check_kept(arguments.transfer, arguments.out)
    transfer = Transfer.of(arguments.transfer) if arguments.transfer else None
    recipe = recipe_of(arguments, transfer).shared_by(world_size())
    shared = max(usable_cores() // world_size(), 1)
    threads = shared if arguments.threads is None else arguments.threads
    machine = Machine.chosen(arguments.device, threads)  # no TF32, as the published were trained
    torch.backends.cudnn.benchmark = True
    data = data_of(arguments, machine.device)
    samples = None if isinstance(data, Points) else write_samples
    job = Job(recipe, data, arguments.out, machine.device, samples, transfer=transfer)
    state = job.run()
    if rank() == 0:
        print(
            f"{state.images_seen} images in {state.seconds:.0f} s; everything is in {arguments.out}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
