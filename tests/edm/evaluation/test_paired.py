"""Theorems about the change of a distance between settings that share seeds."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edm.checkpoints import shipped
from edm.evaluation import features, fid, kid
from edm.evaluation.fid import Statistics, frechet, measure
from edm.evaluation.paired import Change, Kernel, Knee, Sample, change, knee
from linear_structure.data import datasets
from linear_structure.system.errors import UsageError, WorkError

ROOT = Path(__file__).resolve().parents[3]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rectified(count, dim, noise, seed=0):
    """Features >= 0 of seeds at two settings, the second of which adds noise to some of them."""
    hidden = normal(count, dim, seed=seed) @ normal(dim, dim, seed=100)
    moved = hidden + noise * hidden[:, :1].relu() * normal(count, dim, seed=seed + 1)
    return hidden.relu(), moved.relu()


def bootstrap(first, second, reference, resamples=400, seed=7):
    """Standard deviation of the change over resampled pairs, from distances alone."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows in torch.randint(len(first), (resamples, len(first)), generator=generator):
        before, after = (frechet(measure([each[rows]]), reference) for each in (first, second))
        found.append(after - before)
    return float(np.std(found, ddof=1))


def compared(first, second, reference):
    return change(Sample(second, reference), Sample(first, reference))


def with_a_point(statistics, point, weight):
    """Moments of (1 - weight) P + weight delta(point), the moments of P being given."""
    offset = point - statistics.mu
    sigma = (1 - weight) * (statistics.sigma + weight * torch.outer(offset, offset))
    return Statistics(statistics.mu + weight * offset, sigma)


CONSTANT = torch.tensor([1.0, 0, 1, 1, 1]).double()  # the second of five features
CASES = {
    "full": (normal(30, 5), normal(40, 5, seed=1) * 2 + 1),
    "a feature that the images leave constant": (
        normal(30, 5) * CONSTANT,
        normal(40, 5, seed=1) + 1,
    ),
    "a feature that the reference leaves constant": (
        normal(30, 5),
        normal(40, 5, seed=1) * CONSTANT,
    ),
    "a reference of rank two": (normal(30, 5), normal(3, 5, seed=1)),
    "images of rank two, a reference of rank three": (
        normal(30, 2) @ normal(2, 5, seed=2),
        normal(4, 5, seed=1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_influence_value_is_the_derivative_by_the_weight_of_its_row(name):
    rows, others = CASES[name]
    sample, step = Sample(rows, measure([others])), 1e-4
    derivatives = torch.tensor(
        [
            frechet(with_a_point(sample.statistics, row, step), sample.reference)
            - frechet(with_a_point(sample.statistics, row, -step), sample.reference)
            for row in rows
        ]
    ).double() / (2 * step)
    expected = derivatives - derivatives.mean()
    np.testing.assert_allclose(sample.influence, expected, rtol=1e-4, atol=1e-4)
    assert abs(float(sample.influence.mean())) < 1e-12 * float(sample.influence.std())


def test_influence_values_in_one_dimension_have_their_closed_form():
    rows = normal(50, 1) * 3 + 2
    reference = Statistics(torch.ones(1).double(), torch.full((1, 1), 4.0).double())
    x = (rows - rows.mean()).flatten()
    values = 2 * (rows.mean() - 1) * x + (1 - 2 / rows.std()) * x.square()
    expected = values - values.mean()
    np.testing.assert_allclose(Sample(rows, reference).influence, expected, rtol=1e-10)


def test_influence_values_do_not_depend_on_what_is_read_at_a_time(monkeypatch):
    rows, reference = normal(300, 4), measure([normal(40, 4, seed=1)])
    whole = Sample(rows, reference)
    monkeypatch.setattr(fid, "ROWS", 7)
    cut = Sample(rows, reference)
    np.testing.assert_allclose(cut.influence, whole.influence, rtol=1e-9, atol=1e-12)
    assert cut.unbiased == pytest.approx(whole.unbiased, rel=1e-9)


@pytest.mark.parametrize("count, method", [(50, "influence"), (6, "bootstrap")])
def test_equal_settings_change_by_exactly_nothing(count, method):
    rows, reference = normal(count, 8), measure([normal(90, 8, seed=1)])
    found = compared(rows, rows.clone(), reference)
    assert found == Change(0.0, 0.0, count, method)
    assert found.interval == (0, 0)


def test_a_change_is_the_difference_of_the_distances_and_turns_its_sign():
    first, second = rectified(200, 6, 0.5)
    reference = measure([normal(90, 6).relu()])
    forth, back = compared(first, second, reference), compared(second, first, reference)
    assert forth.difference == frechet(measure([second]), reference) - frechet(
        measure([first]), reference
    )
    assert (back.difference, back.standard_error) == (-forth.difference, forth.standard_error)
    low, high = forth.interval
    assert high - low == pytest.approx(2 * 1.96 * forth.standard_error)
    assert (low + high) / 2 == pytest.approx(forth.difference)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_standard_error_is_that_of_a_paired_bootstrap(noise):
    """400 resamples leave 3.5 % to it, and 1,000 images of 8 features some second-order terms."""
    first, second = rectified(1000, 8, noise)
    reference = measure([rectified(1500, 8, 0, seed=5)[0]])
    found = compared(first, second, reference)
    assert found.method == "influence"
    assert found.standard_error == pytest.approx(bootstrap(first, second, reference), rel=0.12)


def test_too_few_images_take_the_bootstrap():
    """Exactly that of the same draws, whichever way the distances are computed."""
    first, second = rectified(12, 16, 0.5)
    reference = measure([rectified(300, 16, 0, seed=5)[0]])
    found = compared(first, second, reference)
    assert found.method == "bootstrap"
    expected = bootstrap(first, second, reference, resamples=200, seed=0)
    assert found.standard_error == pytest.approx(expected, rel=1e-9)


def test_as_many_images_as_features_are_too_few():
    reference = measure([normal(90, 8, seed=1)])
    assert compared(normal(8, 8), normal(8, 8, seed=2), reference).method == "bootstrap"
    assert compared(normal(9, 8), normal(9, 8, seed=2), reference).method == "influence"
    with pytest.raises(UsageError, match="8 images of 8 features"):
        _ = Sample(normal(8, 8), reference).influence


SCALES = torch.tensor([1.0, 0.7, 0.4]).double()
WIDER = torch.tensor([1.3, 0.8, 0.4]).double()


def draws(count, seed):
    """The same seeds at two settings: N(0, SCALES^2), and N(0.2, WIDER^2) correlated with it."""
    shared = normal(count, 3, seed=seed)
    second = 0.8 * shared + 0.6 * normal(count, 3, seed=seed + 10_000)
    return shared * SCALES, second * WIDER + 0.2


REFERENCE = Statistics(torch.full((3,), 0.1).double(), torch.diag((SCALES + 0.3).square()))


def true_distance(mean, scales):
    """Between N(mean, scales^2), all axes alike, and the reference."""
    return 3 * (mean - 0.1) ** 2 + float((scales - SCALES - 0.3).square().sum())


def test_intervals_cover_the_true_change_as_often_as_they_say():
    repeats, truth = 500, true_distance(0.2, WIDER) - true_distance(0, SCALES)
    covered = 0
    for seed in range(repeats):
        low, high = compared(*draws(300, seed), REFERENCE).interval
        covered += low <= truth <= high
    assert covered / repeats == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / repeats))


@pytest.mark.parametrize("stretch", [1.0, 1.1])
@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_the_unbiased_distance_leaves_a_tenth_of_the_bias_at_most(heavy, stretch):
    """The truth is known in closed form; x |x| / sqrt 3 has variance 1 and kurtosis 105 / 9."""
    scales = torch.logspace(0, -1, 16).double()
    reference = Statistics(torch.zeros(16).double(), torch.diag((stretch * scales).square()))
    plain, unbiased = [], []
    for seed in range(300):
        rows = normal(400, 16, seed=seed)
        rows = rows * rows.abs() / math.sqrt(3) if heavy else rows
        sample = Sample(rows * scales, reference)
        plain.append(sample.distance)
        unbiased.append(sample.unbiased)
    truth, error = float((stretch * scales - scales).square().sum()), np.std(plain) / math.sqrt(300)
    bias = np.mean(plain) - truth
    assert bias > 15 * error
    assert abs(np.mean(unbiased) - truth) < 0.1 * bias


def test_images_that_are_all_alike_have_a_change_too():
    reference = measure([normal(90, 3)])
    alike = normal(1, 3).expand(20, 3)
    assert float(Sample(alike, reference).influence.abs().max()) == 0
    assert Sample(alike, reference).unbiased == Sample(alike, reference).distance
    found = compared(normal(20, 3), alike, reference)
    assert found.standard_error == compared(normal(20, 3), alike + 1, reference).standard_error > 0


@pytest.mark.parametrize(
    "first, second, complaint",
    [
        (normal(20, 4), normal(19, 4), "n = 20, 19 do not compare"),
        (normal(20, 4), normal(20, 3), "3 and 4 dimensions"),
        (normal(1, 4), normal(1, 4), "at least two images"),
    ],
)
def test_settings_that_do_not_compare_are_refused(first, second, complaint):
    with pytest.raises(UsageError, match=complaint):
        compared(first, second, measure([normal(90, 4)]))


def test_two_references_and_damaged_features_are_refused():
    rows, one, other = normal(20, 4), measure([normal(90, 4)]), measure([normal(90, 4, seed=1)])
    with pytest.raises(UsageError, match="two references"):
        change(Sample(rows, one), Sample(rows, other))
    with pytest.raises(WorkError, match="NaN"):
        compared(rows, rows.where(rows < 1, math.nan), one)


def curve(differences, error=0.0):
    return {k: Change(value, error, 1000, "influence") for k, value in differences.items()}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, Knee(0, 0)),
        (curve({0: 0.0}), Knee(0, 0)),
        (curve({2: 0.01, 4: -0.5, 6: 0.09}), Knee(6, 6)),
        (curve({2: 0.01, 4: 0.2, 6: 0.0}), Knee(2, 2)),
        (curve({6: 0.0, 4: 0.2, 2: 0.01}), Knee(2, 2)),
        (curve({1: 0.1, 2: 0.0}), Knee(0, 0)),
        (curve({0: 0.0, 1: 0.0, 2: 0.06, 3: 0.2}, error=0.04), Knee(1, 2)),
    ],
)
def test_the_knee_is_the_last_skip_before_the_distance_first_grows(changes, expected):
    assert knee(changes, distance=1.0) == expected


DIGITS = {
    4: (0.0001, 0.0009),
    6: (-0.0011, 0.0016),
    7: (-0.0022, 0.0027),
    8: (0.0037, 0.0058),
    9: (0.0695, 0.0179),
}


def test_the_knees_of_digits():
    table = {k: Change(*values, 3000, "influence") for k, values in DIGITS.items()}
    assert knee(table, 0.133) == Knee(by_interval=7, by_point=8)


def digits_reference():
    network = features.load(shipped("digits-features.safetensors"))
    return measure(network(images) for images in datasets.load("digits").blocks(500))


def digits_sample(skip, folder, reference):
    """3,000 images of the shipped network through the command; its own distance is met."""
    folder.mkdir()
    command = str(ROOT / "scripts" / "run_experiments_with_skips.py")
    weights = ["--features", str(shipped("digits-features.safetensors"))]
    options = ["--skips", str(skip), "--seeds", "0-2999", "--device", "cpu", "--threads", "1"]
    subprocess.run(
        [sys.executable, command, "digits", *weights, *options],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    results = folder / "images_with_skips" / "digits"
    blocks = [torch.from_numpy(np.load(path)) for path in sorted(results.glob("features/*/*.npy"))]
    sample = Sample(torch.cat(blocks), reference)
    assert len(sample.features) == 3000
    told = json.loads((results / "0-2999" / f"{skip}.json").read_text())["outputs"]["distance"]
    assert sample.distance == pytest.approx(told, rel=1e-6)
    return sample


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_table_of_digits(tmp_path):
    """Measured independently, to four decimals: changes and standard errors against skip 0."""
    reference = digits_reference()
    baseline = digits_sample(0, tmp_path / "0", reference)
    found = {
        k: change(digits_sample(k, tmp_path / str(k), reference), baseline) for k in sorted(DIGITS)
    }
    for k, (difference, error) in DIGITS.items():
        print(f"{k} {found[k].difference:+.4f} {found[k].standard_error:.4f}")
        assert found[k].difference == pytest.approx(difference, abs=error / 10 + 5e-5)
        assert found[k].standard_error == pytest.approx(error, abs=error / 10 + 5e-5)
    assert baseline.distance == pytest.approx(0.133, abs=5e-4)
    assert baseline.unbiased == pytest.approx(0.09, abs=5e-3)
    assert knee(found, baseline.distance) == Knee(by_interval=7, by_point=8)


# KID of few images


def test_kid_without_each_image_is_that_of_the_others():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(1, 2, (9, 4)).astype(np.float32)
    whole, rest = kid.without_each(x, y)
    wide, target = x.astype(np.float64), y.astype(np.float64)
    assert whole == pytest.approx(kid.mmd_squared(wide, target), rel=1e-12)
    others = [kid.mmd_squared(np.delete(wide, i, 0), target) for i in range(7)]
    assert rest == pytest.approx(others, rel=1e-12)


def test_the_jackknife_of_a_change_of_kid_is_what_new_draws_show():
    """Of pairs of images, one of them moved: over 300 draws of 60 pairs."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(100, 3, generator=generator)

    def drawn() -> Change:
        x = torch.randn(60, 3, generator=generator) + 0.3
        noise = torch.randn(60, 3, generator=generator)
        return Kernel.of(1.1 * x + 0.1 * noise, real).change(Kernel.of(x, real))

    changes = [drawn() for _ in range(300)]
    spread = np.std([change.difference for change in changes])
    stated = np.mean([change.standard_error for change in changes])
    assert spread < 1.1 * stated < 1.5 * spread  # a spread of 300 is known to 4 %, and some above
    assert changes[0].method == "jackknife" and changes[0].count == 60
