"""What the authors measured on NVIDIA's CIFAR-10 network, to stand beside ours.

The share of a network's score that a model explains, 1 - |s_network - s|^2 / |s_network|^2, mean
over 2,048 noised training images: of the repository of Wang and Vastola's paper,
Animadversio/DiffusionMemorization, the table

    Tables/cifar10_uncond_edm_vp_pretrained_epoch_gmm_exp_var_gmm_rk.csv

Ours is the same measure at the same noise levels. Where the images are at hand, it is at noised
images, and the Gaussian is theirs, of all directions and of the ranks of the table; else at the
network's own samples, noised, and the Gaussian that of the parameters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from experiments import comparison
from experiments.comparison import (
    GAUSSIAN,
    ISOTROPIC,
    POINTS,
    SPHERICAL,
    Key,
    Makers,
    States,
    Study,
)
from linear_structure.gaussian import EigenGaussian, Gaussian
from linear_structure.moments import HALF_WIDTH

BESIDE = ("cifar10", "cifar10-small")  # presets of the same images
IMAGES = 256  # of ours, at most
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0)
SHARES: Mapping[Key, Sequence[float]] = {
    GAUSSIAN: (.5615, .7346, .8183, .8921, .9588, .9759, .9843, .9925, .9957, .9996, 1),
    POINTS: (.2623, .6296, .7862, .8794, .9462, .9638, .9722, .9816, .9860, .9979, 1),
    SPHERICAL: (.0028, .0138, .0465, .1573, .5312, .7210, .8237, .9175, .9522, .9944, .9992),
    ISOTROPIC: (-1039, -131, -28.9, -5.66, .0248, .5850, .7738, .9066, .9483, .9943, .9992),
    Key("gaussian", rank=128): (
        -89.4, -9.72, -1.34, .4975, .9297, .9685, .9816, .9919, .9955, .9996, 1
    ),
    Key("gaussian", rank=1024): (
        -2.91, .4844, .7909, .8900, .9587, .9759, .9843, .9925, .9957, .9996, 1
    ),
    Key("mixture", 10, 1024): (
        -1.68, .5785, .8091, .8955, .9604, .9769, .9851, .9930, .9960, .9997, 1
    ),
    Key("best of 104 mixtures"): (
        .6284, .7568, .8372, .9025, .9607, .9770, .9852, .9931, .9962, .9998, 1
    ),
}  # fmt: skip


class Share(NamedTuple):
    """Ours of the score, mean over images, and half of its 95 % interval."""

    mean: float
    half_interval: float


def models(gaussian: Gaussian, images: Tensor) -> Makers:
    """Ours of the table's kinds, of images (n, C, H, W) and their Gaussian, of all directions."""
    lower = {
        key: partial(gaussian.truncated, key.rank)
        for key in SHARES
        if key.kind == "gaussian" and key.rank and key.rank < gaussian.rank
    }
    return {**comparison.models(gaussian, images, components=()), **lower}


def measured(study: Study, states: States, gaussian: EigenGaussian) -> dict[Key, list[Share]]:
    """Ours at each of `SIGMAS`, with a bar; the Gaussian under its rank, where it has not all."""
    whole = gaussian.rank == gaussian.dim
    own = GAUSSIAN if whole else replace(GAUSSIAN, rank=gaussian.rank)
    found = study.numbers(replace(states, noise_levels=SIGMAS), ("noised",))
    return {
        own if key == GAUSSIAN else key: _shares(parts["noised"]) for key, parts in found.items()
    }


def _shares(scores: Tensor) -> list[Share]:
    share = 1 - scores[:, :, 0].square()
    half = HALF_WIDTH * share.std(0) / len(share) ** 0.5
    return list(map(Share, share.mean(0).tolist(), half.tolist()))


def beside(ours: Mapping[Key, Sequence[Share]]) -> list[list[object]]:
    """Rows (model, sigma, published share, ours, half of its interval); "" where there is none."""
    rows = list[list[object]]()
    for key in dict.fromkeys([*SHARES, *ours]):
        theirs: Sequence[object] = SHARES.get(key, [""] * len(SIGMAS))
        own: Sequence[Iterable[object]] = ours.get(key, [("", "")] * len(SIGMAS))
        columns = zip(SIGMAS, theirs, own, strict=True)
        rows += [[key.title, sigma, share, *found] for sigma, share, found in columns]
    return rows
