"""What the benchmarks have in common: options, work taken in turns, limits, and their report."""

import json
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from linear_structure.system.files import write_json
from linear_structure.system.options import named_path

DEVICES = ("cpu", "cuda")
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices that measure the peak rate

Work = Callable[[], object]


def parse(
    parser: ArgumentParser, repeats: int, devices: tuple[str, ...] = DEVICES, **quick: object
) -> Namespace:
    """The options of a benchmark and those of all; with --quick, others have these defaults."""
    found = "cuda" if torch.cuda.is_available() and "cuda" in devices else "cpu"
    parser.add_argument("--device", choices=devices, default=found, help="default: a GPU, if any")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--product", type=int, help="side of the matrices whose product is a limit")
    parser.add_argument(
        "--json", type=named_path, metavar="FILE", help="add the numbers to this file"
    )
    told = "tiny sizes, for a rehearsal: the numbers mean nothing"
    parser.add_argument("--quick", action="store_true", help=told)
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(repeats=1, product=128, **quick)
        args = parser.parse_args()
    args.product = args.product or PRODUCT[args.device]
    return args


@dataclass(frozen=True)
class Report:
    """Rows of numbers, each printed and, where there is a file, kept in it at once.

    The file, `{benchmark: {row: {quantity: number}}}`, may hold other benchmarks, too.
    """

    benchmark: str
    path: Path | None

    def row(self, name: str, **values: float | str) -> None:
        """Add one row, or replace that of an earlier run."""
        told = (f"{key} {v if isinstance(v, str) else f'{v:.4g}'}" for key, v in values.items())
        print(f"{self.benchmark:9} {name:32} {'   '.join(told)}", flush=True)
        if self.path:
            known = json.loads(self.path.read_text()) if self.path.exists() else {}
            known.setdefault(self.benchmark, {})[name] = values
            write_json(self.path, known)

    def rates(
        self,
        name: str,
        seconds: Mapping[str, list[float]],
        images: int,
        flop: float,
        limit: float,
        beside: str | None = None,
    ) -> None:
        """A row for each work on some images, of `flop` operations in all.

        Args:
            limit: FLOP/s.
            beside: the work that the others are so many times as fast as.
        """
        for work, taken in seconds.items():
            median = statistics.median(taken)
            told = {"images_per_second": images / median, "gflops": flop / median / 1e9}
            told["of_peak"] = flop / median / limit
            if beside is not None:
                pairs = zip(seconds[beside], taken, strict=True)
                told[f"times_{beside}"] = statistics.median(other / own for other, own in pairs)
            self.row(f"{name}, {work}", **told)


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


def peak(args: Namespace, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the fastest of a few large matrix products on the device."""
    n = args.product
    a, b = (torch.randn(n, n, device=args.device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(alternate({"": lambda: a @ b}, 10)[""])


def bandwidth(args: Namespace) -> float:
    """Bytes/s, read and written, of the fastest of a few large copies on the device."""
    values = torch.randn(8, args.product, args.product, device=args.device)
    copy = torch.empty_like(values)
    return 2 * values.nbytes / min(alternate({"": lambda: copy.copy_(values)}, 10)[""])
