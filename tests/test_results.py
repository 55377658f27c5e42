"""Result files: reused only where every input is equal, and never lost."""

import json
import os

import pytest

from experiments import report, results
from experiments.presets import SeedRange
from experiments.results import Result
from linear_structure.errors import UsageError


def make(skip: int, distance: float, seeds: SeedRange, **changed) -> Result:
    inputs = {
        "preset": "digits",
        "n_skip": skip,
        "sigma_skip": 80.0 / (skip + 1),
        "seeds": [seeds.first, seeds.last],
        "sigmas": [80.0, 0.002, 0.0],
        "distance_name": "FD-digits",
        "network": "n",
    }
    outputs = {"distance": distance, "count": seeds.count, "nfe": 35 - 2 * skip}
    made = {"seconds": 1.0, "host": "here", "versions": {"torch": "2"}}
    return Result({**inputs, **changed}, outputs, made)


def put(root, result: Result, when: int = 0) -> None:
    path = results.path_of(root, result.inputs["preset"], result.seeds, result.skip)
    results.write(path, result)
    os.utime(path, ns=(when, when))


def test_reused_only_if_every_input_is_equal(tmp_path):
    result = make(2, 1.5, SeedRange(0, 9))
    path = tmp_path / "2.json"
    results.write(path, result)
    assert results.reusable(path, result.inputs) == result
    for name in result.inputs:
        assert results.reusable(path, {**result.inputs, name: "other"}) is None
    path.write_text(path.read_text()[:-20])
    assert results.reusable(path, result.inputs) is None
    assert results.reusable(tmp_path / "absent.json", result.inputs) is None


def test_a_result_of_other_settings_is_kept_beside(tmp_path):
    path = tmp_path / "2.json"
    old, new = (make(2, d, SeedRange(0, 9), network=n) for d, n in ((1.0, "a"), (2.0, "b")))
    results.write(path, old)
    results.write(path, new)
    assert results.read(path) == new
    (kept,) = set(tmp_path.iterdir()) - {path}
    assert results.read(kept) == old


def test_outputs_are_byte_equal(tmp_path):
    texts = []
    for seconds in (1.0, 2.0):
        result = make(2, 1 / 3, SeedRange(0, 9))
        results.write(tmp_path / "r.json", Result(result.inputs, result.outputs, {"s": seconds}))
        texts.append(json.dumps(json.loads((tmp_path / "r.json").read_text())["outputs"]))
    assert texts[0] == texts[1]


def test_latest_sweep_joins_ranges_of_equal_settings_alone(tmp_path):
    for first in (0, 10):
        put(tmp_path, make(0, 1.0 + first, SeedRange(first, first + 9)), when=10 + first)
    put(tmp_path, make(0, 9.0, SeedRange(20, 29), network="other"), when=5)
    put(tmp_path, make(0, 9.0, SeedRange(30, 34)), when=6)  # another n
    found = results.latest_sweep(tmp_path)
    assert [result.distance for result in found] == [1.0, 11.0]
    (row,) = report.rows(found)
    assert (row.mean, row.spread) == (6.0, (1.0, 11.0))


def test_latest_sweep_of_a_preset(tmp_path):
    put(tmp_path, make(0, 1.0, SeedRange(0, 9)), when=1)
    put(tmp_path, make(0, 2.0, SeedRange(0, 9), preset="cifar10"), when=2)
    assert results.latest_sweep(tmp_path)[0].distance == 2.0
    assert results.latest_sweep(tmp_path, "digits")[0].distance == 1.0


def test_overlapping_ranges_are_refused(tmp_path):
    put(tmp_path, make(0, 1.0, SeedRange(0, 9)))
    put(tmp_path, make(0, 1.0, SeedRange(5, 14)))
    with pytest.raises(UsageError, match="overlap"):
        results.latest_sweep(tmp_path)


def test_no_result_says_what_to_run(tmp_path):
    with pytest.raises(UsageError, match=r"bash run_experiments_with_skips\.sh digits"):
        results.latest_sweep(tmp_path, "digits")


def test_damaged_result_is_named(tmp_path):
    path = tmp_path / "digits" / "0-9" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UsageError, match=r"0\.json"):
        results.latest_sweep(tmp_path)


def test_tables(tmp_path):
    found = [make(skip, 1.0 + skip, SeedRange(0, 9)) for skip in (0, 4)]
    report.write_two_columns(tmp_path / "t.txt", found)
    assert (tmp_path / "t.txt").read_text().split() == ["n_skip", "FD-digits", "0", "1", "4", "5"]
    report.write_csv(tmp_path / "t.csv", found, {4: 1.934})
    header, first, second = (tmp_path / "t.csv").read_text().splitlines()
    assert header.startswith("n_skip,sigma_skip,distance,count,nfe,published,first_seed,last_seed")
    assert first.split(",")[:6] == ["0", "80.0", "1.0", "10", "35", ""]
    assert second.split(",")[:6] == ["4", "16.0", "5.0", "10", "27", "1.934"]
    assert report.table(found).endswith("One range of 10 images.")
    assert "| 4 | 16 | 27 | 23% | 5.000 | 5.000 | 5.000 |" in report.table(found)
    fid = [make(0, 1.0, SeedRange(0, 9), distance_name="FID")]
    report.write_two_columns(tmp_path / "f.txt", fid)
    assert (tmp_path / "f.txt").read_text().startswith("n_skip  fid\n")
