"""Attention profiles, divergence, mutual information and what linear theory says of codes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm, pearsonr, rankdata

from edm.representation.analysis import (
    Mine,
    copula_information,
    jensen_shannon,
    learned_codes,
    linear_gain,
    mutual_information,
    normalised,
    posterior_variances,
    pressure,
    principal_angles,
    profile,
)
from edm.representation.heads import Attentive
from linear_structure.data.datasets import load
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.system.errors import UsageError

QUICK = Mine(steps=400, batch=128, learning_rate=1e-3)

pytestmark = pytest.mark.usefixtures("one_thread")


def correlated(rho, n, seed=1):
    """(n, 1) each, jointly normal."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    return noise[0], rho * noise[0] + math.sqrt(1 - rho**2) * noise[1]


def truth(rho):
    return -math.log(1 - rho**2) / 2


def test_a_profile_is_the_mean_weight_of_each_level():
    torch.manual_seed(0)
    head, z = Attentive(3, 2, 4).eval(), torch.randn(1500, 3, 2)
    found = profile(head, z)
    assert torch.allclose(found, head.weights(z).double().mean((0, 1)), atol=1e-7)
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)
    hidden = profile(head, z, torch.tensor([True, False, True]))
    assert hidden[1] == 0


def test_jensen_shannon_is_symmetric_in_range_and_golden(golden):
    p, q = golden["p"], golden["q"]
    assert torch.allclose(jensen_shannon(p, q), golden["jsd_bits"], rtol=1e-12)
    many = torch.rand(2, 50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many = many / many.sum(-1, keepdim=True)
    found = jensen_shannon(*many)
    assert torch.equal(found, jensen_shannon(many[1], many[0]))
    theirs = jensenshannon(*many.numpy(), base=2, axis=1) ** 2
    assert np.allclose(found.numpy(), theirs, atol=1e-12)
    assert bool((jensen_shannon(many[0], many[0]) == 0).all())
    apart = torch.eye(3)[:2]
    assert jensen_shannon(*apart) == 1
    assert jensen_shannon(many[0], many[0, :1]).shape == (50,)


def test_the_truth_is_golden(golden):
    for rho, nats in zip(golden["rho"].tolist(), golden["mi_nats"].tolist(), strict=True):
        assert truth(rho) == pytest.approx(nats)


@pytest.mark.slow
@pytest.mark.parametrize("rho", (0.5, 0.9))
def test_a_network_finds_the_information_of_normals(rho):
    found = mutual_information(*correlated(rho, 50_000), Mine(), 0)
    assert found.training == pytest.approx(truth(rho), rel=0.1)
    assert found.held_out == pytest.approx(truth(rho), rel=0.1)


def test_a_network_finds_the_information_of_normals_in_few_steps():
    """Eight draws and seeds gave .94 to 1.03 of the truth."""
    found = mutual_information(*correlated(0.9, 20_000), QUICK, 0)
    assert found.held_out == pytest.approx(truth(0.9), rel=0.1)
    assert found.training == pytest.approx(truth(0.9), rel=0.1)
    nothing = mutual_information(*correlated(0.0, 20_000), QUICK, 0)
    assert max(map(abs, nothing)) < 0.01


def test_information_of_a_seed_is_the_same_to_the_bit():
    rows, few = correlated(0.5, 200), replace(QUICK, steps=5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = mutual_information(*rows, few, 3)
    assert torch.equal(torch.rand(3), expected)
    assert first == mutual_information(*rows, few, 3) != mutual_information(*rows, few, 4)


def test_what_is_learnt_by_heart_is_told_from_what_is_so():
    """Sources that say nothing of each other, five rows each: pairs that come again are no news."""
    noise = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    a, b = noise.repeat_interleave(5, dim=1)
    source = torch.arange(40).repeat_interleave(5)
    by_row = mutual_information(a, b, QUICK, 0)
    by_source = mutual_information(a, b, QUICK, 0, source)
    assert min(by_row) > 0.5
    assert by_source.training > 0.5 > 0 > by_source.held_out


def test_rows_that_do_not_fit_are_refused():
    a, b = correlated(0.5, 8)
    for measure in (copula_information, lambda a, b: mutual_information(a, b, QUICK, 0)):
        with pytest.raises(UsageError, match="expected as many, in pairs"):
            measure(a, b[:7])
    with pytest.raises(UsageError, match="expected two at least"):
        mutual_information(a, b, replace(QUICK, held_out=0.1), 0)


def test_the_copula_s_information_is_closed_and_blind_to_monotone_maps():
    a, b = correlated(0.9, 20_000)
    found = copula_information(a, b)
    scores = [norm.ppf(rankdata(x[:, 0].numpy()) / 20_001) for x in (a, b)]
    assert found == pytest.approx(truth(pearsonr(*scores).statistic))
    assert found == pytest.approx(truth(0.9), abs=4 * 0.9 / math.sqrt(20_000))
    assert copula_information(a.exp(), b**3) == found
    assert copula_information(b, a) == pytest.approx(found)


def test_the_copula_s_information_adds_over_what_is_independent():
    a, b = zip(correlated(0.9, 20_000), correlated(0.5, 20_000, seed=2), strict=True)
    a, b = torch.cat(a, dim=1), torch.cat(b, dim=1)
    assert copula_information(a, b) == pytest.approx(truth(0.9) + truth(0.5), abs=0.03)
    assert copula_information(a.flip(1), b) == pytest.approx(copula_information(a, b))


def test_a_copy_holds_infinitely_much_and_a_constant_nothing():
    a, b = correlated(0.5, 500)
    assert copula_information(a, torch.cat([b, a], dim=1)) == math.inf
    assert copula_information(a, torch.ones(500, 1)) == 0


def test_normalised_information_is_1_of_a_level_in_itself():
    information = torch.tensor([[4.0, 3.0], [3.0, 9.0]])
    assert torch.equal(normalised(information), torch.tensor([[1, 0.5], [0.5, 1]]))
    for wrong in (0.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="finite, above 0"):
            normalised(torch.tensor([[wrong, 0.0], [0.0, 1.0]]))


def test_the_risk_given_a_code_is_golden(golden):
    lam, sigma = golden["lam"], golden["sigma"]
    variances = posterior_variances(lam, sigma)
    risk = variances.sum(-1)
    assert torch.allclose(risk, golden["risk"], rtol=1e-12)
    given = risk - linear_gain(lam, sigma, golden["A"])
    assert torch.allclose(given, golden["risk_given_Ax"], rtol=1e-12)
    turn = torch.tensor([[1.0, 2], [3, -1]], dtype=torch.float64)
    assert torch.allclose(risk - linear_gain(lam, sigma, turn @ golden["A"]), given, rtol=1e-12)
    for dim in range(1, 7):
        top = torch.eye(6, dtype=torch.float64)[:dim]
        left = risk - linear_gain(lam, sigma, top)
        assert torch.allclose(left, golden["risk_given_top_d"][:, dim], atol=1e-12)
    assert torch.allclose(pressure(lam, sigma, 2), golden["pressure_d2"], rtol=1e-9)
    differences = variances[:, 1] - variances[:, 2]
    assert torch.allclose(pressure(lam, sigma, 2), differences, rtol=1e-9)


def test_no_code_beats_the_first_components(golden):
    lam, sigma = golden["lam"], golden["sigma"]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(200, 1, 2, 6, generator=generator, dtype=torch.float64)
    most = posterior_variances(lam, sigma)[:, :2].sum(-1)
    gains = linear_gain(lam, sigma, codes)
    assert gains.shape == (200, 5)
    assert bool((gains < most).all())


@pytest.fixture(scope="module")
def digits_gaussian():
    return Gaussian.from_samples(from_uint8(load("digits").images(), torch.float64).flatten(1))


@pytest.mark.parametrize("dim", (2, 4))
def test_descent_on_the_risk_finds_the_first_components_inside_the_support(digits_gaussian, dim):
    """In pixels the same codes are off: where the data do not vary a code stays as it began."""
    sigma = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    codes = learned_codes(digits_gaussian, sigma, dim, 3000, 0)
    lam, inside = digits_gaussian.eigenvalues, codes @ digits_gaussian.basis
    most = posterior_variances(lam, sigma)[:, :dim].sum(-1)
    assert torch.allclose(linear_gain(lam, sigma, inside), most, rtol=1e-6)
    everywhere = Gaussian(torch.zeros(64), torch.eye(64, dtype=torch.float64), torch.ones(64))
    axes = torch.linalg.qr(
        torch.cat([digits_gaussian.basis, torch.eye(64, dtype=torch.float64)], dim=1)
    ).Q
    for code in codes:
        assert float(principal_angles(code, digits_gaussian)[0]) <= 1
        assert float(principal_angles(code @ axes, everywhere)[0]) > 5


def test_descent_leaves_a_code_undetermined_where_the_pressure_is_small(digits_gaussian):
    codes = learned_codes(digits_gaussian, torch.tensor([0.02, 1.0]), 2, 300, 0)
    low, high = (float(principal_angles(code, digits_gaussian)[0]) for code in codes)
    assert low > 20 > high


def test_an_angle_is_the_one_a_code_was_turned_by():
    axes = torch.linalg.qr(
        torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q
    gaussian = Gaussian(torch.zeros(5), axes[:, :4], torch.tensor([4.0, 3.0, 2.0, 1.0]))
    turn = math.radians(20)
    second = math.cos(turn) * axes[:, 1] + math.sin(turn) * axes[:, 2]
    code = torch.stack([axes[:, 0] + 3 * second, second])
    for outside in (0.0, 5.0):
        angles = principal_angles(code + outside * axes[:, 4], gaussian)
        assert angles.tolist() == pytest.approx([20, 0], abs=1e-5)


def test_a_code_has_a_number_at_least_and_fewer_than_components(golden):
    for dim in (0, 6):
        with pytest.raises(UsageError, match="expected 1 or more, fewer"):
            pressure(golden["lam"], golden["sigma"], dim)
