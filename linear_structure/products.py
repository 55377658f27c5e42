"""Symmetric matrices of which the lower triangle is worked on: exact sums of A'A, the other half.

Products of 8-bit integers are summed in int32 on a CPU that has units for it (VNNI, AMX). On others
they are summed in float32, for as many rows as stay exact there: no partial sum exceeds the largest
sum of squares (Cauchy and Schwarz), which may not pass 2^24.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

PANEL = 256  # rows at a time, each up to its diagonal block
ROWS = 2000  # summed in float32 at a time; of photographs, so many have exact products
EXACT = 2.0**24  # below it float32 holds every integer
MOST_THREADS = 4  # that sum in float32; blocks of fewer rows would cost more additions
UNITS = ("avx512_vnni", "avx_vnni", "amx_int8")


def _panels(dim: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks that cover the lower triangle of a (dim, dim) matrix."""
    starts = range(0, dim, PANEL)
    return ((slice(i, min(i + PANEL, dim)), slice(0, min(i + PANEL, dim))) for i in starts)


@cache
def integer_units() -> bool:
    """Whether torch multiplies 8-bit integers fast and exactly here.

    Without the units, or kept from them by oneDNN's settings, it lets sums of two products saturate
    at 16 bits.
    """
    if not any(torch.cpu.get_capabilities().get(unit) for unit in UNITS):
        return False
    extreme = torch.tensor([[-128, 127]], dtype=torch.int8).repeat(4, 1)
    expected = extreme.T.int() @ extreme.int()
    return torch.equal(torch._int_mm(extreme.T, extreme), expected)


def add_products(sums: np.ndarray, factors: np.ndarray) -> None:
    """Add A'A of the factors A (n, D), int8, to the lower triangle of sums (D, D), float64.

    Exact for n < 2^17. The upper triangle is left undefined.
    """
    if len(sums) >= PANEL and integer_units():  # torch 2.14's product is wrong for a single column
        _add_integers(torch.from_numpy(sums), torch.from_numpy(factors))
    else:
        _add_floats(sums, factors)


def _add_integers(sums: Tensor, factors: Tensor) -> None:
    for rows, columns in _panels(len(sums)):
        sums[rows, columns] += torch._int_mm(factors[:, rows].T, factors[:, columns])


def _add_floats(sums: np.ndarray, factors: np.ndarray) -> None:
    """In threads with one of BLAS's each, as numpy's other threads are idle between products."""
    threads, adding = min(torch.get_num_threads(), MOST_THREADS), Lock()
    blocks = np.array_split(factors, max(threads, math.ceil(len(factors) / ROWS)))
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda block: _add_block(sums, block, adding), blocks))


def _add_block(sums: np.ndarray, factors: np.ndarray, adding: Lock) -> None:
    floats = factors.astype(np.float32)
    if np.einsum("ij,ij->j", floats, floats).max(initial=0) >= EXACT:
        for half in np.array_split(factors, 2):
            _add_block(sums, half, adding)
        return
    for rows, columns in _panels(len(sums)):
        product = floats[:, rows].T @ floats[:, columns]
        with adding:
            sums[rows, columns] += product


def mirror(matrix: Tensor) -> None:
    """Copy the lower triangle of a matrix (D, D) to the upper one, in place."""
    for rows, _ in _panels(len(matrix)):
        corner = matrix[rows, rows].tril()
        matrix[rows, rows] = corner + corner.tril(-1).T
        left = slice(0, rows.start)
        matrix[left, rows] = matrix[rows, left].T
