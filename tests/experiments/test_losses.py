"""Denoising losses: theorems on data in closed form, and the command on a few small images."""

import csv
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edm.checkpoints import shipped
from experiments.comparison import GAUSSIAN, POINTS
from experiments.losses import (
    LEVELS,
    NETWORK,
    Losses,
    Mean,
    averages,
    between,
    closed_losses,
    cross_entropies,
    entropy_bounds,
    noised_losses,
)
from linear_structure import fit, parameters
from linear_structure.data import datasets, plane
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.images import from_uint8
from linear_structure.points import PointCloud
from linear_structure.sampling.grids import ve_grid
from linear_structure.sampling.processes import ddpm_grid
from linear_structure.system.errors import WorkError, run_command
from linear_structure.system.files import digest_of_file

SCRIPT = Path(__file__).parents[2] / "scripts/losses.py"
CONDITIONAL = str(shipped("digits-conditional.safetensors"))
SIGMAS = torch.tensor(LEVELS, dtype=torch.float64)
MODELS = ["isotropic", "Gaussian", "mixture of 10", "point cloud", "network"]


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def within(values, expected, errors=4.0):
    """Whether the means of values (n, L) are the expected ones, but for chance."""
    mean, error = map(torch.tensor, Mean.of(values))
    return bool(((mean - expected).abs() <= errors * error).all())


@pytest.fixture(scope="module")
def digits():
    return from_uint8(datasets.load("digits").images(), torch.float64)


@pytest.fixture(scope="module")
def own(digits):
    """The Gaussian of every second digit."""
    return Gaussian.from_samples(digits[::2].flatten(1))


@pytest.fixture(scope="module")
def flat():
    """20,000 points of the plane's mixture, from 0.05 up, and the Gaussian of its moments."""
    covariance = torch.tensor([[3.26, 0.72], [0.72, 2.44]], dtype=torch.float64)
    gaussian = Gaussian.from_covariance(torch.tensor([0.2, 1.4]).double(), covariance)
    x = plane.mixture().sample(20_000, generator=torch.Generator().manual_seed(0))
    return x, SIGMAS[SIGMAS >= 0.05], gaussian


@pytest.mark.parametrize("kind", ["Gaussian", "isotropic"])
def test_losses_of_a_linear_model_are_the_closed_ones_on_other_images_too(digits, own, kind):
    model = own if kind == "Gaussian" else Isotropic(own.mean, 0.5)
    other = digits[1::2]
    found = noised_losses(model.denoise, other, SIGMAS, noise(0))
    assert within(found - closed_losses(model, other, SIGMAS), 0.0)


def test_what_a_model_loses_is_its_distance_to_the_exact_denoiser(flat):
    """Pythagoras: loss - loss of the exact denoiser = E|D - D_exact|^2 / (sigma^2 d)."""
    x, sigmas, gaussian = flat
    exact = plane.mixture()
    lost = noised_losses(gaussian.denoise, x, sigmas, noise(0))
    lost -= noised_losses(exact.denoise, x, sigmas, noise(0))
    again, columns = noise(0), []
    for sigma in sigmas:
        noisy = x + sigma * again(x)
        apart = gaussian.denoise(noisy, sigma) - exact.denoise(noisy, sigma)
        columns.append(apart.square().mean(1) / sigma**2)
    distance = torch.stack(columns, 1)
    assert within(lost - distance, 0.0)
    assert float(distance.mean(0)[0]) > 10 * Mean.of(distance).error[0]


def test_losses_bound_the_entropy_of_the_mixture(flat):
    """3.6123 +- 0.0021 nats at sigma 0.05, of which the Gaussian alone has 3.8420."""
    x, sigmas, gaussian = flat[0][:5000], *flat[1:]
    found = noised_losses(plane.mixture().denoise, x, sigmas, noise(0))
    closed = closed_losses(gaussian, x, sigmas)
    bound = 2 * entropy_bounds(gaussian, x, sigmas, closed, found, 1.7)
    assert within(bound, 3.6123)
    assert not within(bound, 3.8420)
    assert within(2 * entropy_bounds(gaussian, x, sigmas, closed, closed, 1.7), 3.8420)


@pytest.mark.parametrize("rank", [64, 20])
def test_what_images_cost_a_gaussian_is_closed(digits, own, rank):
    """On images of its own moments, its entropy; on others, as by samples."""
    images, sigma, model = digits[1::2], SIGMAS[5], own.truncated(rank)
    noisy = images + sigma * noise(0)(images)
    found = cross_entropies(model, images, sigma)
    assert within((found + model.log_prob(noisy, sigma))[:, None], 0.0)
    lam, half = own.eigenvalues, digits[::2]
    entropy = (lam + sigma**2).log().sum() + (64 - len(lam)) * (sigma**2).log()
    entropy = float(entropy + 64 * math.log(2 * math.pi * math.e)) / 2
    correction = float((lam / (lam + sigma**2)).sum()) / (2 * len(half))  # n - 1 in the covariance
    assert float(cross_entropies(own, half, sigma).mean()) == pytest.approx(entropy - correction)


def test_losses_give_the_entropy_of_points(digits):
    """Points far apart, noised a little, have that of their number and that of the noise."""
    few = digits[:200]
    points, gaussian = PointCloud(few.flatten(1)), Gaussian.from_samples(few.flatten(1))
    found = noised_losses(points.denoise, few, SIGMAS, noise(0))
    closed = closed_losses(gaussian, few, SIGMAS)
    bound = entropy_bounds(gaussian, few, SIGMAS, closed, found, 0.75)
    expected = math.log(200) / 64 + math.log(2 * math.pi * math.e * 0.02**2) / 2
    assert float(bound.mean()) == pytest.approx(expected, abs=0.012)


def test_a_denoiser_that_knows_two_moments_of_a_pixel_has_an_edm_average_of_one():
    sigma_data = 0.6
    weights = averages(SIGMAS, sigma_data)
    known = lambda s: sigma_data**2 / (sigma_data**2 + s**2)  # noqa: E731
    assert float(weights["EDM"] @ known(SIGMAS)) == pytest.approx(1, rel=1e-12)
    low, high = 0.02**2, 80.0**2
    area = math.log(high / (high + sigma_data**2)) - math.log(low / (low + sigma_data**2))
    expected = area / 2 / math.log(80 / 0.02)
    assert float(weights["NCSN"] @ known(SIGMAS)) == pytest.approx(expected, rel=1e-3)
    chain = ddpm_grid(1000)[:-1]
    inside = chain[(chain >= 0.02) & (chain <= 80)]
    assert float(weights["DDPM"] @ known(SIGMAS)) == pytest.approx(float(known(inside).mean()))


def test_the_levels_are_enough_for_averages(digits, own):
    images, dense = digits[1::16], ve_grid(400, 0.02, 80)[:-1].flip(0)
    coarse, fine = (closed_losses(own, images, s).mean(0) for s in (SIGMAS, dense))
    for name, weights in averages(SIGMAS, 0.75).items():
        expected = float(averages(dense, 0.75)[name] @ fine)
        assert float(weights @ coarse) == pytest.approx(expected, rel=0.01)


def test_losses_are_interpolated_through_those_that_are_known():
    losses = torch.rand(16, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(between(SIGMAS, SIGMAS, 0.5) @ losses, losses)


def test_a_control_variate_takes_away_the_chance_that_is_shared(digits, own):
    images = digits[1::8]
    noised = noised_losses(own.denoise, images, SIGMAS, noise(0))
    closed = closed_losses(own, images, SIGMAS)
    nothing = torch.zeros_like(noised)
    models = {GAUSSIAN: noised, NETWORK: 2 * noised, POINTS: nothing}
    found = Losses(SIGMAS, models, {GAUSSIAN: closed}).known
    assert found[GAUSSIAN] is closed
    assert torch.equal(found[POINTS], nothing)
    raw, steady = (abs(each - 2 * closed).mean() for each in (2 * noised, found[NETWORK]))
    assert steady < 0.2 * raw
    assert within(found[NETWORK] - 2 * closed, 0.0)


def test_the_network_is_beaten_where_its_interval_lies_above():
    closed = torch.ones(400, 3, dtype=torch.float64)
    spread = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double()
    network = closed + torch.tensor([0.3, 0.0, -0.3]) + spread - spread.mean(0)
    levels = torch.tensor([1.0, 2.0, 4.0])
    found = Losses(levels, {GAUSSIAN: closed, NETWORK: network}, {GAUSSIAN: closed})
    assert found.beaten == pytest.approx({1.0: 30})
    excess = found.excesses[NETWORK]
    assert excess.value == pytest.approx([30, 0, -30], abs=1e-5)
    assert excess.error == pytest.approx([5, 5, 5], rel=0.1)


def test_nan_of_a_network_is_said(digits):
    with pytest.raises(WorkError, match="NaN"):
        noised_losses(lambda x, sigma: x * math.nan, digits[:2], SIGMAS, noise(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twenty-four digits, with labels and without, and their Gaussian."""
    folder = tmp_path_factory.mktemp("digits")
    data = datasets.load("digits")
    images, labels = data.images()[:24].numpy(), data.labels()[:24].numpy()
    np.savez(folder / "few.npz", images=images, labels=labels)
    np.savez(folder / "bare.npz", images=images)
    np.savez(folder / "one.npz", images=images[:1])
    parameters.save(folder / "gaussian", *fit.fit_gaussian(datasets.load(folder / "few.npz")))
    return folder


@pytest.fixture
def run(files, tmp_path, monkeypatch):
    """Run the command in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*words, preset="digits", images="few.npz"):
        given = ("--dataset", files / images) if images else ()
        own = ("--parameters", files / "gaussian") if preset == "digits" else ()
        words = (SCRIPT.name, preset, *given, *own, "--threads", "1", *words)
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        return run_command(runpy.run_path(str(SCRIPT))["main"])

    return call


def table(folder):
    """Losses and errors by model: (2, L) each."""
    with (folder / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sigma"]) for row in rows[: len(LEVELS)]] == list(LEVELS)
    return {
        model: torch.tensor(
            [[float(r["loss"]), float(r["standard_error"])] for r in rows if r["model"] == model]
        ).T
        for model in dict.fromkeys(row["model"] for row in rows)
    }


def test_the_command_writes_losses_and_measures_again_what_is_damaged_or_gone(
    run, files, tmp_path, capsys
):
    assert run("--block", "10") == 0
    said = capsys.readouterr().out
    folder = tmp_path / "score_based/digits"
    found = table(folder)
    assert list(found) == MODELS
    assert bool((found["point cloud"][0] <= found["network"][0] * 1.01).all())
    images = from_uint8(datasets.load(files / "few.npz").images(), torch.float64)
    model = parameters.load(files / "gaussian").model
    closed = closed_losses(model, images, SIGMAS).mean(0)
    assert found["Gaussian"][0].tolist() == pytest.approx(closed.tolist(), rel=1e-5)
    content = json.loads((folder / "losses.json").read_text())
    outputs = content["outputs"]
    assert outputs["losses.csv"] == digest_of_file(folder / "losses.csv")
    assert content["inputs"]["count"] == 24
    assert outputs["averages"].keys() == set(MODELS)
    assert outputs["cross_entropies"].keys() == set(MODELS) - {"point cloud"}
    assert outputs["averages"]["network"].keys() == {"NCSN", "DDPM", "EDM"}
    assert "memorisation" in said and "memorisation" in outputs["notes"][-1]
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")

    written = (folder / "losses.csv").read_bytes()
    blocks = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    assert len(blocks) == 3 * 7  # of 10, 10 and 4 images; two models closed and noised
    damaged, gone, *_ = sorted(blocks)
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    gone.unlink()
    assert run("--block", "10") == 0
    changed = {path for path in blocks if path.stat().st_mtime_ns != blocks[path]}
    assert changed == {damaged, gone}
    assert (folder / "losses.csv").read_bytes() == written

    assert run("--out", "whole") == 0
    whole = table(tmp_path / "whole")
    for model in ("isotropic", "Gaussian", "mixture of 10", "network"):
        assert torch.allclose(whole[model], found[model], rtol=1e-4)


def test_a_network_with_classes_is_told_those_of_the_images(run, tmp_path, capsys):
    """Where noise hides the image, the class still says what it is of: its mean is nearer."""
    assert run("--network", CONDITIONAL, "--count", "8", "--sigma-min", "0.05") == 0
    content = json.loads((tmp_path / "score_based/digits/losses.json").read_text())
    inputs = content["inputs"]
    assert (inputs["count"], inputs["stride"]) == (8, 3)
    assert inputs["sigmas"] == [level for level in LEVELS if level >= 0.05]
    above = content["outputs"]["network_above_gaussian_percent"]["value"]
    assert above[inputs["sigmas"].index(20)] < -30
    assert run("--network", CONDITIONAL, images="bare.npz") == 2
    assert "the images of bare no labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ((), {"preset": "cifar10-small", "images": ""}, "comes without images: give --dataset"),
        ((), {"preset": "cifar10-small"}, "few holds images of 1 x 8 x 8, the network makes 3 x"),
        ((), {"images": "one.npz"}, "1 image: a standard error takes two or more"),
        (("--count", "1"), {}, "1 image: a standard error takes two or more"),
        (("--seeds", "0-9"), {}, "--seeds would change nothing: losses are measured at noised"),
        (("--sampler", "heun"), {}, "--sampler would change nothing"),
        (("--sigma-min", "60"), {}, "sigma from 60 to 80: expected a range with two or more of"),
    ],
)
def test_misuse_is_one_sentence(run, capsys, words, changes, message):
    assert run(*words, **changes) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
