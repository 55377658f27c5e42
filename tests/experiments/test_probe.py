"""Heads on codes: the whole command on two tiny pairs, what it refuses, and what it concludes."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import builders
import pytest
import torch
from scipy.stats import ttest_rel

from edm.representation.objective import Pair
from edm.representation.probing import Split
from experiments import curves, probe
from experiments.probe import (
    COMPARED,
    MANY,
    MIXED,
    ONE,
    PROBES,
    REPEATED,
    WIDE,
    Entry,
    noised_features,
    verdict,
)
from experiments.representation import CODES, Codes
from linear_structure.images import from_uint8
from linear_structure.system.errors import run_command

SCRIPT = Path(__file__).parents[2] / "scripts/represent.py"
PLACE = ["--device", "cpu", "--threads", "1"]
SIZE = ["--model-channels", "16", "--encoder-channels", "8", "--batch", "32", "--steps", "60"]
ASK = ["--tasks", "foreground", "--epochs", "1", *PLACE]
LEVELS = 3
PICTURES = ["profiles", "attention", "jsd", "information", "theory", "reconstructions", "codes"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    return builders.module(SCRIPT)


@pytest.fixture(scope="module")
def called(script):
    """Run `represent.py` with some words; its exit code."""

    def command(*words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["represent.py", *map(str, words)])
            return run_command(script.main)

    return command


@pytest.fixture(scope="module")
def pairs(called, tmp_path_factory):
    """Two pairs of 60 steps with codes of 2 numbers at 3 levels, and one of 6 numbers."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("pairs")
    for dim, seed in ((2, 0), (2, 1), (6, 0)):
        folder = root / f"d{dim}-s{seed}"
        words = ["--dim", dim, "--seed", seed, *SIZE, *PLACE]
        assert called("train", "coloured-digits", "--out", folder, *words) == 0
        assert called("encode", folder, "--levels", LEVELS, *PLACE) == 0
    return root


@pytest.fixture(scope="module")
def probed(called, pairs):
    """The folder of the tables of both seeds."""
    folders = [pairs / "d2-s0", pairs / "d2-s1"]
    assert called("probe", *folders, "--wide", pairs / "d6-s0", *ASK) == 0
    return pairs / "d2"


@pytest.fixture
def copied(pairs, tmp_path):
    """A copy of the first pair, with what was done to its codes."""

    def make(change):
        folder = tmp_path / "pair"
        shutil.copytree(pairs / "d2-s0", folder)
        change(Codes.read(folder / CODES)).write(folder / CODES)
        return folder

    return make


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_for_each_head_and_seed(probed):
    rows = rows_of(probed / "table.csv")
    asked = [(head, seed) for head in PROBES for seed in "01"] + [(WIDE, "0")]
    assert sorted((row["head"], row["seed"]) for row in rows) == sorted(asked)
    assert {row["task"] for row in rows} == {"foreground"}
    assert all(0 <= float(row[part]) <= 100 for row in rows for part in ("validation", "test"))
    alone = {row["head"] for row in rows if row["level"]}
    assert alone == {head for head in (*PROBES, WIDE) if "one level" in head} - {
        REPEATED,
        probe.VISIBLE,
    }


def test_the_level_is_the_best_on_validation(pairs, probed):
    kept = json.loads((pairs / "d2-s1/probe/foreground/one-level.json").read_text())["outputs"]
    row = next(r for r in rows_of(probed / "table.csv") if (r["head"], r["seed"]) == (ONE, "1"))
    best = int(torch.tensor(kept["validation"]).argmax())
    assert int(row["level"]) == best
    assert float(row["test"]) == pytest.approx(100 * kept["test"][best], rel=1e-5)


def test_differences_are_paired_by_seed(probed):
    table = {(r["head"], r["seed"]): float(r["test"]) for r in rows_of(probed / "table.csv")}
    found = {(r["a"], r["b"]): r for r in rows_of(probed / "differences.csv")}
    assert set(found) == set(COMPARED)
    for (a, b), row in found.items():
        if WIDE in (a, b):
            assert (row["n"], row["low"], row["high"], row["t"]) == ("1", "", "", "")
            continue
        test = ttest_rel(*([table[head, seed] for seed in "01"] for head in (a, b)))
        if test.statistic == test.statistic and abs(test.statistic) < 1e6:
            low, high = test.confidence_interval(0.95)
            assert float(row["low"]) == pytest.approx(low, rel=1e-2, abs=1e-2)
            assert float(row["high"]) == pytest.approx(high, rel=1e-2, abs=1e-2)


def test_what_is_kept_is_not_computed_again(called, pairs, probed, tmp_path, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("computed again")

    for name in ("fit", "neighbours", "noised_features", "_projected", "split_of"):
        monkeypatch.setattr(probe, name, never)
    folders = [pairs / "d2-s0", pairs / "d2-s1"]
    words = ["--wide", pairs / "d6-s0", *ASK, "--out", tmp_path]
    assert called("probe", *folders, *words) == 0
    for name in ("table.csv", "differences.csv", "table.txt"):
        assert (tmp_path / name).read_bytes() == (probed / name).read_bytes()
    printed = capsys.readouterr().out
    assert (probed / "table.txt").read_text() in printed
    assert "2 numbers at 3 levels: foreground" in printed


def test_one_seed_has_no_interval_and_says_so(called, pairs, probed, tmp_path, capsys):
    assert called("probe", pairs / "d2-s0", *ASK, "--out", tmp_path) == 0
    text = capsys.readouterr().out
    assert "One seed: no difference has an interval." in text
    assert "[" not in text
    assert "No pair with codes of 6 numbers was given (--wide)" in text
    assert {row["low"] for row in rows_of(tmp_path / "differences.csv")} == {""}


def test_analysis_draws_and_keeps_its_numbers(called, pairs, probed, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "STEPS", (1, 2))
    folders = [pairs / "d2-s0", pairs / "d2-s1"]
    assert called("analyse", *folders, *ASK, "--steps", 2, "--out", tmp_path) == 0
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in PICTURES)
    found = json.loads((tmp_path / "analysis.json").read_text())
    profiles = torch.tensor(found["factors"]["foreground"]["profile"])
    assert profiles.shape == (2, LEVELS)
    torch.testing.assert_close(profiles.sum(1), torch.ones(2))
    assert found["divergence"]["between"] == [[0.0]]
    assert 0 < found["divergence"]["seeds"] < 1
    assert [row[i] for i, row in enumerate(found["information"]["copula"])] == [None] * LEVELS
    assert found["information"]["steps"] == 2
    assert all(0 <= share < 1 for row in found["theory"]["missed"] for share in row)


def divided(codes):
    """Foreground 8 is found in the test part alone."""
    labels = codes.labels["foreground"].clamp(max=7)
    labels = torch.where((codes.part == 2) & (codes.labels["foreground"] == 8), 8, labels)
    return replace(codes, labels={**codes.labels, "foreground": labels})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: replace(c, inputs={**c.inputs, "encoder": "0"}), "codes of another encoder"),
        (lambda c: replace(c, inputs={**c.inputs, "images": "0"}), "codes of other images"),
        (lambda c: replace(c, labels={}), "have no labels: expected classes"),
        (divided, "no image of class 8 is in the training part"),
    ],
)
def test_codes_that_cannot_be_read_are_refused_in_a_sentence(
    called, copied, change, words, tmp_path, capsys
):
    folder = copied(change)
    shutil.rmtree(folder / "probe", ignore_errors=True)
    assert called("probe", folder, *ASK, "--out", tmp_path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert words in said


@pytest.mark.parametrize(
    "folders, more, words",
    [
        (("d2-s0", "d2-s0"), (), "expected pairs of different seeds"),
        (("d2-s0", "d6-s0"), (), "do not stand side by side"),
        (("d2-s0",), ("--tasks", "shape"), "unknown 'shape': expected some of digit"),
        (("d2-s0",), ("--heads", "tail"), "unknown 'tail': expected some of one level"),
        (("d6-s0",), ("--wide", "d2-s0"), "expected 18 numbers, as many as all levels"),
    ],
)
def test_what_does_not_compare_is_refused(called, pairs, folders, more, words, monkeypatch, capsys):
    monkeypatch.chdir(pairs)
    assert called("probe", *folders, *more, *PLACE) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def entries(**rows):
    """Of a task, accuracies by seed."""
    names = {"mixed": MIXED, "one": ONE, "same": REPEATED, "wide": WIDE, "many": MANY}
    return [
        Entry("digit", names[name], seed, None, 0.0, value)
        for name, values in rows.items()
        for seed, value in enumerate(values)
    ]


def test_the_verdict_says_numbers_intervals_and_rivals():
    found = entries(
        mixed=[69.4, 69.1, 70.3, 73.1, 66.8],
        one=[68.1, 67.2, 68.6, 71.4, 66.1],
        same=[68.9, 66.5, 66.9, 71.8, 65.7],
        wide=[91.9],
        many=[96.6] * 5,
    )
    assert verdict(found, "digit", 8, 11) == (
        "8 numbers at 11 levels: digit 69.7; best single level 68.3, difference +1.5 [0.9, 2.1], "
        "5 seeds; same head on that level alone 68.0, +1.8 [0.3, 3.3]; one level of 88 numbers "
        "91.9 (seeds: 1); 88 principal components 96.6. "
        "To this head the levels together tell more than the best of them."
    )


@pytest.mark.parametrize(
    "same, words",
    [([70.0, 71.0, 69.0], "is not shown."), ([80.0, 80.1, 79.9], "tell less than the best")],
)
def test_the_verdict_follows_the_interval(same, words):
    found = entries(mixed=[70.1, 70.0, 70.2], one=[60.0, 61.0, 62.0], same=same)
    assert words in verdict(found, "digit", 8, 11)


def test_the_verdict_of_one_seed_has_no_interval():
    said = verdict(entries(mixed=[70.0], one=[69.0], same=[69.5]), "digit", 8, 11)
    assert "difference +1.0, one seed, so without an interval; same head" in said
    assert said.endswith("takes two seeds or more.")


def test_a_verdict_without_its_rows_says_what_it_needs():
    assert "are needed for a verdict" in verdict(entries(one=[1.0]), "digit", 8, 11)


def pair(model):
    torch.manual_seed(0)
    body = {"img_resolution": 8, **model}
    network = {"precondition": "EDMPrecond", "img_channels": 3, "label_dim": 2, **body}
    encoder = {"model_type": "MLP", "img_channels": 3, "outputs": 2, "img_resolution": 8}
    made = Pair.of({"kind": "drl", "encoder": encoder, "network": network})
    return made.eval().requires_grad_(False)


def test_features_of_an_mlp_are_its_last_hidden_layer():
    network = pair({"model_type": "MLP", "width": 16, "depth": 2}).network
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    sigmas = torch.tensor([0.5, 3.0], dtype=torch.float64)
    found = noised_features(network, images, sigmas)
    generator = torch.Generator().manual_seed(0)
    for k, sigma in enumerate(sigmas.float()):
        noise = torch.randn(5, 3, 8, 8, generator=generator)
        c = network.coefficients(sigma)
        inputs = c.input * (from_uint8(images) + sigma * noise)
        hidden = network.model.features(inputs, c.noise.reshape(1), torch.zeros(1, 2))
        torch.testing.assert_close(found[:, k], hidden)


def test_features_of_a_u_net_are_those_of_its_innermost_map():
    model = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}
    network = pair({"model_type": "SongUNet", **model}).network
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    found = noised_features(network, images, torch.tensor([0.5, 3.0], dtype=torch.float64))
    assert found.shape == (3, 2, 16)


def test_principal_components_of_all_parts_lie_on_axes_of_the_training_part(pairs):
    machine = probe.Machine(torch.device("cpu"), 1)
    subject = probe.Subject.load(pairs / "d2-s0", machine)
    z = probe.components(subject, LEVELS).make()
    assert z.shape == (4794, 1, 6)
    train = Split.of(
        z, subject.codes.labels["digit"], subject.codes.part, subject.codes.source
    ).train.z[:, 0]
    covariance = torch.cov(train.T.double())
    torch.testing.assert_close(covariance, covariance.diag().diag(), atol=1e-4, rtol=0)
    assert covariance.diag().diff().max() < 0
