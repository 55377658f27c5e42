"""Ranks from the environment, and the share of each process."""

import pytest
import torch
from threadpoolctl import threadpool_info

from linear_structure.system import machine
from linear_structure.system.errors import UsageError, WorkError


@pytest.fixture(params=[1, 2, 3, 8])
def processes(request, monkeypatch):
    """What a call gives in each of n processes."""

    def run(call):
        results = []
        for rank in range(request.param):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
            monkeypatch.setenv("WORLD_SIZE", str(request.param))
            results.append(call())
        return results

    return run


def test_alone_a_process_is_the_first_and_does_everything(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (machine.rank(), machine.local_rank(), machine.world_size()) == (0, 0, 1)
    assert machine.share(range(5)) == range(5)


def test_the_shares_of_all_processes_are_everything_once(processes):
    shares = processes(lambda: list(machine.share(range(20))))
    assert sorted(item for share in shares for item in share) == list(range(20))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_are_those_of_the_environment(processes):
    ranks = processes(lambda: (machine.rank(), machine.local_rank()))
    assert ranks == [(rank, rank % 2) for rank in range(len(ranks))]


def test_the_thread_count_is_set_whatever_it_was():
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            machine.set_threads(count)
            pools = threadpool_info()
            assert torch.get_num_threads() == count
            assert {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"} == {count}
    finally:
        machine.set_threads(before)


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_threads_that_no_machine_has_are_refused(count):
    with pytest.raises(UsageError, match=f"--threads {count}: expected 1 to 1024"):
        machine.set_threads(count)


@pytest.mark.parametrize("name", ["abacus", "", "meta", "hpu", "xpu", "cuda:99", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match=f"--device {name}: there is no such device"):
        machine.chosen_device(name)


def test_each_process_has_its_own_gpu_and_without_one_the_cpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.chosen_device() == machine.chosen_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda _, device: torch.empty(0))
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert machine.chosen_device() == torch.device("cuda:1")
    assert machine.chosen_device("cuda:0") == torch.device("cuda:0")
    assert current == [torch.device("cuda:1"), torch.device("cuda:0")]


def test_a_full_gpu_is_not_called_absent(monkeypatch):
    def full(count, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(WorkError, match="its memory is full"):
        machine.chosen_device("cuda:0")


def test_waiting_ends_when_the_files_are_there(tmp_path, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[1].touch()
    monkeypatch.setattr(machine.time, "sleep", lambda _: paths[0].touch())
    machine.wait_for(paths)
    assert paths[0].exists()
