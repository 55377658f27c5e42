"""The eigendecomposition: its defining equations, against numpy, on easy and awkward matrices."""

import numpy as np
import pytest
import torch
from torch import Tensor

from linear_structure.gaussian import eigh_destroying

DIMS = [1, 2, 3, 40, 257, 258, 562]


def spread(dim: int) -> Tensor:
    factor = torch.randn(dim, dim, dtype=torch.float64)
    return factor * torch.logspace(0, -4, dim, dtype=torch.float64) @ factor.T


def low_rank(dim: int) -> Tensor:
    factor = torch.randn(dim, min(dim, 2), dtype=torch.float64)
    return factor @ factor.T


def in_pairs(dim: int) -> Tensor:
    """Tridiagonal already in part: some reflections are the identity."""
    pair = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    return torch.block_diag(*[pair] * dim)[:dim, :dim]


def indefinite(dim: int) -> Tensor:
    factor = torch.randn(dim, dim, dtype=torch.float64)
    return factor + factor.T


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("make", [spread, low_rank, in_pairs, indefinite])
def test_eigenvectors_diagonalise_and_are_orthonormal(make, dim):
    torch.manual_seed(dim)
    matrix = make(dim)
    eigenvalues, vectors = eigh_destroying(matrix.clone())
    scale = matrix.norm()
    assert (matrix @ vectors - vectors * eigenvalues).norm() < 1e-13 * scale
    assert (vectors.T @ vectors - torch.eye(dim)).norm() < 1e-13 * dim
    assert np.allclose(eigenvalues.flip(0), np.linalg.eigvalsh(matrix), atol=1e-14 * dim * scale)


def test_eigenvalues_descend():
    torch.manual_seed(0)
    eigenvalues, _ = eigh_destroying(indefinite(60))
    assert (eigenvalues.diff() < 0).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_eigenvalues(value):
    matrix = value * torch.eye(9, dtype=torch.float64)
    eigenvalues, vectors = eigh_destroying(matrix.clone())
    assert eigenvalues.equal(matrix.diagonal())
    assert (vectors.T @ vectors).allclose(torch.eye(9, dtype=torch.float64))
