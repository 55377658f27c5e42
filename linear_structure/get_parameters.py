"""python linear_structure/get_parameters.py DATASET {gaussian,...} SAVE_DIR: images to parameters."""

import sys
from pathlib import Path

if __name__ == "__main__":  # this folder would come first on the path and shadow `datasets`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import math
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from linear_structure import datasets, mixture, parameters
from linear_structure.datasets import Dataset
from linear_structure.errors import UsageError, run_command
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.moments import Moments, PixelSums
from linear_structure.parameters import KINDS, Model, Story
from linear_structure.points import PointCloud

BLOCK = 1000


def measure(dataset: Dataset, block: int = BLOCK) -> tuple[Moments, str]:
    """Moments on the [-1, 1] scale and SHA-256 of the pixels in order, in one pass with a bar."""
    sums, sha = PixelSums(math.prod(dataset.shape)), hashlib.sha256()
    with tqdm(total=dataset.count, desc="mean and covariance", unit=" images") as bar:
        for images, _ in dataset.blocks(block):
            sums.add(images)
            sha.update(images.contiguous().numpy())
            bar.update(len(images))
    return sums.moments(), sha.hexdigest()


def fit_gaussian(
    dataset: Dataset, rank: int | None = None, block: int = BLOCK
) -> tuple[Gaussian, Story]:
    """The Gaussian of a dataset; one with fewer images than pixels is held in memory instead of
    its D x D covariance."""
    if dataset.count >= math.prod(dataset.shape):
        moments, digest = measure(dataset, block)
        gaussian = Gaussian.from_covariance(moments.mean, moments.covariance, rank)
        return gaussian, _story(dataset, digest, moments.sigma_data)
    images = dataset.images()
    return Gaussian.from_samples(_samples(images), rank), _story_of_images(dataset, images)


def fit_images(
    kind: str, dataset: Dataset, rank: int | None, s0: float, components: int, seed: int
) -> tuple[Model, Story]:
    """A model of one of the kinds that need all images in memory."""
    images = dataset.images()
    story = _story_of_images(dataset, images)
    if kind == "isotropic":
        return Isotropic(_samples(images).mean(0), s0), story
    if kind == "pointcloud":
        return PointCloud(images.flatten(1)), story
    labels = mixture.cluster(from_uint8(images), components, seed)
    return mixture.fit(from_uint8(images).flatten(1), labels, rank), story


def _story(dataset: Dataset, digest: str, sigma_data: float) -> Story:
    return Story(dataset.name, digest, dataset.count, dataset.shape, sigma_data)


def _story_of_images(dataset: Dataset, images: Tensor) -> Story:
    digest = hashlib.sha256(images.contiguous().numpy()).hexdigest()
    return _story(dataset, digest, float(from_uint8(images).std(correction=0)))


def _samples(images: Tensor) -> Tensor:
    return from_uint8(images.flatten(1), torch.float64)


def _fit(options: argparse.Namespace, dataset: Dataset) -> tuple[Model, Story]:
    if options.kind == "gaussian":
        return fit_gaussian(dataset, options.rank, options.batch)
    return fit_images(
        options.kind, dataset, options.rank, options.s0, options.components, options.seed
    )


def _of_class(dataset: Dataset, images: Tensor, label: int) -> Dataset:
    chosen = images[dataset.labels() == label]
    return replace(
        dataset, count=len(chosen), read=lambda start, stop: chosen[start:stop], targets=None
    )


def _save_by_class(options: argparse.Namespace, dataset: Dataset) -> None:
    labels, images = dataset.labels(), dataset.images()
    if labels is None:
        raise UsageError(f"{dataset.name} has no labels: --by-class needs them")
    for label in labels.unique().tolist():
        model, story = _fit(options, _of_class(dataset, images, label))
        folder = options.save_dir / "by_class" / str(label)
        parameters.save(folder, model, replace(story, label=label))
        print(f"class {label}: {story.count:,} images, written to {folder}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit an analytic model to a dataset of images.")
    parser.add_argument("dataset", help="a known name (CIFAR10, digits, ...) or a path to images")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("save_dir", type=Path)
    parser.add_argument("--rank", type=_positive, help="keep at most so many directions")
    parser.add_argument("--by-class", action="store_true", help="one model for each class as well")
    parser.add_argument("--batch", type=_positive, default=BLOCK, help="images read at a time")
    parser.add_argument("--data-dir", type=Path, help="where archives are kept or looked for")
    parser.add_argument("--s0", type=float, default=0.0, help="isotropic: standard deviation")
    parser.add_argument("--components", type=_positive, default=10, help="mixture: how many")
    parser.add_argument("--seed", type=int, default=0, help="mixture: seed of the k-means")
    return parser.parse_args()


def main() -> None:
    """Fit, save, and say in a few lines what was made."""
    options = _parse()
    parameters.check_target(options.save_dir)
    dataset = datasets.load(options.dataset, options.data_dir)
    model, story = _fit(options, dataset)
    parameters.save(options.save_dir, model, story)
    print(f"{story.dataset}: {story.count:,} images of shape {story.image_shape}")
    print(f"pixel standard deviation (sigma_data) {story.sigma_data:.4f} on the [-1, 1] scale")
    print(f"{options.kind} parameters written to {options.save_dir}")
    if options.by_class:
        _save_by_class(options, dataset)


if __name__ == "__main__":
    sys.exit(run_command(main))
