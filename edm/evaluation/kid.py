"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(x, y) = (x'y / D + 1)^3

The estimate is unbiased at any number of images, so it may be slightly negative where the sets
agree (Binkowski et al. 2018). As published it is the average over random subsets. All features are
in memory.
"""

from typing import NamedTuple

import numpy as np

from linear_structure.system.errors import UsageError


class Kid(NamedTuple):
    """Mean over the subsets and its standard deviation from subset to subset."""

    mean: float
    deviation: float


def kid(
    images: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Kid:
    """KID of features (n, D) against reference features (m, D).

    Each of the `subsets` compares `size` images with as many of the reference, drawn without
    replacement; UsageError if a set is smaller.
    """
    refuse_few(min(len(images), len(reference)), size)
    generator = np.random.default_rng(seed)

    def drawn(features: np.ndarray) -> np.ndarray:
        return features[generator.choice(len(features), size, replace=False)].astype(np.float64)

    values = [mmd_squared(drawn(images), drawn(reference)) for _ in range(subsets)]
    return Kid(float(np.mean(values)), float(np.std(values)))


def refuse_few(count: int, size: int) -> None:
    """UsageError if a set of `count` images has no subset of `size`, or that has no pairs."""
    if not 2 <= size <= count:
        raise UsageError(
            f"KID on subsets of {size} images, but a set has only {count}: "
            f"expected subsets of 2 to {count}"
        )


def mmd_squared(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of MMD^2 under the cubic kernel, of x (n, D) and y (m, D); n, m >= 2."""
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * float(_cubic(x, y).mean())


def without_each(images: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """`mmd_squared` of all rows, n > 2 of them, and of all but each of the images: (n,) float64.

    What it varies by over other draws of images, the jackknife tells from the second.
    """
    x, y = images.astype(np.float64), reference.astype(np.float64)
    n, kernel = len(x), _cubic(x, x)
    pairs, own = kernel.sum(1) - kernel.diagonal(), _cubic(x, y).mean(1)
    among = _mean_of_pairs(y)
    rest = (pairs.sum() - 2 * pairs) / ((n - 1) * (n - 2)) - 2 * (own.sum() - own) / (n - 1)
    return float(pairs.sum() / (n * (n - 1)) - 2 * own.mean()) + among, rest + among


def _mean_of_pairs(x: np.ndarray) -> float:
    kernel = _cubic(x, x)
    return float(kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from sklearn.metrics.pairwise import polynomial_kernel  # takes over a second

    return polynomial_kernel(x, y)
