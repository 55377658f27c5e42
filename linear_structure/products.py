"""Symmetric matrices of which the lower triangle is worked on: sums of A'A, and the other half."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linear_structure.rounding import bfloat16_units, factors_in_bfloat16

PANEL = 256  # rows at a time, each up to its diagonal block


def _panels(dim: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that cover the lower triangle of a (dim, dim) matrix."""
    starts = range(0, dim, PANEL)
    return ((slice(i, min(i + PANEL, dim)), slice(0, min(i + PANEL, dim))) for i in starts)


def add_products(sums: np.ndarray, factors: np.ndarray) -> None:
    """Add A'A of the factors A (n, D), float32, to the lower triangle of sums (D, D), float64.

    The factors are integers of at most 8 bits, which bfloat16 holds, and their products exact where
    no sum of squares of a column exceeds 2^24. The upper triangle is left undefined.
    """
    if not bfloat16_units():  # numpy's BLAS is the faster one
        _add(sums, factors)
        return
    with factors_in_bfloat16():
        _add(torch.from_numpy(sums), torch.from_numpy(factors))


def _add(sums: Any, factors: Any) -> None:
    """The same expression for arrays and tensors."""
    for rows, columns in _panels(len(sums)):
        sums[rows, columns] += factors[:, rows].T @ factors[:, columns]


def mirror(matrix: Tensor) -> None:
    """Copy the lower triangle of a matrix (D, D) to the upper one, in place."""
    for rows, _ in _panels(len(matrix)):
        corner = matrix[rows, rows].tril()
        matrix[rows, rows] = corner + corner.tril(-1).T
        left = slice(0, rows.start)
        matrix[left, rows] = matrix[rows, left].T
