"""A network beside an analytic model: their scores at the same states, their solutions from the
same noise.

Scores are compared through denoised images, since `s = (D - x) / sigma^2`:

    relative error     |s_model - s_network| / |s_network| = |D_model - D_network| / |D_network - x|
    explained share    1 - sum |s_model - s_network|^2 / sum |s_network - mean s_network|^2

Solutions start in the state of the network's trajectory at sigma_T. A Gaussian's is closed; that
of another model is Heun's on a grid with `REFINEMENT` steps for each of the network's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from linear_structure.denoise import Denoiser
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.parameters import Model
from linear_structure.sampling.samplers import Step, heun

REFINEMENT = 4
NOISE_SEED = 2**32 - 1  # no sample's seed: samples may be the images that are noised
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Agreement:
    """How close a model's score is to a network's.

    Attributes:
        sigma: noise levels.
        error: for each, lower quartile, median, upper quartile of the relative errors.
        explained: for each, the explained share of the network's score.
    """

    sigma: list[float]
    error: list[list[float]]
    explained: list[float]


@dataclass(frozen=True)
class Deviation:
    """How far a model's solution is from a network's, as quartiles of relative distances.

    Attributes:
        sigma: noise levels.
        state: of x_t.
        denoised: of D(x_t, t), each by its own denoiser.
    """

    sigma: list[float]
    state: list[list[float]]
    denoised: list[list[float]]


def quartiles(values: Tensor) -> list[float]:
    """Lower quartile, median and upper quartile of (n,)."""
    return values.quantile(torch.tensor(QUARTILES).to(values)).tolist()


def norms(x: Tensor) -> Tensor:
    """Length of each sample: (n, *S) -> (n,)."""
    return x.flatten(1).norm(dim=1)


def on_noised(network: Denoiser, images: Tensor, sigmas: Iterable[Tensor]) -> Iterator[Step]:
    """The network at images (n, C, H, W) in [-1, 1] plus noise, the same noise at every level."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    for sigma in sigmas:
        x = images.double() + sigma * noise.to(images).double()
        yield Step(x, sigma, network(x, sigma))


def agreement(steps: Sequence[Step], denoise: Denoiser) -> Agreement:
    """A model's score at the states where the network's is known; steps at sigma = 0 are left."""
    found: list[tuple[float, list[float], float]] = []
    for x, sigma, denoised in steps:
        if sigma == 0:
            continue
        score, difference = denoised - x, denoise(x, sigma) - denoised
        spread = (score - score.mean(0)).square().sum()
        explained = 1 - difference.square().sum() / spread
        found.append((float(sigma), quartiles(norms(difference) / norms(score)), float(explained)))
    return Agreement(*(list(column) for column in zip(*found, strict=True)))


def solution(model: Model, x: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """The model's trajectory from x at sigmas[0]: a Step for each of the levels above 0.

    Args:
        x: (n, *S) float64.
        sigmas: (N + 1,), as `linear_structure.sampling.grids.sigma_grid` makes them, ending in 0.
    """
    levels = sigmas[:-1]
    if isinstance(model, Gaussian | Isotropic):
        for sigma in levels:
            denoised = model.denoised_along(x, levels[0], sigma)
            yield Step(model.flow(x, levels[0], sigma), sigma, denoised)
        return
    yield from islice(heun(model.denoise, x, refined(sigmas)), None, None, REFINEMENT)


def refined(sigmas: Tensor) -> Tensor:
    """A grid (N + 1,) ending in 0, with `REFINEMENT` steps in place of each but the last.

    Between two levels sigma^(1 / 7) is linear, as in the grid of Karras et al. 2022.
    """
    root = sigmas[:-1] ** (1 / 7)
    share = torch.arange(REFINEMENT).to(sigmas) / REFINEMENT
    between = root[:-1, None] + share * (root[1:] - root[:-1])[:, None]
    fine = torch.cat([between.flatten() ** 7, sigmas[-2:]])
    fine[:-1:REFINEMENT] = sigmas[:-1]
    return fine


def deviation(steps: Sequence[Step], model: Model, sigmas: Tensor) -> Deviation:
    """Of the model's solution from the network's steps, which end with that at sigma = 0."""
    theirs = solution(model, steps[0].x, sigmas)
    found = [
        (
            float(sigma),
            quartiles(norms(ours.x - x) / norms(x)),
            quartiles(norms(ours.denoised - denoised) / norms(denoised)),
        )
        for (x, sigma, denoised), ours in zip(steps, theirs, strict=False)
    ]
    return Deviation(*(list(column) for column in zip(*found, strict=True)))


def compared(
    model: Model, noised: Sequence[Step], trajectory: Sequence[Step], sigmas: Tensor
) -> dict[str, Any]:
    """All numbers of one model, as JSON values."""
    return {
        "noised": asdict(agreement(noised, model.denoise)),
        "trajectory": asdict(agreement(trajectory, model.denoise)),
        "solution": asdict(deviation(trajectory, model, sigmas)),
    }
