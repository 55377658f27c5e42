"""What the comparisons say, as single numbers: where which model is right, what settles first.

The image of a Gaussian's trajectory is known in closed form (Wang and Vastola 2023, section 3). On
principal component k, with variance lam and c its coordinate of x_T, both about the mean,

    state      c sqrt((lam + sigma^2) / (lam + sigma_T^2))
    denoised   c lam / sqrt((lam + sigma^2)(lam + sigma_T^2))

so the denoised image has half of its final coordinate where sigma = sqrt(3 lam): directions of high
variance settle first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from experiments.comparison import GAUSSIAN, ISOTROPIC, POINTS, Key
from linear_structure.gaussian import Gaussian
from linear_structure.sampling.samplers import Step

BEATEN = 0.9  # a model beats another where its median error is below this share of the other's
DIRECTIONS = 32  # principal components that are followed


@dataclass(frozen=True)
class Settling:
    """Principal components along a network's trajectories.

    Attributes:
        sigma: noise levels.
        gain: for each component and level, the regression of its coordinate on that at sigma_T.
        expected: the closed form of the gain.
        half: for each component, the sigma where its denoised coordinate has half its final size.
        expected_half: `sqrt(3 lam)`.
        order: Spearman's rank correlation of `half` and the variances.
    """

    sigma: list[float]
    gain: list[list[float]]
    expected: list[list[float]]
    half: list[float]
    expected_half: list[float]
    order: float


def settling(steps: Sequence[Step], gaussian: Gaussian, directions: int = DIRECTIONS) -> Settling:
    """How principal components move along trajectories (Steps of (n, *S)) that end at sigma = 0."""
    from scipy.stats import spearmanr  # takes half a second

    leading = gaussian.truncated(directions)
    lam, sigmas = leading.eigenvalues, torch.stack([step.sigma for step in steps[:-1]]).double()
    states = torch.stack([_coordinates(step.x, leading) for step in steps])
    images = torch.stack([_coordinates(step.denoised, leading) for step in steps])
    gain = _regression(states[:-1], states[0])
    progress = _regression(images, states[-1])
    half = [_crossing(sigmas, progress[:-1, k], 0.5) for k in range(len(lam))]
    expected = ((lam + sigmas[:, None] ** 2) / (lam + sigmas[0] ** 2)).sqrt()
    return Settling(
        sigmas.tolist(),
        gain.T.tolist(),
        expected.T.tolist(),
        half,
        (3 * lam).sqrt().tolist(),
        float(spearmanr(half, lam.numpy()).statistic),
    )


def _coordinates(x: Tensor, gaussian: Gaussian) -> Tensor:
    """(n, *S) -> (n, r), in principal components about the mean."""
    flat = x.flatten(1).double()
    model = gaussian.to(flat)
    return ((flat - model.mean) @ model.basis).cpu()


def _regression(values: Tensor, on: Tensor) -> Tensor:
    """Slopes through 0, over the n samples: (L, n, r) on (n, r) -> (L, r)."""
    return (values * on).sum(1) / on.square().sum(0)


def _crossing(sigmas: Tensor, values: Tensor, level: float) -> float:
    """The largest sigma where values reach the level, log-linearly between levels (L,)."""
    reached = (values >= level).nonzero().flatten()
    first = int(reached[0]) if len(reached) else len(sigmas) - 1
    if first == 0 or not len(reached):
        return float(sigmas[first])
    below, above = values[first - 1], values[first]
    share = (level - below) / (above - below)
    return float(sigmas[first - 1] * (sigmas[first] / sigmas[first - 1]) ** share)


def median_error(agreement: Mapping[str, Any]) -> Tensor:
    """Median relative errors (L,) of what `comparison.agreement` gives."""
    return torch.tensor(agreement["error"])[:, 1]


def beaten_range(winner: Mapping[str, Any], loser: Mapping[str, Any]) -> tuple[float, float] | None:
    """The longest unbroken range of sigmas, from and to, where one model's error is under 0.9 of
    another's; None: nowhere."""
    better = median_error(winner) < BEATEN * median_error(loser)
    levels = sorted(zip(winner["sigma"], better.tolist(), strict=True))
    runs = [[sigma for sigma, _ in run] for won, run in groupby(levels, itemgetter(1)) if won]
    longest = max(runs, key=len, default=None)
    return (longest[0], longest[-1]) if longest else None


def equal_above(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """The smallest sigma from which on two models' errors are within a tenth; None: nowhere."""
    a, b = median_error(one), median_error(other)
    close = (a - b).abs() <= (1 - BEATEN) * b
    levels = sorted(zip(one["sigma"], close.tolist(), strict=True), reverse=True)
    held = [sigma for sigma, _ in takewhile(itemgetter(1), levels)]
    return held[-1] if held else None


def summary(
    numbers: Mapping[Key, Mapping[str, Any]], settled: Settling, where: str = "noised images"
) -> dict[str, Any]:
    """The findings of one preset, from the numbers of each model at the `noised` states."""
    on_data = {key: parts["noised"] for key, parts in numbers.items()}
    gaussian = on_data[GAUSSIAN]
    found: dict[str, Any] = {
        "states": where,
        "score explained by the Gaussian": _by_sigma(gaussian),
        "score explained by the isotropic model": _by_sigma(on_data[ISOTROPIC]),
        "mixtures beat the Gaussian at sigmas from, to": {
            key.title: beaten_range(agreement, gaussian)
            for key, agreement in on_data.items()
            if key.kind == "mixture" and key.rank is None
        },
        "rank correlation of settling and variance": settled.order,
    }
    if POINTS in on_data:
        equal = equal_above(on_data[POINTS], gaussian)
        found["the point cloud equals the Gaussian above sigma"] = equal
        found["score explained by the point cloud"] = _by_sigma(on_data[POINTS])
    return found


def _by_sigma(agreement: Mapping[str, Any]) -> dict[str, float]:
    pairs = zip(agreement["sigma"], agreement["explained"], strict=True)
    return {f"{sigma:.3g}": round(explained, 5) for sigma, explained in pairs}
