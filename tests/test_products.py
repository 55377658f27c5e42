"""Lower triangles: sums of products exact by either way of multiplying, and mirrored."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

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
@pytest.mark.parametrize("threads", [1, 3, 64])
def test_any_number_of_threads_sums_exactly(monkeypatch, threads):
    """More of them than rows, too."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    check_sums(random(2, 300), random(2 * ROWS + 1, 300))


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.usefixtures("floats")
def test_threads_share_the_processors_with_blas(monkeypatch):
    before, seen = blas_threads(), []
    monkeypatch.setattr(products, "_add_block", lambda *_: seen.append(blas_threads()))
    add_products(np.zeros((2, 2)), random(2 * ROWS, 2))
    assert {1} in seen
    assert all(threads == {1} for threads in seen)
    assert blas_threads() == before


@pytest.mark.usefixtures("floats")
def test_what_a_thread_raises_is_raised():
    with pytest.raises(IndexError):
        add_products(np.zeros(3), random(4, 3))


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
