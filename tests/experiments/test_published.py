"""The authors' shares of the score, and ours beside them."""

import csv
import math
from pathlib import Path

import pytest
from PIL import Image

from experiments import figures, published
from experiments.comparison import GAUSSIAN, ISOTROPIC
from experiments.published import SHARES, SIGMAS

RESULTS = Path(__file__).resolve().parents[2] / "results" / "cifar10-small"
LEVELS = [80.0, 8.0, 0.8, 0.08]


def agreement(*shares: float) -> dict[str, dict[str, list[float]]]:
    return {"noised": {"sigma": LEVELS, "share": list(shares)}}


def test_ours_is_linear_in_the_logarithm_of_the_noise_level():
    found = agreement(1.0, 0.8, 0.4, 0.0)["noised"]
    between = math.sqrt(8.0 * 0.8)
    assert published.share_at(8.0, found) == pytest.approx(0.8)
    assert published.share_at(between, found) == pytest.approx(0.6)
    assert math.isnan(published.share_at(0.02, found))


def test_each_published_share_has_a_row_and_ours_of_the_same_model_only():
    rows = published.beside({GAUSSIAN: agreement(1.0, 0.8, 0.4, 0.0)})
    assert len(rows) == len(SHARES) * len(SIGMAS)
    with_ours = {(model, sigma) for model, sigma, _, ours in rows if ours != ""}
    assert with_ours == {("Gaussian", sigma) for sigma in SIGMAS if sigma >= 0.08}
    assert ["Gaussian", 0.5, 0.9588, pytest.approx(0.3183, abs=1e-4)] in rows


def test_published_shares_rise_with_noise_and_the_best_mixture_is_above_the_gaussian():
    for shares in SHARES.values():
        assert len(shares) == len(SIGMAS)
        assert list(shares) == sorted(shares)
    best = next(shares for key, shares in SHARES.items() if key.title.startswith("best"))
    assert all(a >= b for a, b in zip(best, SHARES[GAUSSIAN], strict=True))


def test_both_are_drawn(tmp_path):
    numbers = {key: agreement(1.0, 0.8, 0.4, 0.0) for key in (GAUSSIAN, ISOTROPIC)}
    figures.published_shares(tmp_path / "shares.png", numbers, "both")
    assert Image.open(tmp_path / "shares.png").size[0] > 500


def test_the_table_in_the_results_is_that_of_the_figures_numbers():
    with (RESULTS / "figure3_noised.csv").open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row["model"] == "Gaussian"]
    found = {name: [float(row[name]) for row in measured] for name in ("sigma", "share")}
    with (RESULTS / "figure3_published.csv").open(newline="") as file:
        told = {
            float(row["sigma"]): float(row["ours"])
            for row in csv.DictReader(file)
            if row["model"] == "Gaussian" and row["ours"]
        }
    assert told.keys() == set(SIGMAS)
    for sigma, ours in told.items():
        assert ours == pytest.approx(published.share_at(sigma, found), abs=2e-5)
