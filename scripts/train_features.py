"""Train the small classifier whose features a Frechet distance of our own is taken on.

    python scripts/train_features.py digits --recipe digits --out digits-features.safetensors

Its accuracy is measured on the images of `--test`, or on a share of the dataset that is held out.
The same command continues a training that was stopped.
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from edm.classifier import RECIPES, Training, accuracy, held_out, save
from linear_structure import datasets
from linear_structure.datasets import Dataset
from linear_structure.distributed import set_threads, usable_cores
from linear_structure.errors import UsageError, run_command


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="name or path of a dataset with labels")
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--test", help="name or path of the dataset to measure accuracy on")
    parser.add_argument("--data-dir", type=Path, help="where downloaded datasets are kept")
    parser.add_argument("--device", help="cpu or cuda; the GPU where there is one")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    return parser.parse_args()


def labelled(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of a dataset, which must have labels."""
    labels = dataset.labels()
    if labels is None:
        raise UsageError(f"{dataset.name} has no labels, which a classifier learns from")
    return dataset.images(), labels


def main() -> None:
    """Train, measure, save."""
    arguments = parse_arguments()
    set_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    changes = {"epochs": arguments.epochs, "seed": arguments.seed}
    recipe = RECIPES[arguments.recipe]
    recipe = replace(recipe, **{name: v for name, v in changes.items() if v is not None})
    dataset = datasets.load(arguments.dataset, arguments.data_dir)
    images, labels = labelled(dataset)
    if arguments.test:
        known = torch.arange(dataset.count)
        test_images, test_labels = labelled(datasets.load(arguments.test, arguments.data_dir))
    else:
        known, rest = held_out(dataset.count, recipe.held_out, recipe.seed)
        test_images, test_labels = images[rest], labels[rest]
    unfinished = arguments.out.with_suffix(".unfinished.pt")
    network = Training(recipe, images[known], labels[known], device, unfinished).run()
    provenance = {
        **asdict(recipe),
        "dataset": dataset.name,
        "trained_on": len(known),
        "tested_on": arguments.test or f"{len(test_images)} held-out images",
        "accuracy": accuracy(network, test_images, test_labels),
        "torch": torch.__version__,
    }
    save(network, arguments.out, provenance)
    unfinished.unlink(missing_ok=True)
    print(f"accuracy {provenance['accuracy']:.2%} on {provenance['tested_on']}: {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
