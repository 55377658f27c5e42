"""Every benchmark runs, at sizes whose numbers mean nothing, and leaves all of them in one file."""

import io
import json
import math
import os
import random
import re
import subprocess
import sys
import tarfile
from contextlib import redirect_stdout
from pathlib import Path

import builders
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPT = (FOLDER / "all.sh").read_text()
NAMES = [name for listed in re.findall(r"^\w+=\((.+)\)$", SCRIPT, re.M) for name in listed.split()]
ROWS = {
    "analytic": ("teleport, float32", "of_peak", 25),
    "fid": ("inception, 299 pixels", "images_per_second", 6),
    "forward": ("tiny fp32 batch 1, ours", "times_plain", 4),
    "load": ("safetensors", "memory_by_size", 4),
    "moments": ("ratios", "times_naive", 3),
    "peaks": ("product, float64", "gflops", 4),
    "spectral": ("flow, 3 x 32 x 32", "of_peak", 2),
    "training": ("digits float32 batch 8, ours", "times_separate", 4),
}


def test_one_place_lists_every_benchmark() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"timing"}
    assert sorted(NAMES) == sorted(files) == sorted(ROWS)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_keeps_its_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_thread: None
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark, path = builders.module(FOLDER / f"{name}.py"), tmp_path / "numbers.json"
    path.write_text('{"other": {"row": {"seconds": 1.0}}}')

    def within(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """What a benchmark measures in processes of their own, in this one."""
        monkeypatch.setattr(sys, "argv", command[1:])
        with redirect_stdout(io.StringIO()) as output:
            benchmark.main()
        return subprocess.CompletedProcess(command, 0, output.getvalue())

    monkeypatch.setattr(subprocess, "run", within)
    options = ["--device", "cpu", "--quick", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", [name, *options])
    benchmark.main()
    found, (row, quantity, count) = json.loads(path.read_text()), ROWS[name]
    assert found.keys() == {name, "other"}
    assert len(found[name]) == count
    assert found[name][row][quantity] > 0
    values = [value for each in found[name].values() for value in each.values()]
    assert all(isinstance(value, str) or math.isfinite(value) for value in values)


def ran(script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(FOLDER / script), *words]
    given = {**os.environ, **variables}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [[], ["--quick"], ["x.json"]])
def test_all_benchmarks_want_a_file_and_known_names(words: list[str], tmp_path: Path) -> None:
    found = ran("all.sh", *words, ONLY="nonsense")
    said = "no benchmark is called nonsense" if words == ["x.json"] else "expected a file"
    assert found.returncode == 2 and said in found.stderr and found.stderr.count("\n") == 1


def test_large_results_of_a_card_are_handed_out_whole(tmp_path: Path) -> None:
    """In as many parts as it takes, not beside those of earlier ones, nor of an archive cut off."""
    work, out = tmp_path / "work", tmp_path / "out"
    features = work / "sweep" / "images_with_skips" / "cifar10-small" / "features"
    features.mkdir(parents=True)
    archive, place = work / "sweep" / "features.tar.gz", {"WORK": str(work), "OUT": str(out)}
    for size, parts in ((100_000, 95), (3_000, 3)):
        (features / "0.npy").write_bytes(random.Random(0).randbytes(size))
        archive.with_name("features.tar.gz.unfinished").write_bytes(b"cut off")
        assert ran("card.sh", "features", **place, PIECE="1K").returncode == 0
        found = sorted(out.glob("features.tar.gz.[0-9]*"))
        assert len(found) >= parts and {*out.iterdir()} == {*found}
        assert b"".join(path.read_bytes() for path in found) == archive.read_bytes()
        with tarfile.open(archive) as members:
            assert members.getmember(str((features / "0.npy").relative_to(work / "sweep")))
        archive.unlink()
    assert len(found) < 9
