"""The analytic models that a network is compared with, all fitted to the same images.

    isotropic      the mean alone: every direction shrinks alike
    Gaussian       mean and covariance
    mixture of K   k-means clusters, each a Gaussian; also of low rank r, so with nothing beside it
    point cloud    every image, as a point

The low rank is that of the directions which hold 95 % of the variance that the Gaussian holds.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from linear_structure import mixture
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.parameters import Model
from linear_structure.points import PointCloud

COMPONENTS = (1, 2, 5, 10, 20, 50, 100)
VARIANCE_HELD = 0.95


def low_rank(gaussian: Gaussian) -> int:
    """How many directions hold 95 % of the variance."""
    held = gaussian.eigenvalues.cumsum(0) / gaussian.eigenvalues.sum()
    return int((held < VARIANCE_HELD).sum()) + 1


def known(
    gaussian: Gaussian, images: Tensor | None, components: Sequence[int] = COMPONENTS
) -> dict[str, Callable[[], Model]]:
    """By name, what makes each model; one is made when it is called, so few are held at a time.

    Args:
        gaussian: of the images.
        images: uint8 (n, C, H, W), or None: the models that need them are left out.
        components: of the mixtures; those above n are left out, as is the full-rank one of 1.
    """
    makers: dict[str, Callable[[], Model]] = {
        "isotropic": lambda: Isotropic(gaussian.mean),
        "Gaussian": lambda: gaussian,
    }
    if images is None:
        return makers
    rank = low_rank(gaussian)
    for count in components:
        if count > len(images):
            continue
        if count > 1:
            makers[f"mixture of {count}"] = partial(fitted, images, count, None)
        makers[f"mixture of {count}, rank {rank}"] = partial(fitted, images, count, rank)
    return {**makers, "point cloud": lambda: PointCloud(images.flatten(1))}


def fitted(images: Tensor, components: int, rank: int | None) -> GaussianMixture:
    """A mixture of images, uint8 (n, C, H, W), the same every time."""
    samples = from_uint8(images.flatten(1))
    labels = mixture.cluster(samples, components) if components > 1 else torch.zeros(len(samples))
    return mixture.fit(samples, labels.long(), rank)
