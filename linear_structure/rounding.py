"""To what the factors of float32 matrix products are rounded, whatever the process was set to.

Torch keeps this setting for the whole process: while a block below runs, products of other threads
are rounded alike, and a second block waits for the first.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_ALONE = threading.RLock()  # or two blocks that overlap would leave the setting of the other behind


@contextmanager
def _factors(precision: str, *backends: Any) -> Iterator[None]:
    with _ALONE:
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = precision
        try:
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value


def bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def set_tf32(allowed: bool) -> None:
    """Let NVIDIA GPUs round the factors of float32 products and convolutions to 10 bits, or not.

    Torch's default is to do so in convolutions.
    """
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


@contextmanager
def factors_in_bfloat16() -> Iterator[None]:
    """On CPUs that have units for it: 8 bits of mantissa, several times faster; sums in float32."""
    with _factors("bf16", torch.backends.mkldnn.matmul):  # type: ignore[attr-defined]
        yield


@contextmanager
def factors_in_float32() -> Iterator[None]:
    """No rounding, on CPUs and NVIDIA GPUs."""
    cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _factors("ieee", cpu, torch.backends.cuda.matmul):
        yield
