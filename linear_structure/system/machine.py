"""The machine: device, threads, precision; and ranks, as `torchrun` tells them.

One process is the simplest case. Processes share work by index and meet through files; a process
group is needed only where none may leave before the others (`gathered`).
"""

import math
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from linear_structure.system.errors import UsageError, WorkError, abrupt
from linear_structure.system.options import word
from linear_structure.system.precision import set_tf32

Item = TypeVar("Item")
MOST_THREADS = 1024
GRACE = 60.0  # seconds
PATIENCE = timedelta(days=365)  # that processes have with each other: work may take long


def rank() -> int:
    """Index of this process among all, 0 for a single one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 for a single one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Index of this process on its machine: the GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def usable_cores() -> int:
    """Cores this process may run on, whatever `torchrun` puts into OMP_NUM_THREADS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Machine:
    """Where and how everything is computed, for as far as the last bits depend on it."""

    device: torch.device  # of networks, latents and noise
    threads: int  # of the CPU, for torch and for the BLAS of numpy and scipy
    tf32: bool = False  # whether GPUs round factors of a network's float32 products to 10 bits

    @classmethod
    def chosen(
        cls, device: str = "auto", threads: int | None = None, tf32: bool = False
    ) -> "Machine":
        """Set this process up, whatever the environment or an earlier call said.

        By default with all usable cores. Raises as `chosen_device` and `set_threads`, and

        Raises:
            UsageError: TF32 on a CPU.
        """
        count = usable_cores() if threads is None else threads
        set_threads(count)
        found = chosen_device(device)
        if tf32 and found.type == "cpu":
            raise UsageError("--tf32 is for GPUs: a CPU computes in float32")
        set_tf32(tf32)
        return cls(found, count, tf32)

    @property
    def inputs(self) -> dict[str, Any]:
        """What results depend on, as JSON values."""
        said = {"device": self.device.type, "threads": self.threads}
        return {**said, "tf32": True} if self.tf32 else said


def add_options(parser: ArgumentParser, threads: str = "all usable cores") -> None:
    """The options --device and --threads of a command, and how many these are by default."""
    known = "auto (the default), cpu, cuda, cuda:1"
    parser.add_argument("--device", type=word, default="auto", help=known)
    told = f"CPU threads of a process (default: {threads})"
    parser.add_argument("--threads", type=int, help=told)


def set_threads(count: int) -> None:
    """Use `count` CPU threads in torch and in the BLAS of numpy and scipy, whatever was set before.

    Sums depend on it in the last bits, and `torchrun` gives BLAS one thread by the environment.

    Raises:
        UsageError: it is less than one, or more than any machine has.
    """
    if not 1 <= count <= MOST_THREADS:
        raise UsageError(f"--threads {count}: expected 1 to {MOST_THREADS}")
    torch.set_num_threads(count)
    threadpool_limits(count)


def chosen_device(name: str = "auto") -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1; a GPU becomes torch's current one.

    Args:
        name: "auto" is the GPU where there is one, "cuda" that of this process.

    Raises:
        UsageError: there is no such device here.
        WorkError: it has no memory left.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(f"cuda:{local_rank()}" if kind == "cuda" else kind)
        torch.zeros(1, device=device).cpu()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except torch.OutOfMemoryError as error:
        raise WorkError(f"--device {name}: its memory is full") from error
    except (RuntimeError, AssertionError, ImportError) as error:  # each kind of device its own
        raise UsageError(f"--device {name}: there is no such device here") from error
    return device


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this process: every `world_size`-th, from `rank` on."""
    return items[rank() :: world_size()]


def wait_for(paths: Iterable[Path], until: float = math.inf) -> None:
    """Return once every path exists: another process makes it, or `torchrun` ends all of them.

    Args:
        until: when to give up, in seconds of `time.monotonic`.
    """
    for path in paths:
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.2)


def patience(began: float) -> float:
    """Until when this process, now done with its share, waits for others: as long again, at least.

    Args:
        began: when it took its share up; both in seconds of `time.monotonic`.
    """
    now = time.monotonic()
    return now + max(now - began, GRACE)


@contextmanager
def gathered(
    backend: str = "gloo", patience: timedelta | None = PATIENCE
) -> Iterator[Callable[[], object]]:
    """Yield a call that returns once every process of this command has made it.

    Several processes form torch's process group of this backend and patience (None: torch's own).
    """
    if world_size() == 1:
        yield lambda: None
        return
    with abrupt():  # others may never come
        torch.distributed.init_process_group(backend, timeout=patience)
    try:
        yield torch.distributed.barrier
    finally:
        torch.distributed.destroy_process_group()
