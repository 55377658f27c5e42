"""Free memory by made-up tables of a kernel: those of control groups 2, and of control groups 1."""

import pytest

from linear_structure.system.memory import free_memory

MEMINFO = "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  8000 kB\n\n"
FREE = 8000 * 1024
JOB = "5:cpu,cpuacct:/\n4:memory:/slurm/job 7\n1:name=systemd:/a\n0::/slurm/job 7\n"


def kernel(folder, memberships, groups, meminfo=MEMINFO):
    """A system with tables of control groups by their paths."""
    tables = {"proc/meminfo": meminfo, "proc/self/cgroup": memberships}
    tables |= {f"sys/fs/cgroup/{path}": text for path, text in groups.items()}
    for name, text in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def second(group, limit):
    """Tables of a group of version 2 that holds 900,000 bytes, 300,000 of them of idle files."""
    stat = "anon 5\nfile 9\ninactive_file 300000\n"
    held = {"memory.max": f"{limit}\n", "memory.current": "900000\n", "memory.stat": stat}
    return {group + name: text for name, text in held.items()}


def first(group, limit):
    """The same of version 1."""
    stat = "inactive_file 7\ntotal_inactive_file 300000\n"
    held = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": "900000\n", "stat": stat}
    return {f"memory/{group}memory.{name}": text for name, text in held.items()}


@pytest.mark.parametrize(
    ("limit", "left"), [(1_000_000, 400_000), (99_000_000, FREE), ("max", FREE)]
)
def test_it_is_the_least_of_machine_and_container_without_idle_files(tmp_path, limit, left):
    assert free_memory(kernel(tmp_path, "0::/\n", second("", limit))) == left


@pytest.mark.parametrize("version", [first, second])
@pytest.mark.parametrize("place", ["", "slurm/", "slurm/job 7/"])
def test_any_group_around_the_process_may_set_the_limit(tmp_path, version, place):
    free = {"": 2**63 - 4096, "slurm/": 2**63 - 4096, "slurm/job 7/": 2**63 - 4096}
    held = [version(each, limit) for each, limit in (free | {place: 2_000_000}).items()]
    others = version("slurm/job 8/", 1) | version("other/", 1)
    groups = {path: text for each in (*held, others) for path, text in each.items()}
    assert free_memory(kernel(tmp_path, JOB, groups)) == 1_400_000


def test_what_the_system_does_not_say_limits_nothing(tmp_path):
    assert free_memory(tmp_path) is None
    assert free_memory(kernel(tmp_path, "", {}, "MemTotal: 9000 kB\n")) is None
    outside = "0::/of/the/host\n1:memory:/../a\n"
    assert free_memory(kernel(tmp_path, outside, {})) == FREE
    here = free_memory()
    assert here is None or 0 < here < 2**50
