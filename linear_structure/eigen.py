"""Eigendecomposition of a symmetric matrix: LAPACK's, with a faster last step.

LAPACK reduces A to a tridiagonal matrix by Householder reflections, `A = Q T Q'`, finds
`T = Z diag(lam) Z'` by divide and conquer, and returns QZ. Its product QZ applies 32 reflections at
a time, and so reads Z from memory D / 32 times; here it is 256, in the compact form of Schreiber
and Van Loan (1989), with the triangle S of Puglisi (1992):

    H_1 ... H_k = I - V S^-1 V',    S + S' = V'V,    S upper triangular with diagonal 1 / tau
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

REFLECTIONS = 256  # applied at once


def _blocks(reflections: Tensor, tau: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First coordinate, V' and `S^-T V'` of the blocks of reflections, last first.

    Reflection i is `I - tau_i v v'`, v = (0, ..., 0, 1, reflections[i, i + 2:]), its 1 at i + 1.
    Where tau_i is zero, v counts as zero.
    """
    for start in reversed(range(0, len(tau), REFLECTIONS)):
        scales = tau[start : start + REFLECTIONS]
        vectors = reflections[start : start + len(scales), start + 1 :].triu(1)
        vectors.diagonal().fill_(1)
        vectors[scales == 0] = 0
        triangle = (vectors @ vectors.T).tril(-1)
        triangle.diagonal().copy_(torch.where(scales == 0, 1, 1 / scales))
        yield start + 1, vectors, torch.linalg.solve_triangular(triangle, vectors, upper=False)


def _reflected(rows: Tensor, reflections: Tensor, tau: Tensor) -> Tensor:
    """Q r for each of the rows r (n, D), in place."""
    for first, vectors, scaled in _blocks(reflections, tau):
        moved = rows[:, first:]
        moved.addmm_(moved @ vectors.T, scaled, alpha=-1)
    return rows


def eigh_destroying(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), descending, and eigenvectors, the columns of (D, D), in float64.

    The matrix (D, D), symmetric, finite, float64 and on the CPU, is overwritten.

    Raises:
        numpy.linalg.LinAlgError: divide and conquer did not converge.
    """
    if len(matrix) < 2:
        return matrix.flatten(), torch.ones_like(matrix)
    negative = matrix.neg_().numpy().T  # whose eigenvalues ascend where the matrix's descend
    work = int(lapack.dsytrd_lwork(len(negative), lower=1)[0])
    reduced, diagonal, beside, tau, _ = lapack.dsytrd(negative, lower=1, lwork=work, overwrite_a=1)
    eigenvalues, vectors, failed = lapack.dstevd(diagonal, beside, compute_v=1)
    if failed:
        raise np.linalg.LinAlgError("the eigenvalues of the tridiagonal matrix did not converge")
    reflections = torch.from_numpy(reduced.T)
    rows = _reflected(torch.from_numpy(vectors.T), reflections, torch.from_numpy(tau))
    return -torch.from_numpy(eigenvalues), rows.T
