"""The table of samplers: calls, noise and settings of each row, beside the walks behind them."""

import pytest
import torch
from walks import last, same, stub

from linear_structure.sampling import chains
from linear_structure.sampling.ablation import Ablation
from linear_structure.sampling.grids import ve_grid
from linear_structure.sampling.langevin import Corrector, annealed
from linear_structure.sampling.scales import step_ratio
from linear_structure.sampling.seeds import Seeds
from linear_structure.sampling.table import SAMPLERS, Settings, chosen_settings, find
from linear_structure.system.errors import UsageError

STEPS = 6
TOLD = Settings(variance="beta", eta=0.3, corrector_steps=2, corrector_ratio=0.2, level_steps=4)
STOCHASTIC = [name for name, row in SAMPLERS.items() if row.stochastic]


def levels(name):
    words = SAMPLERS[name].discretization
    return Ablation(STEPS, discretization=words, sigma_min=0.1, sigma_max=20.0).grid()


class Counted:
    """A denoiser and a noise that count their calls."""

    def __init__(self, seed=0):
        self.calls, self.draws = 0, []
        self.generator = torch.Generator().manual_seed(seed)

    def denoise(self, x, sigma):
        self.calls += 1
        return stub(x, sigma)

    def noise(self, x):
        self.draws.append(torch.randn(x.shape, generator=self.generator, dtype=x.dtype))
        return self.draws[-1]


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(5)
    return 20 * torch.randn(3, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("settings", [Settings(), TOLD], ids=["defaults", "told"])
@pytest.mark.parametrize("skip", [0, 2, STEPS - 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_says_how_many_calls_it_makes(name, skip, settings, x):
    row, counted = SAMPLERS[name], Counted()
    steps = list(row.run(counted.denoise, x, levels(name), skip, counted.noise, settings))
    assert counted.calls == row.calls(STEPS, skip, settings)
    assert bool(counted.draws) == row.stochastic
    if row.stochastic:
        assert len(steps) == counted.calls + 1


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_level_has_its_noise_whatever_was_skipped(name, x):
    """All draws are those of the whole walk, skipped ones too."""
    row, whole, skipped = SAMPLERS[name], Counted(), Counted()
    list(row.run(whole.denoise, x, levels(name), 0, whole.noise, TOLD))
    list(row.run(skipped.denoise, x, levels(name), 3, skipped.noise, TOLD))
    assert torch.equal(torch.stack(whole.draws), torch.stack(skipped.draws))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_rest_of_a_walk_does_not_depend_on_how_it_got_there(name, x):
    """From the state at level k, the row that skips k gives the rest of the whole walk."""
    row, whole, again = SAMPLERS[name], Counted(), Counted()
    steps = list(row.run(whole.denoise, x, levels(name), 0, whole.noise, TOLD))
    middle = next(i for i, step in enumerate(steps) if step.sigma == levels(name)[3])
    rest = row.run(again.denoise, steps[middle].x, levels(name), 3, again.noise, TOLD)
    assert same(rest, steps[middle:])


WALKS = {
    "ancestral": lambda d, x, s, n: chains.chain(d, x, chains.beta(s), n),
    "ddim": lambda d, x, s, n: chains.chain(d, x, chains.ddim(s, 0.3), n),
    "pc": lambda d, x, s, n: chains.chain(d, x, chains.reverse(s), n, Corrector(0.2, 2)),
    "annealed": lambda d, x, s, n: annealed(
        d, x, s, 4, step_ratio(200 ** (1 / (STEPS - 1)), 4).ratio, n
    ),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_row_is_the_walk_that_it_names(name, x):
    row, ours, theirs = SAMPLERS[name], Counted(), Counted()
    got = last(row.run(ours.denoise, x, levels(name), 0, ours.noise, TOLD))
    want = last(WALKS[name](theirs.denoise, x, levels(name), theirs.noise))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_ancestral_has_the_small_variance_unless_told(x):
    ours, theirs, sigmas = Counted(), Counted(), levels("ancestral")
    steps = find("ancestral").run(ours.denoise, x, sigmas, 0, ours.noise, Settings())
    rules = chains.posterior(sigmas)
    assert same(steps, chains.chain(theirs.denoise, x, rules, theirs.noise))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_sample_does_not_depend_on_its_batch(name):
    def ends(seeds):
        source = Seeds.of(seeds)
        start = 20 * source.latents((4,)).double()
        return last(SAMPLERS[name].run(stub, start, levels(name), 0, source.noise, Settings()))

    assert torch.equal(ends([7, 8, 9])[1], ends([8])[0])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_chain_without_noise_is_refused(name, x):
    with pytest.raises(ValueError, match="noise\\(x\\) is needed"):
        next(SAMPLERS[name].run(stub, x, levels(name), 0, None, Settings()))


def test_inputs_name_the_settings_of_the_row_and_what_follows_from_them():
    assert find("heun").inputs(levels("heun"), TOLD) == {}
    told = find("pc").inputs(levels("pc"), TOLD)
    assert told == {"settings": {"corrector_steps": 2, "corrector_ratio": 0.2}}
    told = find("annealed").inputs(levels("annealed"), TOLD)
    assert told["settings"] == {"level_steps": 4}
    assert told["ratio"] == pytest.approx(step_ratio(200 ** (1 / (STEPS - 1)), 4).ratio)


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        (
            "heun",
            {"corrector_steps": 2},
            "--corrector-steps belongs to the sampler pc; heun has no",
        ),
        ("ddim", {"variance": "beta"}, "--variance belongs to the sampler ancestral; ddim has eta"),
        ("euler", {"eta": 0.1}, "--eta belongs to the sampler ddim; euler has no settings"),
        ("ddim", {"eta": 1.5}, "option 'eta' is 1.5: expected 0 to 1"),
        ("pc", {"corrector_steps": 0}, "expected 1 to 1000"),
        ("pc", {"corrector_ratio": 1.0}, "option 'corrector_ratio' is 1.0"),
        ("ancestral", {"variance": "large"}, "expected one of posterior, beta"),
    ],
)
def test_settings_of_others_or_out_of_range_are_refused(name, told, said):
    with pytest.raises(UsageError, match=said):
        chosen_settings(name, told)


def test_settings_that_are_not_told_have_their_defaults():
    assert chosen_settings("pc", {"corrector_steps": 3}) == Settings(corrector_steps=3)


def test_annealed_needs_two_levels(x):
    sigmas = torch.tensor([20.0, 0.0], dtype=torch.float64)
    with pytest.raises(UsageError, match="2 levels or more"):
        next(find("annealed").run(stub, x, sigmas, 0, torch.randn_like, Settings()))


@pytest.mark.parametrize(
    ("sigmas", "said"),
    [
        (Ablation(STEPS).grid(), "evenly spaced in log sigma: the ratio .* from 3.278 to 42.54"),
        ([8.0, 4.0, 1.95, 0.0], "from 2 to 2.051"),
        (ve_grid(3, 80 - 1e-13, 80.0), "no step for these levels"),
    ],
    ids=["edm", "rounded", "close"],
)
def test_annealed_refuses_levels_that_its_step_does_not_fit(sigmas, said, x):
    grid = torch.as_tensor(sigmas, dtype=torch.float64)
    with pytest.raises(UsageError, match=said):
        next(find("annealed").run(stub, x, grid, 0, torch.randn_like, Settings()))
    with pytest.raises(UsageError, match=said):
        find("annealed").inputs(grid, Settings())


def test_annealed_takes_levels_that_are_hardly_rounded():
    grid = torch.tensor([8.0, 4.0, 1.99, 0.0], dtype=torch.float64)
    assert find("annealed").inputs(grid, Settings())["ratio"] == step_ratio(2.0, 3).ratio


def test_an_unknown_sampler_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match="'magic': expected one of heun, dpmpp_2m"):
        find("magic")


@pytest.mark.parametrize("name", ["ancestral", "ddim", "pc", "annealed"])
def test_a_chain_of_equal_levels_is_refused_in_a_sentence(name):
    sigmas = torch.tensor([8.0, 4.0, 4.0, 2.0, 0.0])
    with pytest.raises(UsageError, match=r"no step between equal levels, and 1 of these 4|evenly"):
        find(name).inputs(sigmas, Settings())
