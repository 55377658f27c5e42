"""Memory that this process may still take, as Linux tells it."""

from collections.abc import Iterator
from pathlib import Path

VERSIONS = {  # of control groups: where they are; a limit, what is taken, idle files among it
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("", "memory.max", "memory.current", "inactive_file"),
}


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take; None where the system does not say.

    The least of what the machine and each control group around the process have, such as a
    container's or a cluster job's. What these keep of files that nobody looked at lately counts as
    free: it goes as soon as it is needed.
    """
    found = [1024 * each for each in _numbers(root / "proc/meminfo", "MemAvailable:")]
    return min([*found, *_left_by_groups(root)], default=None)


def _left_by_groups(root: Path) -> Iterator[int]:
    """What is left to each control group of this process that has a limit."""
    for row in _rows(root / "proc/self/cgroup"):
        _, controllers, inner = " ".join(row).split(":", 2)
        for controller in VERSIONS.keys() & controllers.split(","):
            place, limit, taken, idle = VERSIONS[controller]
            base = root / "sys/fs/cgroup" / place
            group = base / inner.lstrip("/")
            for each in (group, *group.parents[: len(group.parts) - len(base.parts)]):
                yield from _left(each, limit, taken, idle)


def _left(group: Path, limit: str, taken: str, idle: str) -> Iterator[int]:
    """What is left to a control group, if it has a limit."""
    for (most, *_), (now, *_) in zip(_rows(group / limit), _rows(group / taken), strict=False):
        if most.isdecimal():
            yield int(most) - int(now) + sum(_numbers(group / "memory.stat", idle))


def _numbers(table: Path, name: str) -> list[int]:
    """That of a row, if there is one, of a table of the kernel."""
    return [int(row[1]) for row in _rows(table) if row[:1] == [name]]


def _rows(table: Path) -> list[list[str]]:
    """Words of the rows of a table of the kernel; none where it is not there."""
    lines = table.read_text().splitlines() if table.is_file() else []
    return [line.split() for line in lines if line.strip()]
