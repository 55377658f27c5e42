"""From a dataset of images to a model of them, and the story of what it was made from."""

import hashlib
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from linear_structure.data.datasets import Dataset
from linear_structure.denoise import Model
from linear_structure.gaussian import Gaussian, Isotropic, Rank
from linear_structure.images import HALF_RANGE, from_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.moments import FloatSums, Moments, PixelSums
from linear_structure.parameters import Story
from linear_structure.points import PointCloud
from linear_structure.spectral import LOW, Spectral, SpectralSums, block_size
from linear_structure.system.errors import UsageError
from linear_structure.system.files import digest_of_tensor, octets

BATCH = 1000  # images read at a time
COMPONENTS = 10

Fitted = tuple[Model, Story]


def fit(
    dataset: Dataset,
    kind: str = "gaussian",
    rank: Rank = None,
    s0: float = 0.0,
    components: int = COMPONENTS,
    seed: int = 0,
    batch: int = BATCH,
    low: int = LOW,
) -> Fitted:
    """A model of a dataset, and its story; but for `gaussian` and `spectral`, with all in memory.

    Args:
        kind: `gaussian`, `isotropic`, `mixture`, `pointcloud` or `spectral`.
        rank: at most so many directions are kept of a covariance, or as many as planned.
        s0: of the isotropic model, on the [-1, 1] scale.
        components, seed: of the mixture's k-means clusters.
        batch: images that are read at a time for the Gaussian.
        low: frequencies of rows and columns in the dense block of the spectral model.

    Raises:
        UsageError: more components are asked for than there are images, a point cloud of real
            numbers, or it is no `Dataset`.
    """
    _check(dataset)
    if kind == "gaussian":
        return fit_gaussian(dataset, rank, batch)
    if kind == "spectral":
        return fit_spectral(dataset, low)
    images = dataset.images()
    story = _story_of_images(dataset, images)
    if kind == "isotropic":
        mean = images.flatten(1).numpy().mean(0, dtype=np.float64)  # exact but for one rounding
        center = torch.from_numpy(mean)
        return Isotropic(center / HALF_RANGE - 1 if dataset.pixels else center, s0), story
    if kind == "pointcloud":
        if not dataset.pixels:
            raise UsageError(f"{dataset.name} holds floats: point clouds are kept as uint8 pixels")
        return PointCloud(images.flatten(1)), story
    if components > len(images):
        raise UsageError(f"{components} components cannot be fitted to {len(images)} images")
    return mixture_of(images, components, rank, seed), story


def fit_classes(dataset: Dataset, labels: Tensor, **chosen: Any) -> Iterator[Fitted]:
    """A model of the images of each class, labels (n,) int64, in ascending order, as `fit` says."""
    for label in labels.unique().tolist():
        model, story = fit(dataset.only((labels == label).nonzero().flatten()), **chosen)
        yield model, replace(story, label=label)


def check_classes(dataset: Dataset, labels: Tensor, components: int) -> None:
    """Refuse, before any work, classes with fewer images than components (UsageError)."""
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        if count < components:
            raise UsageError(
                f"class {dataset.class_name(int(label))} has {count} images: {components} "
                "components cannot be fitted to it"
            )


def measure(dataset: Dataset, batch: int = BATCH) -> tuple[Moments, str]:
    """Moments, of pixels on the [-1, 1] scale, and SHA-256 of the images in order: one pass."""
    dim = math.prod(dataset.shape)
    sums, sha = PixelSums(dim) if dataset.pixels else FloatSums(), hashlib.sha256()
    with tqdm(total=dataset.count, desc="mean and covariance", unit=" images") as bar:
        for images in dataset.blocks(batch):
            sums.add(images)
            sha.update(octets(images))
            bar.update(len(images))
    return sums.moments(), sha.hexdigest()


def fit_gaussian(dataset: Dataset, rank: Rank = None, batch: int = BATCH) -> tuple[Gaussian, Story]:
    """The Gaussian of a dataset, of at most `rank` directions, and its story.

    The images pass once, `batch` at a time; only where they are fewer than the pixels of one are
    they held in memory, instead of the D x D covariance.

    Raises:
        UsageError: it is no `Dataset`.
    """
    _check(dataset)
    if dataset.count >= math.prod(dataset.shape):
        moments, digest = measure(dataset, batch)
        story = _story(dataset, digest, moments.sigma_data)
        mean, covariance = moments.mean, moments.covariance
        del moments  # as large as the covariance
        return Gaussian.from_covariance(mean, covariance, rank, overwrite=True), story
    images = dataset.images()
    return Gaussian.from_samples(images, rank), _story_of_images(dataset, images)


def fit_spectral(dataset: Dataset, low: int = LOW) -> tuple[Spectral, Story]:
    """The spectral Gaussian of a dataset, and its story: the images pass once, with a bar.

    Raises:
        UsageError: it is no `Dataset`.
    """
    _check(dataset)
    sums, sha = SpectralSums(low), hashlib.sha256()
    with tqdm(total=dataset.count, desc="mean and blocks", unit=" images") as bar:
        for block, images in enumerate(dataset.blocks(block_size(dataset.shape))):
            sums.add(images, block)
            sha.update(octets(images))
            bar.update(len(images))
    moments = sums.moments()
    story = _story(dataset, sha.hexdigest(), moments.sigma_data)
    return Spectral.from_moments(moments), story


def _check(dataset: Dataset) -> None:
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"images of type {type(dataset).__name__}: expected a Dataset, which "
            "load_dataset(path) gives, or Dataset.of(name, images) in memory"
        )


def cluster(samples: Tensor, components: int, seed: int = 0) -> Tensor:
    """k-means labels (n,) int64 of samples (n, D), the same for the same seed.

    Where fewer samples differ than components are asked for, there are fewer labels.

    Raises:
        ValueError: more components than samples.
    """
    if not 1 <= components <= len(samples):
        raise ValueError(f"{components} components cannot be fitted to {len(samples)} samples")
    from sklearn.cluster import KMeans  # takes over a second, and only this needs it
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(components, n_init=1, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # fewer clusters
        labels = means.fit_predict(samples.flatten(1).numpy().astype(np.float32))
    return torch.from_numpy(labels).long()


def mixture_of(
    images: Tensor, components: int, rank: Rank = None, seed: int = 0
) -> GaussianMixture:
    """A mixture of images (n, C, H, W) by clusters: the same for the same seed.

    Where fewer images differ than components are asked for, one sentence says how many there are.
    """
    flat = images.flatten(1)
    samples = from_uint8(flat) if images.dtype == torch.uint8 else flat
    mixture = fit_mixture(samples, cluster(samples, components, seed), rank)
    if (found := len(mixture.components)) < components:
        print(f"{found} of {components} components: no more of the images differ", file=sys.stderr)
    return mixture


def fit_mixture(samples: Tensor, labels: Tensor, rank: Rank = None) -> GaussianMixture:
    """One component of at most `rank` directions for each label: its share, mean, covariance.

    Args:
        samples: (n, D), in the units of x.
        labels: (n,) int64; the components come in ascending order of the labels.
    """
    values, counts = labels.unique(return_counts=True)
    components = (Gaussian.from_samples(samples[labels == value], rank) for value in values)
    return GaussianMixture(counts.double() / len(samples), tuple(components))


def _story_of_images(dataset: Dataset, images: Tensor) -> Story:
    """The story of a dataset whose images are in memory: sigma_data of pixels by histogram."""
    if not dataset.pixels:
        spread = float(images.double().std(correction=0))
        return _story(dataset, digest_of_tensor(images), spread)
    counts = images.flatten().bincount(minlength=256).double()
    levels = from_uint8(torch.arange(256, dtype=torch.uint8), torch.float64)
    mean = counts @ levels / counts.sum()
    sigma_data = float((counts @ (levels - mean) ** 2 / counts.sum()).sqrt())
    return _story(dataset, digest_of_tensor(images), sigma_data)


def _story(dataset: Dataset, digest: str, sigma_data: float) -> Story:
    story = Story(dataset.name, digest, dataset.count, dataset.shape, sigma_data)
    return story if dataset.pixels else replace(story, pixel_range=None)
