"""python linear_structure/get_parameters.py DATASET KIND SAVE_DIR: from images to parameters."""

import sys
from pathlib import Path

if __name__ == "__main__":  # this folder would come first on the path and shadow `datasets`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from linear_structure import mixture, parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import HALF_RANGE, from_uint8
from linear_structure.moments import Moments, PixelSums
from linear_structure.parameters import KINDS, Model, Story
from linear_structure.points import PointCloud
from linear_structure.system.errors import UsageError, run_command
from linear_structure.system.files import check_writable, digest_of_tensor

BLOCK = 1000
USED_BY = {
    "rank": ("gaussian", "mixture"),
    "s0": ("isotropic",),
    "components": ("mixture",),
    "seed": ("mixture",),
}


def measure(dataset: Dataset, block: int = BLOCK) -> tuple[Moments, str]:
    """Moments on the [-1, 1] scale and SHA-256 of the pixels in order, in one pass with a bar."""
    sums, sha = PixelSums(math.prod(dataset.shape)), hashlib.sha256()
    with tqdm(total=dataset.count, desc="mean and covariance", unit=" images") as bar:
        for images, _ in dataset.blocks(block):
            sums.add(images)
            sha.update(images.contiguous().numpy().data)
            bar.update(len(images))
    return sums.moments(), sha.hexdigest()


def fit_gaussian(
    dataset: Dataset, rank: int | None = None, block: int = BLOCK
) -> tuple[Gaussian, Story]:
    """The Gaussian of a dataset, of at most `rank` directions, and its story.

    The images pass once, `block` at a time; only where they are fewer than the pixels of one are
    they held in memory, instead of the D x D covariance.
    """
    if dataset.count >= math.prod(dataset.shape):
        moments, digest = measure(dataset, block)
        story = _story(dataset, digest, moments.sigma_data)
        mean, covariance = moments.mean, moments.covariance
        del moments  # as large as the covariance
        return Gaussian.from_covariance(mean, covariance, rank, overwrite=True), story
    images = dataset.images()
    samples = from_uint8(images.flatten(1), torch.float64)
    return Gaussian.from_samples(samples, rank), _story_of_images(dataset, images)


def fit_images(
    kind: str, dataset: Dataset, rank: int | None, s0: float, components: int, seed: int
) -> tuple[Model, Story]:
    """A model of one of the kinds that need all images in memory, and its story.

    Raises:
        UsageError: more components are asked for than there are images.
    """
    images = dataset.images()
    story = _story_of_images(dataset, images)
    if kind == "isotropic":
        return Isotropic(_mean(images), s0), story
    if kind == "pointcloud":
        return PointCloud(images.flatten(1)), story
    if components > len(images):
        raise UsageError(f"{components} components cannot be fitted to {len(images)} images")
    samples = from_uint8(images.flatten(1))
    return mixture.fit(samples, mixture.cluster(samples, components, seed), rank), story


def _story(dataset: Dataset, digest: str, sigma_data: float) -> Story:
    return Story(dataset.name, digest, dataset.count, dataset.shape, sigma_data)


def _story_of_images(dataset: Dataset, images: Tensor) -> Story:
    return _story(dataset, digest_of_tensor(images), _deviation(images))


def _deviation(images: Tensor) -> float:
    """Standard deviation of all pixels on the [-1, 1] scale, from their histogram."""
    counts = images.flatten().bincount(minlength=256).double()
    levels = from_uint8(torch.arange(256, dtype=torch.uint8), torch.float64)
    mean = counts @ levels / counts.sum()
    return float((counts @ (levels - mean) ** 2 / counts.sum()).sqrt())


def _mean(images: Tensor) -> Tensor:
    """Mean image (D,) on the [-1, 1] scale, exact but for the last rounding."""
    pixels = images.flatten(1).numpy()
    return torch.from_numpy(pixels.mean(0, dtype=np.float64)) / HALF_RANGE - 1


def _fit(options: argparse.Namespace, dataset: Dataset) -> tuple[Model, Story]:
    if options.kind == "gaussian":
        return fit_gaussian(dataset, options.rank, options.batch)
    return fit_images(
        options.kind, dataset, options.rank, options.s0, options.components, options.seed
    )


def _fit_classes(
    options: argparse.Namespace, dataset: Dataset, labels: Tensor
) -> Iterator[tuple[Model, Story]]:
    images = dataset.images()
    for label in labels.unique().tolist():
        model, story = _fit(options, Dataset.of(dataset.name, images[labels == label]))
        print(f"class {label}: {story.count:,} images")
        yield model, replace(story, label=label)


def _check_classes(labels: Tensor, components: int) -> None:
    """Refuse, before any work, classes with fewer images than components."""
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        if count < components:
            raise UsageError(
                f"class {label} has {count} images: {components} components cannot be fitted to it"
            )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2^32 - 1")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        fits = 0 <= float(text) < math.inf
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return float(text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit an analytic model to a dataset of images.")
    parser.add_argument("dataset", help="a known name (CIFAR10, digits, ...) or a path to images")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("save_dir", type=Path)
    parser.add_argument("--rank", type=_positive, help="keep at most so many directions")
    parser.add_argument("--by-class", action="store_true", help="one model for each class as well")
    parser.add_argument("--batch", type=_positive, default=BLOCK, help="images read at a time")
    parser.add_argument("--data-dir", type=Path, help="where archives are kept or looked for")
    parser.add_argument(
        "--s0", type=_not_negative, default=0.0, help="isotropic: deviation of pixels"
    )
    parser.add_argument("--components", type=_positive, default=10, help="mixture: how many")
    parser.add_argument("--seed", type=_seed, default=0, help="mixture: seed of the k-means")
    options = parser.parse_args()
    for name, kinds in USED_BY.items():
        if options.kind not in kinds and getattr(options, name) != parser.get_default(name):
            raise UsageError(f"--{name} is for {' and '.join(kinds)}, not for {options.kind}")
    return options


def main() -> None:
    """Fit, save, and say in a few lines what was made."""
    options = _parse()
    parameters.check_target(options.save_dir)
    dataset = datasets.load(options.dataset, options.data_dir)
    labels = dataset.labels() if options.by_class else None
    if options.by_class and labels is None:
        raise UsageError(f"{dataset.name} has no labels: --by-class needs them")
    if options.kind == "mixture" and labels is not None:
        _check_classes(labels, options.components)
    check_writable(options.save_dir.resolve().parent)
    model, story = _fit(options, dataset)
    classes = () if labels is None else _fit_classes(options, dataset, labels)
    parameters.save(options.save_dir, model, story, classes)
    print(f"{story.dataset}: {story.count:,} images of shape {story.image_shape}")
    print(f"pixel standard deviation (sigma_data) {story.sigma_data:.4f} on the [-1, 1] scale")
    print(f"{options.kind} parameters written to {options.save_dir}")


if __name__ == "__main__":
    sys.exit(run_command(main))
