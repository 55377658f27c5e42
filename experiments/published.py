"""What the authors measured on NVIDIA's CIFAR-10 network, to stand beside ours.

The share of a network's score that a model explains, 1 - |s_network - s|^2 / |s_network|^2, mean
over 2,048 noised training images: of the repository of Wang and Vastola's paper,
Animadversio/DiffusionMemorization, the table

    Tables/cifar10_uncond_edm_vp_pretrained_epoch_gmm_exp_var_gmm_rk.csv

`comparison.agreement` has the same measure of ours as `share`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison import GAUSSIAN, ISOTROPIC, POINTS, SPHERICAL, Key

BESIDE = ("cifar10", "cifar10-small")  # presets of the same images
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


def share_at(sigma: float, agreement: Mapping[str, Any]) -> float:
    """Ours at a noise level, linear in ln sigma between those measured; `nan` beyond them."""
    levels = np.log(agreement["sigma"])[::-1]
    return float(
        np.interp(math.log(sigma), levels, agreement["share"][::-1], left=math.nan, right=math.nan)
    )


def beside(numbers: Mapping[Key, Mapping[str, Any]]) -> list[list[object]]:
    """Rows (model, sigma, published share, ours of the same model where there is one)."""
    rows: list[list[object]] = []
    for key, shares in SHARES.items():
        for sigma, share in zip(SIGMAS, shares, strict=True):
            ours = share_at(sigma, numbers[key]["noised"]) if key in numbers else math.nan
            rows.append([key.title, sigma, share, "" if math.isnan(ours) else ours])
    return rows
