"""What the benchmarks measure alike: work taken in turns, and the rate of a matrix product."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices that measure the peak rate

Work = Callable[[], object]


def timed(work: Work) -> float:
    """Seconds of one call, to the end of what it began on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    works: Mapping[str, Work], repeats: int, uncounted: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work, taken in turns so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(uncounted + repeats):
        for name, work in works.items():
            taken = timed(work)
            if repeat >= uncounted:
                seconds[name].append(taken)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each work's seconds."""
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def peak(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """FLOP/s of the fastest of a few large matrix products."""
    n = PRODUCT[device]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(alternate({"": lambda: a @ b}, 10)[""])


def print_rates(
    seconds: Mapping[str, list[float]], batch: int, flop: float, limit: float, beside: str
) -> None:
    """A row for each work on `batch` images of `flop` operations in all, and its ratio to one."""
    print(f"{'':10}{'images/s':>10}{'GFLOP/s':>10}{'of peak':>9}{beside + '/this':>12}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        ratio = statistics.median(p / t for p, t in zip(seconds[beside], taken, strict=True))
        rates = f"{batch / median:10.1f}{flop / median / 1e9:10.0f}{flop / median / limit:9.0%}"
        print(f"{name:10}{rates}{ratio:12.2f}")
