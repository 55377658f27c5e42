"""To what the factors of float32 matrix products are rounded, whatever the process was set to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def factors_in_bfloat16() -> Iterator[None]:
    """On CPUs that have units for it: 8 bits of mantissa, several times faster; sums in float32."""
    cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cpu.fp32_precision
    cpu.fp32_precision = "bf16"
    try:
        yield
    finally:
        cpu.fp32_precision = before


@contextmanager
def factors_in_float32() -> Iterator[None]:
    """No rounding, on CPUs and NVIDIA GPUs."""
    cpu, gpu = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = cpu.fp32_precision, gpu.fp32_precision
    cpu.fp32_precision = gpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        cpu.fp32_precision, gpu.fp32_precision = before
