"""Symmetric matrices of which the lower triangle is worked on: exact sums of A'A, the other half.

Products of 8-bit integers are summed in int32 on a CPU that has units for it (VNNI, AMX). On others
they are summed in float32, for as many rows as stay exact there: no partial sum exceeds the largest
sum of squares (Cauchy and Schwarz), which may not pass 2^24.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

PANEL = 256  # rows at a time, each up to its diagonal block
ROWS = 2000  # summed in float32 at a time; of photographs, so many have exact products
EXACT = 2.0**24  # below it float32 holds every integer
UNITS = ("avx512_vnni", "avx_vnni", "amx_int8")


def _panels(dim: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that cover the lower triangle of a (dim, dim) matrix."""
    for start in range(0, dim, PANEL):
        stop = min(start + PANEL, dim)
        yield slice(start, stop), slice(0, stop)


@cache
def integer_units() -> bool:
    """Whether torch multiplies 8-bit integers fast and exactly here.

    Without the units, or kept from them by oneDNN's settings, it lets sums of two products saturate
    at 16 bits.
    """
    if not any(torch.cpu.get_capabilities().get(unit) for unit in UNITS):
        return False
    extreme = torch.tensor([[-128, 127]], dtype=torch.int8, device="cpu").repeat(4, 1)
    expected = extreme.T.int() @ extreme.int()
    return torch.equal(torch._int_mm(extreme.T, extreme), expected)


def add_products(sums: np.ndarray, factors: np.ndarray) -> None:
    """Add A'A of the factors A (n, D), int8, to the lower triangle of sums (D, D), float64.

    Exact for n < 2^17. The upper triangle is left undefined.
    """
    if len(sums) > 1 and integer_units():  # torch 2.14 is wrong for a single column
        _add_integers(torch.from_numpy(sums), torch.from_numpy(factors))
        return
    for start in range(0, len(factors), ROWS):
        _add_floats(sums, factors[start : start + ROWS])


def _add_integers(sums: Tensor, factors: Tensor) -> None:
    for rows, columns in _panels(len(sums)):
        sums[rows, columns] += torch._int_mm(factors[:, rows].T, factors[:, columns])


def _add_floats(sums: np.ndarray, factors: np.ndarray) -> None:
    """By numpy's BLAS; the rows in halves, and so on, while their squares add up to too much."""
    floats = factors.astype(np.float32)
    if np.einsum("ij,ij->j", floats, floats).max() >= EXACT:
        for half in np.array_split(factors, 2):
            _add_floats(sums, half)
        return
    for rows, columns in _panels(len(sums)):
        sums[rows, columns] += floats[:, rows].T @ floats[:, columns]


def mirror(matrix: Tensor) -> None:
    """Copy the lower triangle of a matrix (D, D) to the upper one, in place."""
    for rows, _ in _panels(len(matrix)):
        corner = matrix[rows, rows].tril()
        matrix[rows, rows] = corner + corner.tril(-1).T
        left = slice(0, rows.start)
        matrix[left, rows] = matrix[rows, left].T
