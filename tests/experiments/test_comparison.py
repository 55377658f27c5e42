"""Comparisons of a network with analytic models, where the network is an analytic model itself."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from edm.network import network_of
from experiments import comparison
from experiments.comparison import (
    CLASSES,
    PARTS,
    SPHERICAL,
    Key,
    States,
    compared,
    low_rank,
    models,
    on_noised,
    refined,
    scores,
    solution,
    solutions,
)
from experiments.findings import beaten_range, equal_above, settling, summary
from experiments.sampling import Sampling
from linear_structure import fit
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import sigma_grid
from linear_structure.sampling.samplers import heun
from linear_structure.system.machine import Machine
from linear_structure.system.store import kept

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (60, 1, 4, 4), generator=GENERATOR, dtype=torch.uint8)
GAUSSIAN = Gaussian.from_samples(from_uint8(IMAGES.flatten(1)))
X = 80 * torch.randn(40, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)
SIGMAS = sigma_grid(18)


def agreement(steps, denoise):
    """How close a model's score is to the network's at its Steps."""
    levels = [float(step.sigma) for step in steps if step.sigma > 0]
    return SimpleNamespace(sigma=levels, **comparison.agreement(scores(steps, denoise)))


def deviation(steps, model, sigmas):
    """How far a model's solution is from the network's Steps."""
    return SimpleNamespace(**comparison.deviation(solutions(steps, model, sigmas)))


def trajectory(steps: int = 18):
    return list(heun(GAUSSIAN.denoise, X, sigma_grid(steps)))


def test_a_model_agrees_with_itself_and_less_with_one_that_knows_less():
    steps = list(on_noised(GAUSSIAN.denoise, from_uint8(IMAGES), SIGMAS[:-1]))
    same = agreement(steps, GAUSSIAN.denoise)
    assert not torch.tensor(same.error).any()
    assert same.explained == [1.0] * 18
    other = agreement(steps, Isotropic(GAUSSIAN.mean).denoise)
    assert min(error[0] for error in other.error) > 0
    assert other.sigma == SIGMAS[:-1].tolist()


def test_relative_error_is_that_of_the_scores():
    """Doubling the distance to x doubles the score: an error of 1, and nothing explained."""
    steps = trajectory()

    def doubled(x, sigma):
        return x + 2 * (GAUSSIAN.denoise(x, sigma) - x)

    assert torch.allclose(torch.tensor(agreement(steps, doubled).error), torch.tensor(1.0))
    nothing = agreement(steps, lambda x, sigma: x)
    assert torch.allclose(torch.tensor(nothing.error), torch.tensor(1.0))
    assert max(nothing.explained) < 1e-12  # the spread is that about the mean: zero at most


def test_a_finer_grid_is_the_grid_of_more_steps():
    assert torch.allclose(refined(SIGMAS), sigma_grid(4 * 17 + 1), rtol=1e-12)
    assert torch.equal(refined(SIGMAS)[:-1:4], SIGMAS[:-1])


@pytest.mark.parametrize("name", ["mixture", "point cloud"])
def test_numerical_solutions_have_a_level_for_each_of_the_networks(name):
    model = {
        "mixture": fit.mixture_of(IMAGES, 3),
        "point cloud": PointCloud(IMAGES.flatten(1)),
    }[name]
    steps = list(solution(model, X, SIGMAS))
    assert [float(step.sigma) for step in steps] == SIGMAS[:-1].tolist()
    for step in steps:
        assert torch.allclose(step.denoised, model.denoise(step.x, step.sigma), atol=1e-6)


def test_closed_and_numerical_solutions_agree_to_second_order():
    """A mixture of one Gaussian is solved on a grid, the Gaussian in closed form."""
    mixture = GaussianMixture(torch.ones(1, dtype=torch.float64), (GAUSSIAN,))
    errors = []
    for steps in (10, 20, 40):
        sigmas = sigma_grid(steps)
        closed = list(solution(GAUSSIAN, X, sigmas))[-1].x
        errors.append(float((list(solution(mixture, X, sigmas))[-1].x - closed).norm()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.25)


def test_the_solution_of_the_networks_own_model_deviates_by_the_solver_alone():
    coarse, fine = (
        deviation(trajectory(steps), GAUSSIAN, sigma_grid(steps)).state[-1][1] for steps in (18, 36)
    )
    assert fine < coarse / 3
    assert coarse < 0.1
    other = deviation(trajectory(), Isotropic(GAUSSIAN.mean), SIGMAS)
    assert other.state[0] == [0.0, 0.0, 0.0]
    assert other.state[-1][0] > coarse


def test_components_settle_in_order_of_their_variance():
    steps = list(heun(GAUSSIAN.denoise, X, sigma_grid(200)))
    settled = settling(steps, GAUSSIAN, 8)
    assert settled.order == pytest.approx(1)
    assert settled.half == pytest.approx(settled.expected_half, rel=0.01)
    gain, expected = torch.tensor(settled.gain), torch.tensor(settled.expected)
    assert gain.shape == (8, 200)
    assert torch.allclose(gain, expected, rtol=0.01)


def curve(*errors):
    return {"sigma": [10.0, 1.0, 0.1], "error": [[e, e, e] for e in errors]}


def test_where_a_model_beats_another_and_where_they_are_equal():
    flat, late = curve(0.1, 0.5, 0.9), curve(0.1, 0.4, 0.5)
    assert beaten_range(late, flat) == (0.1, 1.0)
    assert beaten_range(curve(0.05, 0.6, 0.9), flat) == (10.0, 10.0)
    assert beaten_range(flat, late) is None
    assert equal_above(late, flat) == 10.0
    assert equal_above(flat, flat) == 0.1
    assert equal_above(curve(1, 1, 1), flat) is None


def test_the_models_are_those_that_the_images_allow():
    known, rank = models(GAUSSIAN, IMAGES), low_rank(GAUSSIAN)
    titles = [key.title for key in known]
    first = ["isotropic", "isotropic with variance", "Gaussian"]
    assert titles[:4] == [*first, f"mixture of 1, rank {rank}"]
    assert Key("mixture", 50) in known and "mixture of 50" in titles
    assert Key("mixture", 100) not in known
    assert [key.title for key in models(GAUSSIAN, None)] == first
    held = GAUSSIAN.eigenvalues[:rank].sum() / GAUSSIAN.eigenvalues.sum()
    assert 0.95 <= held < 0.95 + float(GAUSSIAN.eigenvalues[rank - 1])


def test_the_isotropic_model_with_variance_has_that_of_the_data():
    spherical = models(GAUSSIAN, None)[SPHERICAL]()
    assert spherical.s0**2 * 16 == pytest.approx(float(GAUSSIAN.eigenvalues.sum()))


def test_the_mixture_of_the_classes_is_theirs_and_needs_two_images_of_each():
    labels = torch.arange(60) % 3
    mixture = models(GAUSSIAN, IMAGES, labels=labels)[CLASSES]()
    own = Gaussian.from_samples(from_uint8(IMAGES.flatten(1))[labels == 1])
    assert mixture.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert torch.equal(mixture.components[1].mean, own.mean)
    assert CLASSES not in models(GAUSSIAN, IMAGES, labels=torch.arange(60))


def test_at_pure_noise_the_unexplained_share_is_a_ratio_of_mean_squares():
    network = network_of(GAUSSIAN.denoise, (1, 4, 4), dtype=torch.float64)
    states, model = States(Sampling(network, SIGMAS), range(20)), Isotropic(GAUSSIAN.mean)
    found = comparison.agreement(states.measure("noise", model))
    for level, sigma in enumerate(states.levels("noise")):
        x = states.noise[level].x
        ours, theirs = model.denoise(x, sigma) - x, GAUSSIAN.denoise(x, sigma) - x
        squares = [each.flatten(1).square().sum(1) for each in (ours - theirs, theirs)]
        assert 1 - found["explained"][level] == pytest.approx(
            float(squares[0].sum() / squares[1].sum())
        )
        assert 1 - found["share"][level] == pytest.approx(float((squares[0] / squares[1]).mean()))
    assert float(states.noise[0].x.std() / states.noise[0].sigma) == pytest.approx(1, rel=0.1)


def test_states_say_whether_they_are_noised_images():
    network = network_of(GAUSSIAN.denoise, (1, 4, 4), dtype=torch.float64)
    sampling, seeds = Sampling(network, sigma_grid(3)), range(40)
    assert States(sampling, seeds, IMAGES).where["noised"] == "noised images"
    own = "the network's own samples, noised"
    assert States(sampling, seeds).where["noised"] == own
    assert States(sampling, range(61), IMAGES).where["noised"] == own
    conditional = network_of(GAUSSIAN.denoise, (1, 4, 4), dtype=torch.float64, label_dim=2)
    assert States(Sampling(conditional, sigma_grid(3)), seeds, IMAGES).where["noised"] == own


def test_findings_name_each_claim():
    network = network_of(GAUSSIAN.denoise, (1, 4, 4), dtype=torch.float64)
    states = States(Sampling(network, SIGMAS), range(40), IMAGES)
    numbers = {
        key: compared(states, {part: states.measure(part, make()) for part in PARTS})
        for key, make in models(GAUSSIAN, IMAGES, (1, 2)).items()
    }
    found = summary(numbers, settling(trajectory(), GAUSSIAN, 4))
    assert set(found["score explained by the Gaussian"].values()) == {1.0}
    assert found["mixtures beat the Gaussian at sigmas from, to"] == {"mixture of 2": None}
    assert found["the point cloud equals the Gaussian above sigma"] is None
    assert found["states"] == "noised images"
    assert min(found["score explained by the point cloud"].values()) < 0


def test_numbers_of_another_model_are_not_reused_under_its_key(tmp_path):
    """Those of a model that the Gaussian and the images tell are, and it is not made again."""
    network = network_of(GAUSSIAN.denoise, (1, 4, 4), dtype=torch.float64)
    states, key, made = States(Sampling(network, sigma_grid(3)), range(2)), Key("toy"), []
    machine = Machine(torch.device("cpu"), torch.get_num_threads())

    def fitted(images, *_):
        made.append(1)
        return PointCloud(images.flatten(1))

    def numbers(images, **others):
        makers = {**models(GAUSSIAN, images, (2,)), **others.get("makers", {})}
        study = comparison.study_of(states.sampling, machine, makers, IMAGES, tmp_path)
        return study.numbers(states, ("trajectory",))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "mixture_of", fitted)
        toys = [{key: lambda s0=s0: Isotropic(GAUSSIAN.mean, s0)} for s0 in (1.0, 7.0, 1.0)]
        one, seven, again = (numbers(IMAGES, makers=toy)[key]["trajectory"] for toy in toys)
        assert torch.equal(one, again) and not torch.equal(one, seven)
        assert len(made) == 2  # with the low rank and without, each once
        points = [numbers(images)[comparison.POINTS] for images in (IMAGES, 255 - IMAGES)]
        assert not torch.equal(*(each["trajectory"] for each in points))


def test_the_key_of_numbers_stays(tmp_path):
    """Numbers on disk are found as long as nothing that they depend on changes."""
    network = network_of(GAUSSIAN.denoise, (1, 4, 4), dtype=torch.float64)
    machine, sampling = Machine(torch.device("cpu"), 1), Sampling(network, SIGMAS)
    makers = models(GAUSSIAN, IMAGES, (2,))
    study = comparison.study_of(sampling, machine, makers, IMAGES, tmp_path)
    assert list(study.inputs) == [
        "network", "gaussian", "images", "sigmas", "levels", "refinement", "device", "threads",
    ]  # fmt: skip
    assert not study.told


def test_kept_numbers_are_made_once_for_equal_inputs(tmp_path):
    path, calls = tmp_path / "numbers.json", []

    def make():
        calls.append(1)
        return {"values": [1.5, 2.5]}

    for inputs in ({"a": 1}, {"a": 1}, {"a": 2}):
        assert kept(path, inputs, make) == {"values": [1.5, 2.5]}
    assert len(calls) == 2
    path.write_text(path.read_text()[:20])
    assert kept(path, {"a": 2}, make) == {"values": [1.5, 2.5]}
    assert len(calls) == 3
