"""Rounding of factors: set for a block, restored after it, whoever else sets it meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from linear_structure.system.precision import factors_in_float32

CPU, GPU = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul


def precisions() -> tuple[str, str]:
    return CPU.fp32_precision, GPU.fp32_precision


@pytest.fixture(autouse=True)
def process_that_rounds():
    before = precisions()
    CPU.fp32_precision, GPU.fp32_precision = "bf16", "tf32"
    yield
    CPU.fp32_precision, GPU.fp32_precision = before


def test_a_block_sets_and_restores():
    with factors_in_float32():
        with factors_in_float32():
            assert precisions() == ("ieee", "ieee")
        assert precisions() == ("ieee", "ieee")
    assert precisions() == ("bf16", "tf32")
    with pytest.raises(KeyError), factors_in_float32():
        raise KeyError
    assert precisions() == ("bf16", "tf32")


def test_blocks_of_two_threads_do_not_overlap():
    def work(_: int) -> set[tuple[str, str]]:
        with factors_in_float32():
            return {precisions() for _ in range(2000)}

    with ThreadPoolExecutor(4) as pool:
        assert set.union(*pool.map(work, range(40))) == {("ieee", "ieee")}
    assert precisions() == ("bf16", "tf32")
