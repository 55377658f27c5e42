"""python linear_structure/get_parameters.py DATASET KIND SAVE_DIR: from images to parameters."""

import sys
from pathlib import Path

if __name__ == "__main__":  # this folder would come first on the path and shadow `datasets`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from linear_structure.system.errors import leave_at_once

    leave_at_once()

import argparse
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from linear_structure import parameters, planning
from linear_structure.data import datasets
from linear_structure.data.datasets import LARGEST, Dataset
from linear_structure.fit import BATCH, COMPONENTS, Fitted, check_classes, fit, fit_classes
from linear_structure.gaussian import EigenGaussian, Gaussian, Planned, Rank
from linear_structure.parameters import KINDS
from linear_structure.spectral import LOW
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import check_writable
from linear_structure.system.memory import free_memory
from linear_structure.system.options import named_path, positive, word

USED_BY = {
    "rank": ("gaussian", "mixture"),
    "s0": ("isotropic",),
    "components": ("mixture",),
    "seed": ("mixture",),
    "low": ("spectral",),
    "batch": ("gaussian",),
}


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^32 - 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def _rank(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _positive(text: str) -> float:
    if (value := _not_negative(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _not_negative(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= LARGEST:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {LARGEST:g}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit an analytic model to a dataset of images.")
    images = "a known name (CIFAR10, digits, ...) or a path to images"
    parser.add_argument("dataset", type=word, help=images)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("save_dir", type=named_path)
    parser.add_argument(
        "--rank", type=_rank, help="keep at most so many directions; auto: as many as --sigma needs"
    )
    parser.add_argument("--sigma", type=_positive, help="--rank auto: where the teleport ends")
    parser.add_argument(
        "--error", type=_positive, help="--rank auto: how far that may move it, in units of sigma"
    )
    parser.add_argument("--count", type=positive, help="so many of the images, random by --seed")
    parser.add_argument("--first", action="store_true", help="--count: the first ones instead")
    parser.add_argument("--by-class", action="store_true", help="one model for each class as well")
    parser.add_argument(
        "--batch", type=positive, default=BATCH, help="gaussian: images read at a time"
    )
    kept = "where archives are kept or looked for"
    parser.add_argument("--data-dir", type=named_path, help=kept)
    parser.add_argument(
        "--s0", type=_not_negative, default=0.0, help="isotropic: deviation of pixels"
    )
    parser.add_argument("--components", type=positive, default=COMPONENTS, help="mixture: how many")
    parser.add_argument("--seed", type=_seed, default=0, help="of --count, or a mixture's k-means")
    parser.add_argument(
        "--low", type=_count, default=LOW, help="spectral: frequencies in the dense block"
    )
    options = parser.parse_args()
    for name, kinds in USED_BY.items():
        counted = name == "seed" and options.count is not None and not options.first
        given = getattr(options, name) != parser.get_default(name)
        if options.kind not in kinds and given and not counted:
            raise UsageError(f"--{name} is for {' and '.join(kinds)}, not for {options.kind}")
    options.rank = _planned(options)
    if options.first and options.count is None:
        raise UsageError("--first is for --count: expected how many are the first ones")
    return options


def _planned(options: argparse.Namespace) -> Rank:
    """The rank, or how it is chosen."""
    if options.rank != "auto":
        if options.sigma is not None or options.error is not None:
            raise UsageError("--sigma and --error are for --rank auto")
        return cast(Rank, options.rank)
    if options.sigma is None:
        raise UsageError("--rank auto needs --sigma, the level where the teleport ends")
    return Planned(options.sigma, options.error or Planned.error)


def _chosen(dataset: Dataset, options: argparse.Namespace) -> tuple[Dataset, str | None]:
    """As many images as asked for, and which they are."""
    total, count = dataset.count, options.count
    if count is None or count == total:
        return dataset, None
    if count > total:
        raise UsageError(f"--count {count}: {dataset.name} has {total:,} images")
    if options.first:
        return dataset.only(torch.arange(count)), f"the first {count} of {total}"
    generator = torch.Generator().manual_seed(options.seed)
    numbers, _ = torch.randperm(total, generator=generator)[:count].sort()
    return dataset.only(numbers), f"{count} of {total}, random by seed {options.seed}"


def _say_replaced(directory: Path, kind: str, dataset: str) -> None:
    """A sentence where parameters of another kind or dataset stand in the place."""
    before: dict[str, object] = {}
    with suppress(UsageError):  # damaged ones are worth nothing
        before = parameters.read_story(directory)
    if before and (before.get("kind"), before.get("dataset")) != (kind, dataset):
        print(f"{before.get('kind')} parameters of {before.get('dataset')} are replaced")


def _told(dataset: Dataset, fitted: Fitted) -> Fitted:
    _, story = fitted
    assert story.label is not None
    print(f"class {dataset.class_name(story.label)}: {story.count:,} images")
    return fitted


def main() -> None:
    """Fit, save, and say in a few lines what was made."""
    options = _parse()
    parameters.check_target(options.save_dir)
    dataset = datasets.load(options.dataset, options.data_dir, floats=True)
    dataset, selection = _chosen(dataset, options)
    print(planning.check_memory(options.kind, dataset, options.low, free_memory()))
    labels = dataset.classes() if options.by_class else None
    if options.by_class and labels is None:
        raise UsageError(f"{dataset.name} has no labels: --by-class needs them")
    if options.kind == "mixture" and labels is not None:
        check_classes(dataset, labels, options.components)
    check_writable(options.save_dir.resolve().parent)
    chosen = {name: getattr(options, name) for name in ("kind", *USED_BY)}
    model, story = fit(dataset, **chosen)
    story = replace(story, selection=selection)
    told = partial(_told, dataset)
    classes = () if labels is None else map(told, fit_classes(dataset, labels, **chosen))
    _say_replaced(options.save_dir, options.kind, story.dataset)
    parameters.save(options.save_dir, model, story, classes)
    print(f"{options.kind} parameters written to {options.save_dir}")
    print(f"{story.dataset}: {story.count:,} images of shape {story.image_shape}")
    of, scale = ("pixel ", "on the [-1, 1] scale") if dataset.pixels else ("", "in their own units")
    print(f"{of}standard deviation (sigma_data) {story.sigma_data:.4f} {scale}")
    if isinstance(model, Gaussian):
        print(f"{model.rank} of {model.dim} directions are kept")
    if isinstance(model, EigenGaussian):
        found = planning.trials(dataset, options.low, story.sigma_data, options.rank, free_memory())
        for line in planning.told(found):
            print(line)


if __name__ == "__main__":
    sys.exit(run_command(main))
