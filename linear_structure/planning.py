"""What a fit will need, before anything is read, and which structure of the covariance suits.

The full covariance of D values takes D^2 numbers, which are held three times while they are summed
and decomposed; of n < D images their n x n products are decomposed instead, and the images held.
"""

import math
from bisect import bisect_right
from functools import partial
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from linear_structure.data.datasets import Dataset
from linear_structure.fit import fit_gaussian, fit_spectral
from linear_structure.gaussian import EigenGaussian, Rank
from linear_structure.images import values_of
from linear_structure.spectral import BLOCK, LOW, block_size
from linear_structure.system.errors import UsageError

DOUBLE = 8  # bytes of a float64
LEVELS = (4, 10, 25)  # sigma in units of sigma_data: where teleports end
HELD_OUT = 200  # images, of a fifth at most where there are many
LEAST = 20  # held-out images that can tell anything
AFFORDED = 1e12, 5e8  # multiplications and bytes of a second fit: a minute of one thread
FEW = 2200, 1 << 23  # images, and values of them, that are compared on where that is not afforded
MOST = 0.8  # of the images: fits to that many tell which structure is better for all
SEEN = 0.005  # percent: less is printed as 0
ROUNDED = 1e-9  # of sigma: an error below it is rounding


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
        UsageError: it is more than is free; what would fit is named.
    """
    needed = memory_of(kind, dataset.count, dataset.shape, low)
    of = f"{dataset.count:,} images of {' x '.join(map(str, dataset.shape))}"
    said = f"{kind} parameters of {of} take about {_size(needed)} of memory"
    if free is None or needed <= free:
        return said
    instead = "; ".join([*_fitting(kind, dataset, low, free), "or take a machine with more"])
    raise UsageError(f"{said}, and {_size(free)} are free: {instead}")


def _fitting(kind: str, dataset: Dataset, low: int, free: int) -> list[str]:
    """What fits into the memory where a fit does not."""
    other = memory_of("spectral", dataset.count, dataset.shape, LOW)
    named = f"--low {LOW} takes" if kind == "spectral" else "spectral ones take"
    fewer = partial(memory_of, kind, shape=dataset.shape, low=low)
    most = bisect_right(range(dataset.count), free, key=fewer) - 1  # of 0, 1, ... images
    counted = f"--count {most} would fit"
    return [f"{named} {_size(other)}"] * (other <= free) + [counted] * (most > 1)


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
        """Which is, beyond chance and rounding, or `neither`."""
        _, low, high = self.change
        if max(self.gaussian, self.spectral) < ROUNDED * self.sigma:
            return "neither"
        return "spectral" if high < -SEEN else "gaussian" if low > SEEN else "neither"


class Trials(NamedTuple):
    """Both structures, fitted to `fitted` of `total` images, on `apart` others: a row a level."""

    total: int
    fitted: int
    apart: int
    rows: list[Trial]
    rank: Rank = None  # of the Gaussian


def trials(
    dataset: Dataset, low: int, sigma_data: float, rank: Rank = None, free: int | None = None
) -> Trials:
    """The Gaussian of a rank and the spectral one of a dataset, on images that were held out.

    These are random, but the same ones each time. Both are fitted to all others where a second fit
    takes at most a minute, else to a few of them. There is no trial of fewer than 40 images.

    Args:
        low: frequencies in the dense block.
        sigma_data: of all images; levels are multiples of it.
        free: bytes of memory, if that is known.
    """
    used = _used(dataset, low, free)
    apart = min(HELD_OUT, max(LEAST, used // 5))
    if used < 2 * LEAST or sigma_data == 0:
        return Trials(dataset.count, used, 0, [])
    order = torch.randperm(dataset.count, generator=torch.Generator().manual_seed(0))[:used]
    held, rest = (dataset.only(part.sort().values) for part in order.split([apart, used - apart]))
    clean = values_of(held.images(), torch.float64)
    (gaussian, _), (spectral, _) = fit_gaussian(rest, rank), fit_spectral(rest, low)
    rows = [_trial(gaussian, spectral, clean, level * sigma_data) for level in LEVELS]
    return Trials(dataset.count, used - apart, apart, rows, rank)


def _used(dataset: Dataset, low: int, free: int | None) -> int:
    """How many images are compared on: all, where both structures of them are afforded again."""
    dim, kinds = math.prod(dataset.shape), ("gaussian", "spectral")
    needed = sum(memory_of(kind, dataset.count, dataset.shape, low) for kind in kinds)
    inner, (most_products, most_bytes) = min(dataset.count, dim), AFFORDED
    products = dataset.count * dim * inner + 9 * inner**3
    if products <= most_products and needed <= min(most_bytes, math.inf if free is None else free):
        return dataset.count
    most, values = FEW
    return min(dataset.count, most, values // dim)


def _trial(gaussian: EigenGaussian, spectral: EigenGaussian, held: Tensor, sigma: float) -> Trial:
    a, b = (model.squared_error(held, sigma) / model.dim for model in (gaussian, spectral))
    ratio, n = b.mean() / a.mean(), len(a)
    error = (b - ratio * a).std() / (a.mean() * n**0.5)  # of a ratio of means, to first order
    change, half = 100 * float(ratio - 1), 100 * float(error * stdtrit(n - 1, 0.975))
    interval = (change, change - half, change + half)
    return Trial(sigma, float(a.mean().sqrt()), float(b.mean().sqrt()), interval)


def told(found: Trials) -> list[str]:
    """The trials in lines of text; what wins by few images is not said to win by all."""
    if not found.rows:
        return []
    lines = [
        f"held out: fitted to {found.fitted:,} of {found.total:,} images, root mean squared error "
        f"on {found.apart} others"
    ]
    for trial in found.rows:
        change, low, high = trial.change
        lines.append(
            f"  sigma {trial.sigma:.3g}: gaussian {trial.gaussian:.4f}, spectral "
            f"{trial.spectral:.4f} ({change:+.2f} % of its square, {low:+.2f} to {high:+.2f}): "
            f"{trial.better} is better"
        )
    return lines + _cautions(found)


def _cautions(found: Trials) -> list[str]:
    """A line of text where more images may change what is better."""
    won = {trial.better for trial in found.rows} - {"neither"}
    if found.fitted >= MOST * found.total or not won:
        return []
    if found.rank is not None:
        return ["  for so few: with more images either may be better"]
    gains = ["  for so few: with more images a full covariance gains, and may be better"]
    return gains if "spectral" in won else []
