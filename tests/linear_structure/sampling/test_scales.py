"""Automatic scales: the published table, the equations they solve, and what has no solution."""

import json
import math

import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import ndtr

from linear_structure.sampling.scales import (
    Scales,
    largest_distance,
    ratio,
    step_ratio,
    variance_after,
)
from linear_structure.system.errors import UsageError

# D, sigma_1, gamma(.5) and its levels, levels of .567, published levels, T, r, eps in [0, 1]
PUBLISHED = {
    "CIFAR-10": (3072, 50, "1.03980", "219.2", "232.0", 232, 5, ".06184", "6.184e-06"),
    "CelebA 64": (12288, 90, "1.01951", "472.2", "500.0", 500, 5, ".03337", "3.337e-06"),
    "church 96": (27648, 140, "1.01292", "744.5", "788.6", 788, 4, ".02312", "2.312e-06"),
    "bedroom 128": (49152, 190, "1.00966", "1025.7", "1086.5", 1086, 3, ".01768", "1.768e-06"),
    "FFHQ 256": (196608, 348, "1.00481", "2181.6", "2311.3", 2311, 3, ".00893", "8.932e-07"),
}


def points(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def overlap(gamma, dim):
    between = math.sqrt(2 * dim) * (gamma - 1)
    return ndtr(between + 3 * gamma) - ndtr(between - 3 * gamma)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_table(name):
    dim, sigma_max, gamma, levels, more, published, steps, r, eps = PUBLISHED[name]
    length = math.log(sigma_max / 0.01)
    assert f"{ratio(dim):.5f}" == gamma
    assert f"{1 + length / math.log(ratio(dim)):.1f}" == levels
    assert f"{1 + length / math.log(ratio(dim, 0.567)):.1f}" == more
    scales = Scales.between(sigma_max, 0.01, ratio(dim, 0.567), steps)
    assert scales.levels == published
    assert f"{scales.ratio:.5f}".removeprefix("0") == r
    assert f"{scales.ratio * 0.01**2:.3e}" == eps


@pytest.mark.parametrize(
    ("steps", "eps"), [(1, "7.109e-06"), (3, "6.619e-06"), (10, "5.303e-06"), (100, "1.657e-06")]
)
def test_other_numbers_of_steps_for_cifar(steps, eps):
    assert f"{step_ratio(5000 ** (1 / 231), steps).ratio * 0.01**2:.3e}" == eps


@pytest.mark.parametrize(("r", "q"), [(0.0618, "1.0555"), (0.01, "1.0697"), (0.2, "1.1074")])
def test_the_variance_after_other_steps_for_cifar(r, q):
    assert f"{variance_after(r, 5000 ** (1 / 231), 5):.4f}" == q


def test_ratios_are_the_golden_ones(golden):
    for dim, share, gamma in golden["scales_dim_C_gamma"].tolist():
        assert ratio(int(dim), share) == pytest.approx(gamma, rel=1e-14)


def test_step_sizes_are_the_golden_ones(golden):
    """The golden r were searched, to 1e-4: q is flat there, and here no larger."""
    for gamma, steps, r, q in golden["steps_gamma_T_r_q"].tolist():
        found = step_ratio(gamma, int(steps))
        assert found.ratio == pytest.approx(r, rel=1e-4)
        assert found.variance == pytest.approx(q, abs=1e-10)
        assert found.variance <= q
        assert variance_after(r, gamma, int(steps)) == pytest.approx(q, rel=1e-13)


@pytest.mark.parametrize("dim", [5, 6, 8, 64, 3072])
@pytest.mark.parametrize("share", [1e-3, 0.5, 0.567, 0.95, 0.99, 0.997])
def test_a_ratio_solves_its_equation(dim, share):
    """Also where the closed form, which takes the first term for 1, is off."""
    gamma = ratio(dim, share)
    assert gamma > 1
    assert overlap(gamma, dim) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("gamma", [1.005, 1.04, 1.4, 5.0, 100.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_the_step_is_where_the_variance_is_smallest(gamma, steps):
    best, q = step_ratio(gamma, steps)
    grid = torch.logspace(-6, 0, 2001, dtype=torch.float64)[:-1].tolist()
    assert 1 < q <= min(variance_after(r, gamma, steps) for r in grid) + 1e-14
    for beside in (best * 0.999, best + (1 - best) * 0.001):
        assert variance_after(beside, gamma, steps) >= q


def test_the_largest_distance_is_that_of_all_pairs():
    for block in (1, 7, 512):
        cloud = points(100, 9) + 40
        expected = pdist(cloud.double().numpy()).max()
        assert largest_distance(cloud, block) == pytest.approx(expected, rel=1e-12)
    assert largest_distance(points(1, 3)) == 0
    assert largest_distance(points(1, 3).expand(20, 3)) == 0


def test_progress_goes_through_the_blocks():
    seen = []

    def progress(blocks):
        for rows in blocks:
            yield rows
            seen.append(len(rows))

    cloud = points(20, 9)
    assert largest_distance(cloud, 8, progress) == largest_distance(cloud)
    assert seen == [8, 8, 4]


def test_the_largest_distance_of_the_digits(digits):
    found = largest_distance(digits)
    assert found == pytest.approx(pdist(digits.numpy()).max(), rel=1e-14)
    assert f"{found:.3f} {largest_distance(digits / 2):.3f}" == "9.627 4.814"


def test_scales_of_data(digits):
    scales = Scales.of(digits, sigma_min=0.05, steps=3)
    assert (scales.levels, scales.steps) == (18, 3)
    assert f"{scales.sigma_max:.2f} {scales.variance:.3f}" == "9.63 1.256"
    assert f"{Scales.of(digits, sigma_min=0.05, steps=6).variance:.3f}" == "1.161"
    grid = scales.grid()
    assert grid.shape == (19,)
    assert torch.allclose(grid[:-2] / grid[1:-1], grid.new_tensor(scales.gamma))
    assert scales.gamma >= ratio(64)
    assert grid[[0, -2, -1]].tolist() == pytest.approx([scales.sigma_max, 0.05, 0])


def test_units_change_sigma_alone(digits):
    here, there = Scales.of(digits, 0.02), Scales.of(digits / 2, 0.01)
    assert here.sigma_max == pytest.approx(2 * there.sigma_max)
    assert (here.levels, here.steps) == (there.levels, there.steps)
    assert (here.gamma, here.ratio, here.variance) == pytest.approx(
        (there.gamma, there.ratio, there.variance)
    )


def test_points_in_the_plane_take_a_ratio_from_the_user():
    assert Scales.of(points(50, 2), gamma=1.3).gamma >= 1.3
    with pytest.raises(ValueError, match=r"dim is 2: .* in fewer, choose one"):
        Scales.of(points(50, 2))


def test_scales_are_kept_as_json(digits):
    scales = Scales.of(digits)
    assert Scales.from_json(json.loads(json.dumps(scales.to_json()))) == scales
    with pytest.raises(UsageError, match="option 'sigma_min' of noise scales is missing"):
        Scales.from_json({"sigma_max": 1.0})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: ratio(4), "dim is 4: technique 2 gives"),
        (lambda: ratio(64, 0.0), "overlap is 0.0"),
        (lambda: ratio(64, 1.0), "overlap is 1.0"),
        (lambda: ratio(64, 0.998), "below 0.9973"),
        (lambda: step_ratio(1.0, 5), "gamma is 1.0: expected a number above 1"),
        (lambda: step_ratio(1 + 1e-9, 5), "steps below 1e-6"),
        (lambda: step_ratio(1.1, 0), "steps is 0"),
        (lambda: variance_after(1.0, 1.1, 5), "ratio is 1.0"),
        (lambda: variance_after(0.1, 1.1, 0), "steps is 0"),
        (lambda: Scales.between(1.0, 2.0, 1.1, 5), "0 < low < high"),
        (lambda: Scales.between(2.0, 1.0, 1.0, 5), "gamma is 1.0"),
        (lambda: largest_distance(torch.empty(0, 3)), "no points"),
    ],
)
def test_mistakes_are_refused(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()
