"""Rounding of factors: set for a block, restored after it, whoever else sets it meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from linear_structure.rounding import factors_in_bfloat16, factors_in_float32

CPU, GPU = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul


def test_a_block_sets_and_restores():
    before = CPU.fp32_precision, GPU.fp32_precision
    with factors_in_bfloat16():
        assert CPU.fp32_precision == "bf16"
        with factors_in_float32():
            assert (CPU.fp32_precision, GPU.fp32_precision) == ("ieee", "ieee")
        assert CPU.fp32_precision == "bf16"
    with pytest.raises(KeyError), factors_in_float32():
        raise KeyError
    assert (CPU.fp32_precision, GPU.fp32_precision) == before


def test_blocks_of_two_threads_do_not_overlap():
    before = CPU.fp32_precision

    def work(number: int) -> str:
        block, wanted = ((factors_in_bfloat16, "bf16"), (factors_in_float32, "ieee"))[number % 2]
        with block():
            seen = {CPU.fp32_precision for _ in range(2000)}
        return wanted if seen == {wanted} else str(seen)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(40))) == {"bf16", "ieee"}
    assert CPU.fp32_precision == before
