"""What a fit will need, before anything is read, and which structure of the covariance suits.

The full covariance of D values takes D^2 numbers, which are held three times while they are summed
and decomposed; of n < D images their n x n products are decomposed instead, and the images held.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from linear_structure.data.datasets import Dataset
from linear_structure.gaussian import EigenGaussian, Gaussian
from linear_structure.images import from_uint8
from linear_structure.moments import HALF_WIDTH
from linear_structure.spectral import BLOCK, Spectral, block_size
from linear_structure.system.errors import UsageError

DOUBLE = 8  # bytes of a float64
LEVELS = (4, 10, 25)  # sigma in units of sigma_data: where teleports end
HELD_OUT = 200  # images, of a tenth at most
FITTED = 2000  # images that two structures are compared on, unless they have few values
LEAST = 20  # images that can tell anything
FEW = 1024  # values of an image whose full covariance is decomposed in a second
HELD = 1 << 23  # values of all images that are compared on
SEEN = 0.005  # percent: less is printed as 0


def memory_of(kind: str, count: int, shape: tuple[int, int, int], low: int) -> int:
    """Bytes that a fit to images (count, C, H, W) takes beyond what is imported, about."""
    (channels, height, width), dim = shape, math.prod(shape)
    if kind == "spectral":
        inside = channels * min(low, height) * min(low, width)
        sums = DOUBLE * (inside**2 + channels * dim + dim)
        kept = 4 + math.ceil(math.log2(1 + count / block_size(shape)))  # pairs of pairs of blocks
        return kept * sums + 5 * DOUBLE * max(BLOCK, dim)
    if kind == "gaussian":
        few = count < dim
        return 3 * DOUBLE * min(count, dim) ** 2 + (5 * DOUBLE * count * dim if few else 0)
    return count * dim * (2 * DOUBLE if kind == "mixture" else 1)


def check_memory(kind: str, dataset: Dataset, low: int, free: int | None) -> str:
    """A sentence on the memory that a fit takes.

    Raises:
        UsageError: it is more than is free; spectral parameters, if they would fit, are named.
    """
    needed = memory_of(kind, dataset.count, dataset.shape, low)
    of = f"{dataset.count:,} images of {' x '.join(map(str, dataset.shape))}"
    said = f"{kind} parameters of {of} take about {_size(needed)} of memory"
    if free is None or needed <= free:
        return said
    other = memory_of("spectral", dataset.count, dataset.shape, low)
    instead = f": spectral ones take {_size(other)}" if kind != "spectral" and other <= free else ""
    raise UsageError(f"{said}, and {_size(free)} are free{instead}")


def _size(octets: int) -> str:
    return f"{octets / 1e9:.1f} GB" if octets >= 1e8 else f"{math.ceil(octets / 1e6)} MB"


class Trial(NamedTuple):
    """Two structures at a level: root mean squared errors of denoised held-out images, a value.

    Attributes:
        change: of the mean squared error, the spectral less the Gaussian, in percent of it, with
            its 95 % interval.
    """

    sigma: float
    gaussian: float
    spectral: float
    change: tuple[float, float, float]

    @property
    def better(self) -> str:
        """Which is, beyond chance, or `neither`."""
        _, low, high = self.change
        return "spectral" if high < -SEEN else "gaussian" if low > SEEN else "neither"


def trials(dataset: Dataset, low: int, sigma_data: float) -> tuple[int, int, list[Trial]]:
    """Both structures, fitted to some images, on others: how many of each, and a trial a level.

    The images are random, but the same ones each time. Where fewer than 20 are at hand, or can be
    held, there is no trial.
    """
    dim = math.prod(dataset.shape)
    most = dataset.count if dim <= FEW else FITTED + HELD_OUT
    count = min(dataset.count, most, HELD // dim)
    apart = min(HELD_OUT, dataset.count // 10, count // 3)
    fitted = count - apart
    if count < LEAST or apart < 2 or sigma_data == 0:
        return fitted, apart, []
    order = torch.randperm(dataset.count, generator=torch.Generator().manual_seed(0))
    chosen, _ = order[: fitted + apart].sort()
    mixed = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(1))
    images = dataset.only(chosen).images()[mixed]
    held = from_uint8(images[:apart], torch.float64) if dataset.pixels else images[:apart].double()
    models = Gaussian.from_samples(images[apart:]), Spectral.from_samples(images[apart:], low)
    return fitted, apart, [_trial(*models, held, level * sigma_data) for level in LEVELS]


def _trial(gaussian: EigenGaussian, spectral: EigenGaussian, held: Tensor, sigma: float) -> Trial:
    a, b = (model.squared_error(held, sigma) / model.dim for model in (gaussian, spectral))
    relative = 100 * (b - a) / a.mean()
    change, half = float(relative.mean()), HALF_WIDTH * float(relative.std()) / len(a) ** 0.5
    interval = (change, change - half, change + half)
    return Trial(sigma, float(a.mean().sqrt()), float(b.mean().sqrt()), interval)


def told(fitted: int, apart: int, found: list[Trial]) -> list[str]:
    """The trials in lines of text."""
    if not found:
        return []
    lines = [f"held out: fitted to {fitted:,} images, root mean squared error on {apart} others"]
    for trial in found:
        change, low, high = trial.change
        lines.append(
            f"  sigma {trial.sigma:.3g}: gaussian {trial.gaussian:.4f}, spectral "
            f"{trial.spectral:.4f} ({change:+.2f} % of its square, {low:+.2f} to {high:+.2f}): "
            f"{trial.better} is better"
        )
    return lines
