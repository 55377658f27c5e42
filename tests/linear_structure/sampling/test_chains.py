"""Chains: the published steps, exact variances on Gaussian data, orders, slices and noise."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from walks import last, same, stub

from linear_structure.sampling.chains import (
    alphas,
    beta,
    chain,
    ddim,
    euler_maruyama,
    posterior,
    reverse,
    vp_reverse,
)
from linear_structure.sampling.grids import sigma_grid, ve_grid
from linear_structure.sampling.langevin import Corrector
from linear_structure.sampling.processes import VE, VP, SubVP, ddpm_grid, times
from linear_structure.sampling.samplers import discard, euler, final
from linear_structure.sampling.seeds import Seeds

RULES = {
    "posterior": posterior,
    "beta": beta,
    "reverse": reverse,
    "ddim0": lambda sigmas: ddim(sigmas, 0.0),
    "ddim05": lambda sigmas: ddim(sigmas, 0.5),
    "vp_reverse_diffusion": vp_reverse,
}
PROCESSES = [VE(0.05, 20.0), VP(), SubVP()]


def start(count, dim, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(count, dim, generator=generator, dtype=torch.float64)


def linear(lam):
    """The denoiser of N(0, diag(lam))."""
    return lambda x, sigma: lam / (lam + sigma**2) * x


def all_modes(gaussian):
    """The variances of all directions, those in which there are no data too."""
    lam = torch.zeros(gaussian.dim, dtype=torch.float64)
    lam[: len(gaussian.eigenvalues)] = gaussian.eigenvalues
    return lam


def variances(lam, rules, begin, corrector_ratio=None):
    """After a chain on N(0, diag(lam)) that starts with variances `begin`: by recursion."""
    v = begin
    for sigma, keep, pull, spread in rules:
        whole = lam + sigma**2
        if corrector_ratio is not None:
            h = 2 * (corrector_ratio * sigma) ** 2
            v = (1 - h / whole) ** 2 * v + 2 * h
        v = (keep + pull * lam / whole) ** 2 * v + spread**2
    return v


def close(a, b, tolerance=1e-10):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("steps", "stride"), [(50, 1), (1000, 111)])
@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_golden_ones(golden, name, steps, stride):
    rules = RULES[name](ddpm_grid(steps))
    assert len(rules) == steps
    table = torch.tensor([rule[1:] for rule in rules], dtype=torch.float64)[::stride]
    assert close(table, golden[f"ddpm{steps}_{name}"])


@pytest.mark.parametrize("name", ["posterior", "beta", "reverse"])
def test_runs_are_the_golden_ones(golden, g4, recorded, name):
    rules = RULES[name](golden["run_sigmas"])
    end = final(chain(g4.denoise, 5 * golden["run_x0"], rules, recorded))
    assert close(end, golden[f"run_chain_{name}"])


@pytest.mark.parametrize(("norms", "name"), [("level", "sigma"), ("batch", "batch")])
def test_corrected_runs_are_the_golden_ones(golden, g4, recorded, norms, name):
    x, rules = 5 * golden["run_x0"], reverse(golden["run_sigmas"])
    end = final(chain(g4.denoise, x, rules, recorded, Corrector(norms=norms)))
    assert close(end, golden[f"run_pc_{name}"])


def test_a_batch_of_one_has_norms_of_its_own(golden, g4):
    """As the published corrector has where a batch is one sample."""
    rules, corrector = reverse(golden["run_sigmas"]), Corrector(norms="batch")
    for row, expected in enumerate(golden["run_pc_sample"]):
        x, draws = 5 * golden["run_x0"][row, None], iter(golden["run_noise"][:, row, None])
        end = final(chain(g4.denoise, x, rules, lambda x, draws=draws: next(draws), corrector))
        assert close(end[0], expected)


PUBLISHED = {
    # x_t, score, D -> mean and variance of the next x_t, with 1 - beta and both cumulative products
    "posterior": lambda x, score, d, a, bar, bar_next: (
        bar_next.sqrt() * (1 - a) / (1 - bar) * d + a.sqrt() * (1 - bar_next) / (1 - bar) * x,
        (1 - a) * (1 - bar_next) / (1 - bar),
    ),
    "beta": lambda x, score, d, a, bar, bar_next: ((x + (1 - a) * score) / a.sqrt(), 1 - a),
    "vp_reverse_diffusion": lambda x, score, d, a, bar, bar_next: (
        (2 - a.sqrt()) * x + (1 - a) * score,
        1 - a,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_rule_is_the_published_step_of_the_scaled_state(name):
    """Ho et al. 2020, equations 7 and 11, and Song et al. 2021, equation 46."""
    sigmas = ddpm_grid(30)
    x, n = start(2, 3), start(2, 3, seed=2)
    bars = 1 / (1 + sigmas**2)
    for number, rule in enumerate(RULES[name](sigmas)[:-1]):
        d, (bar, bar_next) = stub(x, rule.sigma), bars[number : number + 2]
        score = (d - x) / (bar.sqrt() * rule.sigma**2)
        a = bar / bar_next
        mean, variance = PUBLISHED[name](bar.sqrt() * x, score, d, a, bar, bar_next)
        ours = rule.keep * x + rule.pull * d + rule.spread * n
        assert close(ours, (mean + variance.sqrt() * n) / bar_next.sqrt(), 1e-11)


@pytest.mark.parametrize("process", PROCESSES)
def test_euler_maruyama_is_eulers_step_of_the_scaled_state(process):
    x, n = start(2, 3), start(2, 3, seed=2)
    t = times(20, 0.01)
    rules = euler_maruyama(process, 20, 0.01)
    assert torch.equal(torch.stack([rule.sigma for rule in rules]), process.grid(20, 0.01)[:-1])
    scale = process.scale(process.sigma(t))
    for i, rule in enumerate(rules[:-1]):
        d, dt, variance = stub(x, rule.sigma), t[i] - t[i + 1], process.diffusion(t[i])
        score = (d - x) / (scale[i] * rule.sigma**2)
        drift = process.drift(t[i]) * scale[i] * x - variance * score
        after = scale[i] * x - drift * dt + (variance * dt).sqrt() * n
        assert close(rule.keep * x + rule.pull * d + rule.spread * n, after / scale[i + 1], 1e-11)
    assert rules[-1][1:] == (0, 1, 0)


def test_special_cases_meet():
    sigmas, x, noise = ve_grid(12, 0.05, 5.0), start(3, 4), torch.ones_like
    walk = list(chain(stub, x, ddim(sigmas, 0.0), noise))
    for ours, theirs in zip(walk, euler(stub, x, sigmas), strict=True):
        assert close(ours.x, theirs.x, 1e-13)
    ancestral = final(chain(stub, x, posterior(sigmas), noise))
    assert close(final(chain(stub, x, ddim(sigmas, 1.0), noise)), ancestral, 1e-13)


def test_variances_on_gaussian_data_are_the_golden_ones(golden, one_source_each):
    lam = golden["lam"]
    for row, steps in enumerate((50, 100, 1000)):
        sigmas = ddpm_grid(steps)
        for name in ("posterior", "beta", "reverse", "ddim0"):
            rules, begin = RULES[name](sigmas), (1 + sigmas[0] ** 2).expand_as(lam)
            x, noise = one_source_each(begin, steps)
            walked = final(chain(linear(lam), x, rules, noise)).square().sum(0)
            assert close(walked, golden[f"chain_variance_{name}"][row])
            assert close(walked, variances(lam, rules, begin))


def test_corrected_variances_are_the_golden_ones(golden, one_source_each):
    lam = golden["lam"]
    for row, steps in enumerate((50, 200, 1000)):
        rules = reverse(ve_grid(steps, 0.02, 50.0))
        begin = torch.full_like(lam, 50.0**2)
        for column, corrector in enumerate((None, Corrector())):
            x, noise = one_source_each(begin, steps * (1 + column))
            walked = final(chain(linear(lam), x, rules, noise, corrector)).square().sum(0)
            assert close(walked, golden["ve_pc_variance"][row, column])


@pytest.mark.parametrize(
    ("name", "ratios"),
    [
        ("beta", (1.0107, 1.0047, 1.0004)),
        ("posterior", (0.8370, 0.9092, 0.9890)),
        ("reverse", (1.1399, 1.0645, 1.0060)),
        ("ddim0", (0.9159, 0.9568, 0.9953)),
    ],
)
def test_the_trace_that_ddpm_gives_the_digits(digits_gaussian, name, ratios):
    lam = digits_gaussian.eigenvalues
    assert (len(lam), float(lam.sum())) == (61, pytest.approx(18.761, abs=5e-4))
    for steps, expected in zip((50, 100, 1000), ratios, strict=True):
        sigmas = ddpm_grid(steps)
        v = variances(lam, RULES[name](sigmas), 1 + sigmas[0] ** 2)
        assert float(v.sum() / lam.sum()) == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize(
    ("name", "ratios"),
    [("beta", (1.184, 1.080, 1.0073)), ("posterior", (0.683, 0.797, 0.966))],
)
def test_the_mean_ratio_of_variances_of_noised_digits(digits_gaussian, name, ratios):
    lam = all_modes(digits_gaussian) + 0.01
    for steps, expected in zip((50, 100, 1000), ratios, strict=True):
        sigmas = ddpm_grid(steps)
        v = variances(lam, RULES[name](sigmas), 1 + sigmas[0] ** 2)
        assert float((v / lam).mean()) == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize(
    ("name", "ratio", "ratios"),
    [
        ("reverse", None, (1.1767, 1.0392, 1.0067)),
        ("posterior", None, (0.8552, 0.9606, 0.9911)),
        ("reverse", 0.16, (1.120, 1.013, 1.008)),
        ("posterior", 0.16, (0.882, 0.979, 1.006)),
    ],
)
def test_the_trace_that_ve_gives_the_digits(digits_gaussian, name, ratio, ratios):
    """With the corrector the expected numbers were sampled, with a standard error of 0.005."""
    lam, tolerance = digits_gaussian.eigenvalues, 5.1e-5 if ratio is None else 3 * 5e-3
    for steps, expected in zip((50, 200, 1000), ratios, strict=True):
        sigmas = ve_grid(steps, 0.02, 50.0)
        v = variances(lam, RULES[name](sigmas), sigmas[0] ** 2, ratio)
        assert float(v.sum() / lam.sum()) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("steps", "count", "expected"), [(50, 4000, 1.117), (200, 2000, 1.010), (1000, 500, 1.007)]
)
def test_the_trace_that_norms_of_a_batch_give_the_digits(digits_gaussian, steps, count, expected):
    """The expected numbers were sampled too, with a standard error of 0.005."""
    lam, sigmas = all_modes(digits_gaussian), ve_grid(steps, 0.02, 50.0)
    generator = torch.Generator().manual_seed(0)

    def noise(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    x = sigmas[0] * noise(torch.empty(count, 64, dtype=torch.float64))
    corrector = Corrector(norms="batch")
    square = final(chain(linear(lam), x, reverse(sigmas), noise, corrector)).square().sum(1)
    error = math.hypot(0.005, float(square.std() / lam.sum()) / math.sqrt(count))
    assert float(square.mean() / lam.sum()) == pytest.approx(expected, abs=3 * error)


def test_norms_of_a_samples_own_bias_the_trace(digits_gaussian):
    """By 0.029 after 200 steps, 1.039 instead of 1.010, each with a standard error of 0.005; here
    300 samples differ from themselves in one batch with the same noise."""
    lam, sigmas, count = all_modes(digits_gaussian), ve_grid(200, 0.02, 50.0), 300
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(401, count, 1, 64, generator=generator, dtype=torch.float64)

    def square(rows):
        draws = iter(rows)
        x, corrector = sigmas[0] * next(draws), Corrector(norms="batch")
        return last(
            chain(linear(lam), x, reverse(sigmas), lambda x: next(draws), corrector)
        ).square()

    own = torch.vmap(square, in_dims=1)(rows)[:, 0]
    change = (own - square(rows[:, :, 0])).sum(1) / lam.sum()
    error = float(change.std()) / math.sqrt(count)
    assert float(change.mean()) > 5 * error
    assert float(change.mean()) == pytest.approx(0.029, abs=3 * math.hypot(0.005, 0.005, error))


@pytest.mark.parametrize("process", PROCESSES)
def test_euler_maruyama_converges_at_order_one(golden, process):
    """To the variance of the denoised data at the end, from that of the noised data."""
    lam = golden["lam"]

    def error(steps):
        rules = euler_maruyama(process, steps, 1e-2)
        exact = lam**2 / (lam + rules[-1].sigma ** 2)
        return float((variances(lam, rules, lam + rules[0].sigma ** 2) / exact - 1).abs().max())

    errors = [error(steps) for steps in (500, 1000, 2000)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("name", RULES)
def test_chains_converge_at_order_one(golden, name):
    """To variances well above the lowest levels, as the steps of DDPM grow in number."""
    lam = golden["lam"][:4]

    def error(steps):
        sigmas = ddpm_grid(steps)
        return (variances(lam, RULES[name](sigmas), lam + sigmas[0] ** 2) / lam - 1).abs().max()

    errors = [float(error(steps)) for steps in (1000, 2000, 4000)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("name", RULES)
def test_a_teleport_makes_a_chain_no_worse(digits_gaussian, name):
    """It arrives with the exact variance, so that only the errors of the steps left remain."""
    lam, sigmas = digits_gaussian.eigenvalues, ddpm_grid(100)
    rules = RULES[name](sigmas)

    def error(k):
        return float((variances(lam, rules[k:], lam + sigmas[k] ** 2) / lam - 1).abs().sum())

    errors = [error(k) for k in (0, 10, 30, 50, 70)]
    assert errors == sorted(errors, reverse=True)


def test_a_teleported_sample_keeps_the_noise_of_its_steps(g4):
    sigmas, k = ve_grid(20, 0.02, 50.0), 8
    rules, x = posterior(sigmas), 10 * start(3, 4)
    moved = g4.flow(x, sigmas[0], sigmas[k])
    drawn = []

    def listening(seeds):
        return lambda x: drawn.append(seeds.noise(x)) or drawn[-1]

    final(chain(g4.denoise, x, rules, listening(Seeds.of(range(3)))))
    whole, seeds = drawn.copy(), Seeds.of(range(3))
    drawn.clear()
    discard(seeds.noise, x, k)
    final(chain(g4.denoise, moved, rules[k:], listening(seeds)))
    assert torch.equal(torch.stack(drawn), torch.stack(whole[k:]))


@pytest.mark.parametrize("corrector", [None, Corrector(steps=2, norms="batch")])
@pytest.mark.parametrize("k", [0, 1, 7, 11, 12])
def test_sliced_rules_give_the_rest_of_the_trajectory(k, corrector):
    x, rules, each = start(3, 4), beta(ddpm_grid(40)[28:]), 1 if corrector is None else 3
    full = list(chain(stub, x, rules, Seeds.of(range(3)).noise, corrector))
    noise = Seeds.of(range(3)).noise
    discard(noise, x, k * each)
    rest = chain(stub, full[k * each].x, rules[k:], noise, corrector)
    assert same(rest, full[k * each :])


@pytest.mark.parametrize("corrected", [0, 1, 3])
def test_steps_their_cost_and_their_noise(corrected):
    sigmas, calls, draws = ve_grid(6, 0.02, 5.0), [], []
    denoise = lambda x, sigma: calls.append(sigma) or stub(x, sigma)  # noqa: E731
    noise = lambda x: draws.append(x) or torch.ones_like(x)  # noqa: E731
    corrector = Corrector(steps=corrected) if corrected else None
    walk = list(chain(denoise, start(2, 3).float(), ddim(sigmas, 0.0), noise, corrector))
    expected = sigmas[:-1].repeat_interleave(1 + corrected)
    assert torch.equal(torch.stack(calls), expected)
    assert torch.equal(
        torch.stack([step.sigma for step in walk]), torch.cat([expected, sigmas[-1:]])
    )
    assert len(draws) == len(calls)
    assert all(step.x.dtype == torch.float64 for step in walk)
    assert all(torch.equal(step.denoised, stub(step.x, step.sigma)) for step in walk[:-1])
    assert walk[-1].denoised is walk[-1].x
    assert close(walk[-1].x, walk[-2].denoised, 1e-14)


def test_a_chain_runs_where_x_is():
    x = start(2, 3).to("meta")
    assert last(chain(stub, x, posterior(sigma_grid(5)), torch.ones_like, Corrector())).is_meta


def test_vps_corrector_takes_the_alphas_of_its_chain():
    """One step `h = 2 alpha (r sigma)^2`, and the alphas are those of the grid, sliced alike."""
    sigmas, x = ddpm_grid(30), start(2, 3)
    rules, factors = beta(sigmas), alphas(sigmas)
    assert close(factors, 1 - torch.linspace(20, 0.1, 30, dtype=torch.float64) / 30)
    corrector = Corrector(ratio=0.1, alphas=factors)
    first, second, *_ = chain(stub, x, rules, torch.ones_like, corrector)
    h = 2 * factors[0] * (0.1 * sigmas[0]) ** 2
    assert close(second.x, x + h * (first.denoised - x) / sigmas[0] ** 2 + (2 * h).sqrt())
    full = list(chain(stub, x, rules, torch.ones_like, corrector))
    rest = replace(corrector, alphas=factors[10:])
    assert same(chain(stub, full[20].x, rules[10:], torch.ones_like, rest), full[20:])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: posterior(torch.tensor([1.0, 2.0, 0.0])), "levels that decrease, and a final 0"),
        (lambda: beta(torch.tensor([2.0, 1.0])), "a final 0"),
        (lambda: reverse(torch.tensor([2.0, math.nan, 0.0])), "levels that decrease"),
        (lambda: alphas(torch.tensor([2.0, 2.0, 0.0])), "levels that decrease"),
        (lambda: ddim(sigma_grid(5), 1.5), "eta is 1.5"),
        (lambda: euler_maruyama(VP(), 0, 1e-3), "steps is 0"),
        (lambda: euler_maruyama(VP(), 5, 0.0), "end is 0.0"),
    ],
)
def test_wrong_rules_are_refused(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def test_alphas_are_sliced_as_the_rules_are():
    sigmas = ddpm_grid(30)
    corrector = Corrector(alphas=alphas(sigmas))
    with pytest.raises(ValueError, match="30 alphas for 20 rules: slice both alike"):
        list(chain(stub, start(2, 3), beta(sigmas)[10:], torch.ones_like, corrector))
