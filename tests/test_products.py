"""Lower triangles: sums of products exact by either way of multiplying, and mirrored."""

import numpy as np
import pytest
import torch

from linear_structure import products
from linear_structure.products import add_products, mirror

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("dim", [1, 255, 600])
def test_products_are_added_exactly(monkeypatch, units, dim):
    """On any CPU both ways are taken, though only one is fast there."""
    monkeypatch.setattr(products, "bfloat16_units", lambda: units)
    blocks = [GENERATOR.integers(-128, 128, (count, dim)) for count in (256, 1, 77)]
    sums = np.zeros((dim, dim))
    for block in blocks:
        add_products(sums, block.astype(np.float32))
    exact = sum(block.T @ block for block in blocks)
    np.testing.assert_array_equal(np.tril(sums), np.tril(exact))


def test_the_precision_of_the_process_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(products, "bfloat16_units", lambda: True)
    before = torch.backends.mkldnn.matmul.fp32_precision
    add_products(np.zeros((2, 2)), np.ones((3, 2), np.float32))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("dim", [1, 256, 600])
def test_the_lower_triangle_is_mirrored(dim):
    matrix = torch.from_numpy(GENERATOR.standard_normal((dim, dim)))
    expected = matrix.tril() + matrix.tril(-1).T
    mirror(matrix)
    assert torch.equal(matrix, expected)
