"""All seeds of a sweep together, from what it leaves on disk."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from edm.evaluation import fid
from edm.evaluation.paired import Change, Sample, change
from experiments import figures, presets, results, sweep, tables
from experiments.pooled import Pool, Pooled, Unpooled, pool
from experiments.results import Result
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.seeds import SeedRange
from linear_structure.system.errors import run_command
from linear_structure.system.store import Block, folder_of

ROOT = Path(__file__).resolve().parents[2]
SHIFT = {0: 0.0, 2: 0.01, 4: 0.5, 5: 2.0}  # of the features, by skipped steps; 5 are all


def drawn(first, count=40):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(first))


REFERENCE = fid.measure([drawn(10**6, 500)])


def stored(root, first, count=40, skips=SHIFT):
    """The results of one range, with their features and what they were compared with."""
    found = []
    for skip in skips:
        inputs = {
            "preset": "digits",
            "n_skip": skip,
            "sigma_skip": float(sigma_grid(5)[skip]),
            "sampler": "heun",
            "sigmas": sigma_grid(5).tolist(),
            "distance_name": "FD-digits",
            "block": 20,
        }
        rows = drawn(first, count) + SHIFT[skip]
        folder = folder_of(root / "digits" / "features", inputs)
        for start in range(0, count, 20):
            path = folder / f"{first + start:06d}.npy"
            Block(path, (20, 4)).write(rows[start : start + 20])
        outputs = {
            "distance": fid.frechet(fid.measure([rows]), REFERENCE),
            "count": count,
            "nfe": max(9 - 2 * skip, 0),
        }
        told = {"seeds": [first, first + count - 1], "reference": REFERENCE.digest}
        result = Result({**inputs, **told}, outputs, {"versions": {}})
        results.write(results.path_of(root, "digits", result.seeds, skip), result)
        found.append(result)
    fid.write(sweep._reference_path(root, "digits", REFERENCE.digest), REFERENCE)
    return found


def test_a_pool_is_of_all_seeds_and_compares_image_by_image(tmp_path):
    found = stored(tmp_path, 0) + stored(tmp_path, 40)
    together = pool(tmp_path, found)
    rows = torch.cat([drawn(0), drawn(40)])
    plain, moved = (Sample(rows + SHIFT[skip], REFERENCE) for skip in (0, 4))
    assert together.rows[0] == Pooled(plain.distance, plain.unbiased, None)
    assert together.rows[4] == Pooled(moved.distance, moved.unbiased, change(moved, plain))
    assert (together.count, together.dim) == (80, 4)
    assert together.changes.keys() == {2, 4}  # not where the network is not called
    assert together.notes == []


def test_a_range_that_lacks_a_skip_is_left_out_and_named(tmp_path):
    found = stored(tmp_path, 0) + stored(tmp_path, 40, skips=(0, 2))
    together = pool(tmp_path, found)
    assert together.ranges == (SeedRange(0, 39),) and together.count == 40
    assert "left out: seeds 40-79 lack skipped steps 4, 5." in tables.table(found, together)


def test_the_model_alone_is_left_out_before_a_range_is(tmp_path):
    found = stored(tmp_path, 0) + stored(tmp_path, 40, skips=(0, 2, 4))
    together = pool(tmp_path, found)
    assert together.count == 80 and together.rows.keys() == {0, 2, 4}
    assert "| 5, all |" not in tables.table(found, together)


def test_the_table_prints_change_and_interval(tmp_path):
    found = stored(tmp_path, 0) + stored(tmp_path, 40)
    together = pool(tmp_path, found)
    said, change = tables.table(found, together), together.rows[4].change
    low, high = change.interval
    row = f"{together.rows[4].distance:.3f} | {together.rows[4].unbiased:.3f}"
    assert "| FD-digits, pooled | unbiased | change | 95 % interval |" in said
    assert f"| {row} | {change.difference:+.4f} | [{low:+.4f}, {high:+.4f}] |" in said
    assert "| 5, all | 0 | 0 | 100% |" in said and "Skip 5 is the teleport's model alone" in said
    assert "FD-digits of 80 images together, seeds 0-39, 40-79" in said
    tables.write_columns(tmp_path / "t.txt", found, together)
    head, *lines = (line.split() for line in (tmp_path / "t.txt").read_text().splitlines())
    assert head == ["n_skip", "FD-digits", *tables.POOLED]
    assert [line[0] for line in lines] == ["0", "2", "4"]
    assert float(lines[2][4]) == pytest.approx(change.difference, rel=1e-5)
    assert float(lines[2][5]) == pytest.approx(change.standard_error, rel=1e-5)


def test_what_is_missing_is_said(tmp_path):
    found = stored(tmp_path, 0)
    with pytest.raises(Unpooled, match="no range of seeds has skip 0"):
        pool(tmp_path, found[1:])
    with pytest.raises(Unpooled, match="no range of seeds has skip 0"):
        pool(tmp_path, found[-1:])  # the model alone
    *_, last = sorted((tmp_path / "digits" / "features").rglob("000020.npy"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Unpooled, match="features of seeds 0-39 at skip"):
        pool(tmp_path, found)
    (reference,) = (tmp_path / "digits" / "references").iterdir()
    reference.write_bytes(reference.read_bytes()[:-50])
    with pytest.raises(Unpooled, match="reference statistics"):
        pool(tmp_path, found)


def verdict(distances, errors=0.0):
    rows = {k: Pooled(d, None, Change(d - distances[0], errors, 9, "influence") if k else None)
            for k, d in distances.items()}  # fmt: skip
    return Pool(rows, 18, (SeedRange(0, 8),), 9, 4, "FID")


def test_the_knee_is_the_last_skip_before_the_distance_grows():
    assert verdict(presets.find("cifar10").published).knee.by_point == 7
    assert verdict({0: 1.0, 2: 1.05, 4: 1.2, 6: 1.0}).knee.by_interval == 2
    assert verdict({0: 1.0, 2: 1.05, 4: 1.2, 6: 1.0}, 0.04).knee.by_interval == 0
    assert verdict({0: 1.0}).verdict == ""
    assert "up to skip 2, the 95 %" in verdict({0: 1.0, 2: 1.05, 4: 1.2}).verdict
    assert "up to skip 2, the highest measured, the 95 %" in verdict({0: 1.0, 2: 1.05}).verdict


def test_a_network_no_better_than_the_model_alone_is_said_to_be_useless():
    poor, fair = verdict({0: 2.0, 4: 1.9, 18: 1.9}, 0.1), verdict({0: 1.0, 4: 1.9, 18: 1.9}, 0.1)
    assert poor.warning.startswith("The network is of no use: at skip 0 its images are no nearer")
    assert poor.warning in poor.notes and fair.warning == "" and "" not in fair.notes


def test_few_images_have_a_singular_covariance():
    (note,) = Pool({0: Pooled(1.0, None, None)}, 18, (), 100, 128, "FID").notes
    assert note == fid.singular(100, 128)


@pytest.fixture
def process(tmp_path, monkeypatch, capsys):
    """Run process_experiments_with_skips.py in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def call() -> str:
        script = runpy.run_path(str(ROOT / "process_experiments_with_skips.py"))
        monkeypatch.setattr(sys, "argv", ["process"])
        assert run_command(script["main"]) == 0
        return capsys.readouterr().out

    return call


def test_results_of_an_earlier_version_are_shown(tmp_path, process):
    """Without the statistics they were compared with, without checksums, without features."""
    shutil.copytree(ROOT / "tests/golden/sweep-4740262", tmp_path / "images_with_skips")
    said = process()
    assert "No change against skip 0, and no interval of it: the reference statistics" in said
    assert "One range of 8 images." in said
    reference = fid.read(presets.find("cifar10-small").reference)
    place = sweep._reference_path(Path("images_with_skips"), "cifar10-small", reference.digest)
    fid.write(place, reference)
    said = process()
    assert "95 % interval" in said and fid.singular(8, 128) in said
    shutil.rmtree("images_with_skips/cifar10-small/features")
    assert "the features of seeds 0-7 at skip 0 are not on disk" in process()


def test_the_graph_shows_the_intervals(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, path, **_: kept.append(figure) or path.touch(),
    )
    found = stored(tmp_path, 0)
    together, rows = pool(tmp_path, found), tables.rows(found)
    figures.distance_against_skips(tmp_path / "g.png", rows, "FD", 40, {}, "title", together)
    axes = kept[0].axes[0]
    _, labels = axes.get_legend_handles_labels()
    assert labels == ["measured", "95 % interval of the change against skip 0"]
    assert axes.lines[0].get_xdata().tolist() == [0, 2, 4]
    assert "of 40 images" in axes.get_ylabel()
