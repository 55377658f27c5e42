"""To what the factors of float32 matrix products are rounded, whatever the process was set to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ALONE = threading.RLock()  # or two blocks that overlap would leave the setting of the other behind


def set_tf32(allowed: bool) -> None:
    """Let NVIDIA GPUs round the factors of float32 products and convolutions to 10 bits, or not.

    Torch's default is to do so in convolutions.
    """
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


@contextmanager
def factors_in_float32() -> Iterator[None]:
    """No rounding, on CPUs and NVIDIA GPUs.

    Torch keeps this setting for the whole process: while the block runs, products of other threads
    are not rounded either, and a second block waits for the first.
    """
    cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = cpu, torch.backends.cuda.matmul
    with _ALONE:
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
