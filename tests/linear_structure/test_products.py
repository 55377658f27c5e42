"""Lower triangles: sums of products exact by either way of multiplying, and mirrored."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from linear_structure import products
from linear_structure.products import ROWS, add_products, integer_units, mirror

GENERATOR = np.random.default_rng(0)


@pytest.fixture
def floats(monkeypatch):
    monkeypatch.setattr(products, "integer_units", lambda: False)


@pytest.fixture(params=["floats", "integers"])
def either_way(request):
    """The second where the CPU has units for it."""
    if request.param == "floats":
        request.getfixturevalue("floats")
    elif not integer_units():
        pytest.skip("no units for products of 8-bit integers")


def random(count: int, dim: int) -> np.ndarray:
    return GENERATOR.integers(-128, 128, (count, dim), dtype=np.int8)


def extreme(count: int, dim: int) -> np.ndarray:
    return GENERATOR.choice(np.array([-128, 127], np.int8), (count, dim))


def check_sums(*blocks: np.ndarray) -> None:
    sums = np.zeros((blocks[0].shape[1],) * 2)
    for block in blocks:
        add_products(sums, block)
    exact = sum(block.T @ block for block in (block.astype(float) for block in blocks))
    np.testing.assert_array_equal(np.tril(sums), np.tril(exact))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("draw", [random, extreme])
@pytest.mark.parametrize("dim", [1, 2, 255, 256, 257, 600])
def test_products_are_added_exactly(draw, dim):
    check_sums(draw(256, dim), draw(1, dim), draw(77, dim))


@pytest.mark.usefixtures("either_way")
def test_products_of_many_rows_are_exact():
    """Their squares add up to more than float32 holds exactly."""
    check_sums(extreme(2 * ROWS + 1, 257))


@pytest.mark.usefixtures("either_way")
def test_columns_of_one_value_are_exact():
    """The largest sums that there are, of both signs."""
    check_sums(np.tile(np.array([-128, 127], np.int8), (8000, 128)))


@pytest.mark.usefixtures("floats")
def test_no_more_squares_are_summed_than_float32_holds():
    """Of 1,025 rows here: 2^24, and 1 that would be lost beside it."""
    check_sums(np.array([[-128]] * 1024 + [[1]], np.int8))


def test_integers_of_7_bits_are_summed_exactly_by_any_cpu():
    """Their products do not saturate."""
    factors = GENERATOR.integers(-64, 64, (300, 600), dtype=np.int8)
    sums = np.zeros((600, 600))
    products._add_integers(torch.from_numpy(sums), torch.from_numpy(factors))
    exact = factors.T.astype(float) @ factors.astype(float)
    np.testing.assert_array_equal(np.tril(sums), np.tril(exact))


def test_a_cpu_that_saturates_is_not_given_integers():
    """OneDNN held to AVX2 has no units, whatever the CPU has."""
    code = "from linear_structure.products import integer_units; print(integer_units())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize("dim", [1, 256, 600])
def test_the_lower_triangle_is_mirrored(dim):
    matrix = torch.from_numpy(GENERATOR.standard_normal((dim, dim)))
    expected = matrix.tril() + matrix.tril(-1).T
    mirror(matrix)
    assert torch.equal(matrix, expected)
