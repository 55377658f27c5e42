"""Symmetric matrices of which the lower triangle is worked on: sums of A'A, and the other half.

BLAS has a routine for A'A (`syrk`). CPUs with units for bfloat16 are several times faster with
general products of such factors, so there the triangle is covered by panels.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.linalg import blas
from torch import Tensor

from linear_structure.rounding import bfloat16_units, factors_in_bfloat16

PANEL = 256  # columns at a time, each from its diagonal block down


def _panels(dim: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that cover the lower triangle of a (dim, dim) matrix."""
    return ((slice(i, dim), slice(i, min(i + PANEL, dim))) for i in range(0, dim, PANEL))


def add_products(sums: np.ndarray, factors: np.ndarray) -> None:
    """Add A'A of the factors A (n, D) to the lower triangle of sums (D, D), in place.

    Both are float32 in C order; the factors are integers of at most 8 bits, which bfloat16 holds.
    Exact while no partial sum exceeds 2^24. The upper triangle is left undefined.
    """
    if not bfloat16_units():
        # in BLAS's order of memory our lower triangle is the upper one
        blas.ssyrk(1, factors.T, beta=1, c=sums.T, lower=0, overwrite_c=1)
        return
    total, pixels = torch.from_numpy(sums), torch.from_numpy(factors)
    with factors_in_bfloat16():
        for rows, columns in _panels(len(total)):
            total[rows, columns].addmm_(pixels[:, rows].T, pixels[:, columns])


def mirror(matrix: Tensor) -> None:
    """Copy the lower triangle of a matrix (D, D) to the upper one, in place."""
    for _, columns in _panels(len(matrix)):
        corner = matrix[columns, columns].tril()
        matrix[columns, columns] = corner + corner.tril(-1).T
        below = slice(columns.stop, None)
        matrix[columns, below] = matrix[below, columns].T
