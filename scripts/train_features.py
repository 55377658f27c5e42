"""Train the small classifier whose features a Frechet distance of our own is taken on.

    python scripts/train_features.py digits --recipe digits --out digits-features.safetensors

Its accuracy is measured on the images of `--test`, or on a share of the dataset that is held out.
The same command continues a training that was stopped.
"""

if __name__ == "__main__":
    import start  # noqa: F401

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from edm.evaluation.classifier import accuracy, save
from edm.training.features import RECIPES, Recipe, Training, held_out
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import check_output
from linear_structure.system.machine import Machine, add_options
from linear_structure.system.options import given, named_path, parse, plain, word


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset", type=word, help="name or path of a dataset with labels")
    add("--recipe", choices=RECIPES, required=True)
    add("--out", type=named_path, required=True, help="file to write, .safetensors")
    add("--test", type=word, help="name or path of the dataset to measure accuracy on")
    add("--data-dir", type=named_path, help="where downloaded datasets are kept")
    add_options(parser)
    add("--epochs", type=int, help="instead of the recipe's")
    add("--seed", type=int, help="instead of the recipe's")
    return parser.parse_args()


def labelled(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of a dataset, which must have labels."""
    labels = dataset.classes()
    if labels is None:
        raise UsageError(f"{dataset.name} has no labels, which a classifier learns from")
    return dataset.images(), labels


def main() -> None:
    """Train, measure, save."""
    arguments = parse_arguments()
    values = {**plain(RECIPES[arguments.recipe]), **given(arguments, ("epochs", "seed"))}
    recipe = parse(Recipe, values, "the recipe")
    check_output(arguments.out, *map(datasets.path_of, (arguments.dataset, arguments.test)))
    device = Machine.chosen(arguments.device, arguments.threads).device
    dataset = datasets.load(arguments.dataset, arguments.data_dir)
    images, labels = labelled(dataset)
    if arguments.test:
        known, test = torch.arange(dataset.count), datasets.load(arguments.test, arguments.data_dir)
        if test.shape != dataset.shape:
            shapes = [" x ".join(map(str, each.shape)) for each in (test, dataset)]
            raise UsageError(
                f"{test.name} has images of {shapes[0]}, and {dataset.name}, which is learned "
                f"from, of {shapes[1]} (channels x height x width): expected the same"
            )
        (test_images, test_labels), measured_on = labelled(test), Path(arguments.test).name
    else:
        known, rest = held_out(dataset.count, recipe.held_out, recipe.seed)
        test_images, test_labels = images[rest], labels[rest]
        measured_on = f"{len(rest)} held-out images"
    unfinished = arguments.out.with_suffix(".unfinished.pt")
    network = Training(recipe, images[known], labels[known], device, unfinished).run()
    provenance = {
        **asdict(recipe),
        "dataset": dataset.name,
        "trained_on": len(known),
        "tested_on": measured_on,
        "accuracy": accuracy(network, test_images, test_labels),
        "torch": torch.__version__,
    }
    save(network, arguments.out, provenance)
    unfinished.unlink(missing_ok=True)
    print(f"accuracy {provenance['accuracy']:.2%} on {provenance['tested_on']}: {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
