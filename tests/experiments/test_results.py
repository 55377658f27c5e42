"""Result files: reused only where every input is equal, and never lost."""

import json
import math
import os
import random
import time
from contextlib import suppress
from dataclasses import asdict

import pytest

from experiments import figures, results, tables
from experiments.presets import SeedRange, find
from experiments.results import Result
from linear_structure.sampling.grids import sigma_grid
from linear_structure.system.errors import UsageError


def make(skip: int, distance: float, seeds: SeedRange, **changed) -> Result:
    inputs = {
        "preset": "digits",
        "n_skip": skip,
        "sigma_skip": 80.0 / (skip + 1),
        "seeds": [seeds.first, seeds.last],
        "sampler": "heun",
        "sigmas": sigma_grid(18).tolist(),
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


def test_no_changed_bit_of_a_result_is_taken(tmp_path):
    result, path = make(2, 1 / 3, SeedRange(0, 9)), tmp_path / "2.json"
    results.write(path, result)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with suppress(UsageError):
            assert results.read(path) == result  # white space is no value


def test_a_result_of_an_earlier_version_is_taken_once_and_given_a_checksum(tmp_path):
    result, path = make(2, 1.5, SeedRange(0, 9)), tmp_path / "2.json"
    path.write_text(json.dumps(asdict(result)))
    assert results.reusable(path, result.inputs) == result
    results.write(path, result)
    assert "checksum" in json.loads(path.read_text())
    path.write_text(path.read_text().replace("1.5", "2.5"))
    with pytest.raises(UsageError, match="are not those of its checksum"):
        results.read(path)


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
    (row,) = tables.rows(found)
    assert (row.mean, row.spread) == (6.0, (1.0, 11.0))


def test_the_settings_that_are_shown_are_said_and_a_time_after_now_too(tmp_path, capsys):
    digest = "0123456789ab" + 52 * "c"
    put(tmp_path, make(0, 1.0, SeedRange(0, 9), network=digest))
    put(tmp_path, make(2, 1.0, SeedRange(0, 9), network="other"))
    now = time.time_ns()
    for when, noted in ((now - 10**9, False), (now + 3600 * 10**9, True)):
        os.utime(tmp_path / "digits" / "0-9" / "0.json", ns=(when, when))
        found = results.latest_sweep(tmp_path)
        assert found[0].inputs["network"] == digest
        said = capsys.readouterr().err
        assert ("seconds after now" in said) == noted and said.count("\n") == noted
    told = results.told(found, tmp_path)
    assert "network 0123456789ab," in told and "sigmas 80.0 to 0.0 (19)" in told
    assert told.endswith(" 1 results of other settings are left out.")
    assert results.told(found, tmp_path).startswith("Settings shown: count 10, distance_name FD")


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


def with_value(part: str, name: str, value: float) -> str:
    content = asdict(make(0, 1.0, SeedRange(0, 9)))
    content[part][name] = value
    return json.dumps(content)


def without(part: str, name: str) -> str:
    content = asdict(make(0, 1.0, SeedRange(0, 9)))
    del content[part][name]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "does not consist of inputs"),
        ("[]", "does not consist of inputs"),
        ("[" * 100_000, "does not consist of inputs"),
        ('{"inputs": {}, "outputs": {}}', "does not consist of inputs"),
        ('{"inputs": 1, "outputs": {}, "made": {}}', "inputs holds no values"),
        (without("inputs", "seeds"), "inputs\\.seeds is missing"),
        (without("outputs", "distance"), "outputs\\.distance is missing"),
        (without("made", "versions"), "made\\.versions is missing"),
        (with_value("outputs", "distance", math.nan), "outputs\\.distance is not finite"),
        (with_value("outputs", "distance", 10**400), "outputs\\.distance is not finite"),
        (with_value("inputs", "sigma_skip", -math.inf), "inputs\\.sigma_skip is not finite"),
        (without("inputs", "preset").replace("[0, 9]", '[0, "9"], "preset": "p"'), "no range"),
    ],
)
def test_a_damaged_or_foreign_result_is_named(tmp_path, text, fault):
    path = tmp_path / "digits" / "0-9" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"0\.json is no result file, .*{fault}"):
        results.latest_sweep(tmp_path)
    result = make(0, 1.0, SeedRange(0, 9))
    assert results.reusable(path, result.inputs) is None
    results.write(path, result)
    assert results.read(path) == result


@pytest.fixture
def incomplete():
    """Two skips; only the first one has the second range as well."""
    return [
        make(0, 1.0, SeedRange(0, 9)),
        make(0, 3.0, SeedRange(10, 19)),
        make(4, 5.0, SeedRange(0, 9)),
    ]


def test_rows_of_unequal_ranges_say_so(tmp_path, incomplete):
    said = "do not compare: seeds 10-19 lack skipped steps 4."
    table = tables.table(incomplete)
    assert "| 0 | 80 | 35 | 0% | 2.000 | 1.000 | 3.000 | 2 |" in table
    assert "| 4 | 16 | 27 | 23% | 5.000 | 5.000 | 5.000 | 1 |" in table
    assert "over 1 to 2 disjoint ranges" in table and said in table
    tables.write_columns(tmp_path / "t.txt", incomplete)
    *_, last = (tmp_path / "t.txt").read_text().splitlines()
    assert last.startswith("# ") and last.endswith(said)
    whole = [*incomplete, make(4, 5.0, SeedRange(10, 19))]
    assert "do not compare" not in tables.table(whole)
    assert "over 2 disjoint ranges" in tables.table(whole)


def test_rows_of_as_many_but_other_ranges_say_so(incomplete):
    assert "0-9 lack skipped steps 0; seeds 10-19 lack skipped steps 4" in tables.table(
        incomplete[1:]
    )


def test_the_graph_says_which_ranges_it_shows(tmp_path, monkeypatch, incomplete):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, path, **_: drawn.append(figure) or path.touch(),
    )
    rows = tables.rows(incomplete)
    figures.distance_against_skips(tmp_path / "g.png", rows, "FD", 10, {}, "title")
    (figure,) = drawn
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == ["measured, mean", "smallest to largest of 1 to 2 seed ranges"]
    assert "seeds 10-19 lack" in figure.get_supxlabel()


def test_results_made_elsewhere_share_a_csv(tmp_path, incomplete):
    """What is recorded of the making may differ: a line leaves empty what it does not know."""
    first, second, _ = incomplete
    other = Result(second.inputs, second.outputs, {**second.made, "gpu": "g"})
    tables.write_csv(tmp_path / "t.csv", [first, other], {})
    header, one, two = (tmp_path / "t.csv").read_text().splitlines()
    assert header.endswith(",gpu") and one.endswith(",") and two.endswith(",g")


def test_tables(tmp_path):
    found = [make(skip, 1.0 + skip, SeedRange(0, 9)) for skip in (0, 4)]
    tables.write_columns(tmp_path / "t.txt", found)
    assert (tmp_path / "t.txt").read_text().split() == ["n_skip", "FD-digits", "0", "1", "4", "5"]
    tables.write_csv(tmp_path / "t.csv", found, {4: 1.934})
    header, first, second = (tmp_path / "t.csv").read_text().splitlines()
    assert header.startswith("n_skip,sigma_skip,distance,count,nfe,published,first_seed,last_seed")
    assert first.split(",")[:6] == ["0", "80.0", "1.0", "10", "35", ""]
    assert second.split(",")[:6] == ["4", "16.0", "5.0", "10", "27", "1.934"]
    assert tables.table(found).endswith("One range of 10 images.")
    assert "| 4 | 16 | 27 | 23% | 5.000 |\n" in tables.table(found)
    fid = [make(0, 1.0, SeedRange(0, 9), distance_name="FID")]
    tables.write_columns(tmp_path / "f.txt", fid)
    assert (tmp_path / "f.txt").read_text().startswith("n_skip  fid\n")


def test_a_result_that_was_kept_is_found_again(tmp_path):
    """Of two settings in turns: the latest one's sweep is whole, each result once."""
    for when, (skip, network) in enumerate([(0, "a"), (2, "a"), (2, "b"), (0, "b"), (0, "a")], 1):
        put(tmp_path, make(skip, 1.0, SeedRange(0, 9), network=network), when)
    (tmp_path / "digits" / "0-9" / "2.01234567.json").write_text("{")  # put aside as damaged
    found = results.latest_sweep(tmp_path)
    assert [(r.skip, r.inputs["network"]) for r in found] == [(0, "a"), (2, "a")]


def test_saved_calls_are_counted_from_no_skip():
    """Also where that was not measured."""
    assert "| 9 | 8 | 17 | 51% |" in tables.table([make(9, 1.0, SeedRange(0, 9))])


def test_published_figures_stand_beside_their_like_alone():
    preset = find("cifar10")
    like = make(0, 2.0, preset.seeds, preset="cifar10", distance_name="FID")
    assert tables.published_beside(preset, [like]) == preset.published
    others = (
        make(0, 2.0, SeedRange(0, 999), preset="cifar10", distance_name="FID"),
        make(0, 2.0, preset.seeds, preset="cifar10"),
        make(0, 2.0, preset.seeds, distance_name="FID", sampler="unipc"),
        make(0, 2.0, preset.seeds, distance_name="FID", sigmas=sigma_grid(6).tolist()),
    )
    for other in others:
        assert tables.published_beside(preset, [other]) == {}
