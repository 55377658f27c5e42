"""The largest number of steps to skip, from a few trajectories and no distance at all.

The teleported state is compared with the network's own at the same level. What counts is the noise
that covers the difference: the RMS difference of a pixel in units of sigma,

    |x_teleported - x_network| / (sigma sqrt(D))

The network's state is Heun's on a finer grid, whose own error does not count. It is called only
down to the level where the median over seeds passes the tolerance.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile

import torch
from torch import Tensor

from experiments.comparison import REFINEMENT, norms, refined
from linear_structure.denoise import Denoiser
from linear_structure.sampling.samplers import heun
from linear_structure.system.errors import WorkError
from linear_structure.teleport import Teleport

TOLERANCE = 0.02
KNEE = 1.1  # a distance of up to this multiple of that without skips counts as unchanged


@dataclass(frozen=True)
class Offset:
    """How far a teleport of `skip` steps misses.

    Attributes:
        sigma: noise level where it ends.
        median: over seeds, of the RMS difference of a pixel in units of sigma.
    """

    skip: int
    sigma: float
    median: float


def offsets(
    network: Denoiser, teleport: Teleport, x: Tensor, sigmas: Tensor, labels: Tensor | None = None
) -> Iterator[Offset]:
    """For k = 0, 1, ...: the teleport of k steps against the network's solution from x (n, *S).

    Args:
        x: float64, at sigmas[0].
        sigmas: (N + 1,), ending in 0.
        labels: classes (n,) of the samples, where the network has any.

    Raises:
        WorkError: the network gave NaN or infinity.
    """
    root = math.sqrt(math.prod(x.shape[1:]))
    steps = islice(heun(network, x, refined(sigmas)), None, None, REFINEMENT)
    for k, step in enumerate(steps):
        if not bool(torch.isfinite(step.x).all()):
            raise WorkError("the network gave NaN or infinity: its weights are unusable")
        moved = teleport.flow(x, sigmas[0], step.sigma, labels) if k else x
        relative = norms(moved - step.x) / (float(step.sigma) * root)
        yield Offset(k, float(step.sigma), float(relative.median()))


def until_above(found: Iterable[Offset], tolerance: float) -> list[Offset]:
    """The offsets up to and with the first one above the tolerance."""
    shown = []
    for offset in found:
        shown.append(offset)
        if offset.median > tolerance:
            break
    return shown


def best_skip(found: Iterable[Offset], tolerance: float) -> int:
    """The largest skip within the tolerance; skip 0, which moves nothing, always is."""
    return max(offset.skip for offset in found if offset.median <= tolerance)


def knee(distances: Mapping[int, float]) -> int:
    """The largest skip before the measured distance first exceeds 1.1 times that of skip 0."""
    limit = KNEE * distances[0]
    return max(takewhile(lambda skip: distances[skip] <= limit, sorted(distances)))


def verdict(distances: Mapping[int, float]) -> str:
    """What measured distances say of the knee, in a sentence; empty where only skip 0 is known."""
    if len(distances) == 1:
        return ""
    last = knee(distances)
    end = f"skip {last}, the highest measured" if last == max(distances) else f"skip {last}"
    return f"Measured: the distance stays within {KNEE} times that of skip 0 up to {end}."
