"""Improved precision and recall: how much of one set of features lies where the other set lies.

A set covers the balls around its points that reach to their k-th nearest neighbour in the set, and
the edge of a ball belongs to it: where images repeat, it is a point. Precision is the share of
generated images that the reference covers; recall is the share of the reference that the generated
images cover (Kynkaanniemi et al. 2019). All features are in memory; distances are made in pieces.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from linear_structure.system.errors import UsageError

ROWS = 256  # points at a time, whose distances to all centres are in memory
ROUNDING = 1e-12  # of |x|^2 + |c|^2: what |x - c|^2 is known to, and two equal rows differ by


class Coverage(NamedTuple):
    """Two shares, 0 to 1."""

    precision: float
    recall: float


def precision_recall(images: np.ndarray, reference: np.ndarray, neighbours: int = 3) -> Coverage:
    """Of features (n, D) against reference features (m, D); UsageError if a set has too few."""
    refuse_few(min(len(images), len(reference)), neighbours)
    precision = covered(images, reference, neighbours)
    return Coverage(precision, covered(reference, images, neighbours))


def refuse_few(count: int, neighbours: int) -> None:
    """UsageError if an image in a set of `count` cannot have so many neighbours."""
    if count <= neighbours:
        raise UsageError(f"precision and recall need more than {neighbours} images, found {count}")


def covered(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
    """Share of points (n, D) inside a ball that reaches from a centre to its k-th neighbour."""
    own = _squares(centres, centres)  # in which every centre is its own nearest
    reach = np.concatenate([np.partition(d, neighbours)[:, neighbours] for d, _ in own])
    inside = [(d <= reach + slack).any(axis=1) for d, slack in _squares(points, centres)]
    return float(np.concatenate(inside).mean())


def _squares(points: np.ndarray, centres: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """|x - c|^2 of some points and all centres (b, m), float64, and how far off these may be."""
    centres = centres.astype(np.float64)
    sizes = np.square(centres).sum(1)
    for first in range(0, len(points), ROWS):
        x = points[first : first + ROWS].astype(np.float64)
        both = np.square(x).sum(1)[:, None] + sizes
        yield both - 2 * x @ centres.T, ROUNDING * both
