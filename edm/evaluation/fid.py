"""The Frechet distance between two sets of images: W2 between the Gaussians of their features.

    d^2 = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr sqrt(S_a S_b)

(Heusel et al. 2017; no square root is taken of the whole). With S = U diag(lam) U', the last trace
is the nuclear norm of `diag(sqrt lam_a) U_a' U_b diag(sqrt lam_b)`: a sum of singular values,
exact to rounding at any rank, where a matrix square root of S_a S_b may come out complex and
`eigvals(S_a S_b)` loses half the digits. Directions that the project's rank rule drops carry the
rounding errors of a rank-deficient S, which would count by their square roots.

The distance falls with the number of images: two distances compare at equal n only.
"""

import math
import statistics as stdlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linear_structure.gaussian import Gaussian
from linear_structure.moments import Moments
from linear_structure.system.arrays import names_in, read_npz
from linear_structure.system.errors import UsageError, WorkError
from linear_structure.system.files import digest_of_parts, write_arrays

ROWS = 1024  # features that enter the moments at a time, however they arrive
LONGEST = 100  # characters of what else a file holds
SPURIOUS = 1e-3  # share of the trace that negative eigenvalues may have by rounding


@dataclass(frozen=True, eq=False)
class Statistics:
    """Gaussian of a set of features; float64. A file may not say count and features."""

    mu: Tensor  # (D,)
    sigma: Tensor  # (D, D), divided by n - 1
    count: int | None = None  # number of images n
    features: str | None = None  # digest of the feature network

    @property
    def dim(self) -> int:
        """Length D of a feature vector."""
        return len(self.mu)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the values of mu and sigma, whatever file they came from."""
        return digest_of_parts([self.mu, self.sigma])

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean, eigenvectors and eigenvalues, found once; UsageError if some are negative."""
        gaussian = Gaussian.from_covariance(self.mu, self.sigma)
        positive, trace = float(gaussian.eigenvalues.sum()), float(self.sigma.trace())
        if abs(positive - trace) > SPURIOUS * positive:
            raise UsageError(
                f"sigma is not a covariance: its positive eigenvalues sum to {positive:g}, all to "
                f"{trace:g}; expected no negative ones"
            )
        return gaussian

    def refuse_other(self, dim: int, features: str | None) -> None:
        """UsageError for features of another length, or of another network where both are known."""
        if self.dim != dim:
            raise UsageError(
                f"features of {self.dim} and {dim} dimensions: expected those of the "
                "reference and of the images to be of one network; make the reference again, with "
                "that of the images"
            )
        if self.features and features and self.features != features:
            raise UsageError(
                f"features of two networks, {self.features[:12]} and {features[:12]}, or of images "
                "brought to another size: expected those of the reference and of the images to be "
                "of one; make the reference again, with that of the images, and of their size"
            )


def measure(blocks: Iterable[Tensor], features: str | None = None) -> Statistics:
    """Statistics of features that come in blocks (b, D), as a stream.

    The same rows in the same order give the same bits, however they are cut into blocks.

    Args:
        blocks: at least two rows in all.
        features: digest of the network they come from.

    Raises:
        UsageError: there are fewer than two rows.
        WorkError: a feature is NaN or infinite.
    """
    moments: Moments | None = None
    for part in map(Moments.of, regrouped(blocks, ROWS)):
        moments = part if moments is None else moments.merge(part)
    if moments is None or moments.count < 2:
        raise UsageError("a covariance needs at least two images")
    if not bool(torch.isfinite(moments.scatter).all()):
        raise WorkError("a feature is NaN or infinite: the weights of the network are damaged")
    return Statistics(moments.mean, moments.covariance, moments.count, features)


def regrouped(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in the same order, `size` at a time (the last block may be smaller)."""
    rest: Tensor | None = None
    for block in blocks:
        rest = block if rest is None else torch.cat([rest, block])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def frechet(a: Statistics, b: Statistics) -> float:
    """Squared Frechet distance, >= 0: what FID is on Inception's features.

    What a covariance costs (about one second at D = 2048) is spent once for each `Statistics`.

    Raises:
        UsageError: they belong to different feature networks, or one is not a covariance.
    """
    a.refuse_other(b.dim, b.features)
    p, q = a.gaussian, b.gaussian
    overlap = torch.linalg.svdvals(cross(p, q)).sum()
    spread = p.eigenvalues.sum() + q.eigenvalues.sum() - 2 * overlap
    # Not negative in exact arithmetic, by the inequality of the means: what is below 0 is rounding.
    return max(float((a.mu - b.mu).square().sum() + spread), 0.0)


def cross(p: Gaussian, q: Gaussian) -> Tensor:
    """A'B (r, r'), of covariances A A' and B B'."""
    return (p.basis * p.eigenvalues.sqrt()).T @ (q.basis * q.eigenvalues.sqrt())


def read(path: str | Path) -> Statistics:
    """Statistics in an `.npz` file with `mu` (D,) and `sigma` (D, D), published or of ours.

    Raises:
        UsageError: the file is missing, unreadable, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if not {"mu", "sigma"} <= (names := names_in(path)):
        told = " ".join(", ".join(sorted(names)).split())[:LONGEST] or "nothing"
        raise UsageError(f"{path} holds {told}: expected mu and sigma, as fid.py ref makes them")
    values = read_npz(path, "mu", "sigma", "count", "features")
    mu, sigma = values["mu"], values["sigma"]
    count, features = values.get("count", np.array(0)), values.get("features", np.array(""))
    if fault := _fault(mu, sigma, count, features):
        raise UsageError(f"{path} holds no mean and covariance: {fault}")
    return Statistics(
        torch.tensor(mu.astype(np.float64)),
        torch.tensor(sigma.astype(np.float64)),
        int(count) or None,
        str(features) or None,
    )


def _fault(
    mu: np.ndarray, sigma: np.ndarray, count: np.ndarray, features: np.ndarray
) -> str | None:
    """Why these arrays are no statistics, None if they may be."""
    if mu.ndim != 1 or not mu.size or sigma.shape != (*mu.shape, *mu.shape):
        return f"mu has shape {mu.shape} and sigma {sigma.shape}, expected (D,) and (D, D)"
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        return f"mu is of type {mu.dtype} and sigma of {sigma.dtype}, expected floats"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "a value is NaN or infinite"
    if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max():
        return "sigma is not symmetric"
    if count.shape or count.dtype.kind not in "iu" or count < 0:
        return f"count has shape {count.shape} and type {count.dtype}, expected a whole number"
    if features.shape or features.dtype.kind != "U":
        return f"features has shape {features.shape} and type {features.dtype}, expected a text"
    return None


def write(path: str | Path, statistics: Statistics) -> None:
    """Write `mu` and `sigma` as published references have them, `count` and `features` beside."""
    moments = {"mu": statistics.mu.numpy(), "sigma": statistics.sigma.numpy()}
    count, features = np.array(statistics.count or 0), np.array(statistics.features or "")
    write_arrays(Path(path), {**moments, "count": count, "features": features})


def singular(count: int, dim: int) -> str:
    """What to know of a distance of no more images than features."""
    return f"{count} images give a singular covariance of {dim} features: compare at equal n only."


def refuse_unequal(counts: Sequence[int]) -> None:
    """UsageError if distances at these n would be put side by side although some differ."""
    if len(set(counts)) > 1:
        raise UsageError(
            f"distances at n = {', '.join(map(str, counts))} do not compare: "
            "expected the same number of images in each"
        )


@dataclass(frozen=True)
class Repeated:
    """One distance on several seed ranges of equally many images."""

    distances: Sequence[float]

    @property
    def mean(self) -> float:
        return stdlib.mean(self.distances)

    @property
    def spread(self) -> float:
        """Their standard deviation (n - 1), NaN for a single one."""
        return stdlib.stdev(self.distances) if len(self.distances) > 1 else math.nan

    @property
    def minimum(self) -> float:
        """The smallest: of three ranges, the published convention (Karras et al. 2022)."""
        return min(self.distances)
