"""Improved precision and recall: how much of one set of features lies where the other set lies.

A set covers the balls around its points that reach to their k-th nearest neighbour in the set.
Precision is the share of generated images that the reference covers; recall is the share of the
reference that the generated images cover (Kynkaanniemi et al. 2019). All features are in memory;
distances are made in pieces.
"""

from typing import NamedTuple

import numpy as np

from linear_structure.system.errors import UsageError


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
    from sklearn.metrics import pairwise_distances_chunked  # takes over a second
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(centres)
    radii = search.kneighbors()[0][:, -1]
    inside = pairwise_distances_chunked(
        points, centres, reduce_func=lambda distances, _: (distances <= radii).any(axis=1)
    )
    return float(np.concatenate(list(inside)).mean())
