"""Likelihoods: right where the truth is known, each image's own, continued when stopped."""

import csv
import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import builders
import numpy as np
import pytest
import tiny
import torch

from edm.checkpoints import save, shipped
from edm.network import network_of
from experiments import likelihood, presets
from experiments.likelihood import (
    Bound,
    Images,
    Range,
    Study,
    chain_levels,
    closed_models,
    finest_flow,
    measures,
    started,
    within_level,
)
from linear_structure import fit, parameters
from linear_structure.data import datasets
from linear_structure.data.datasets import Dataset
from linear_structure.denoise import expand
from linear_structure.gaussian import Gaussian
from linear_structure.images import to_uint8
from linear_structure.mixture import GaussianMixture
from linear_structure.sampling.likelihood import bits_per_dimension
from linear_structure.system.errors import UsageError, WorkError, run_command
from linear_structure.system.files import digest_of_file
from linear_structure.system.machine import Machine, set_threads

SCRIPT = Path(__file__).parents[2] / "scripts" / "likelihood.py"
SHAPE = (1, 2, 2)
BASIS = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
VARIANCES = torch.tensor([0.2, 0.1, 0.05, 0.02], dtype=torch.float64)
GAUSSIAN = Gaussian(torch.tensor([0.1, -0.2, 0.0, 0.1], dtype=torch.float64), BASIS, VARIANCES)
CPU = Machine(torch.device("cpu"), 1)
WITHIN = Range(0.05, 80.0, 0.002, 80.0)


def network(denoise=GAUSSIAN.denoise, **changes):
    """A denoiser as a network of float64 that gradients pass."""
    settings = {"version": "1", "dtype": torch.float64, "gradients": True, **changes}
    return network_of(denoise, SHAPE, **settings)


def gaussian_images(count):
    """Pixels of 256 levels, drawn from the Gaussian; hardly one lies outside [-1, 1]."""
    x = GAUSSIAN.sample(count, generator=torch.Generator().manual_seed(2))
    return Images(to_uint8(x).view(-1, *SHAPE), 256)


def study(tmp_path, images, size=4, **changes):
    """Where the network is the Gaussian."""
    return Study(network(**changes), GAUSSIAN, images, CPU, tmp_path, size)


def columns(study, **asked):
    """By title and steps."""
    found = study.columns(measures(study.network, WITHIN, **asked))
    return {(column.title, column.steps): column for column in found}


def test_a_network_that_is_the_gaussian_has_its_likelihood_to_order_two(tmp_path):
    found = columns(study(tmp_path, gaussian_images(8)), steps=160, probes=0)
    closed = found["Gaussian", 0]
    errors = [
        float((found["network", steps].nats - closed.nats).abs().max()) for steps in (40, 80, 160)
    ]
    assert errors[2] < 0.02
    for coarse, fine in pairwise(errors):
        assert 3.5 < coarse / fine < 4.5
    assert torch.allclose(closed.bits, -closed.nats / (4 * math.log(2)) + math.log2(127.5))
    assert found["isotropic", 0].mean > closed.mean


def test_probes_have_the_exact_trace_as_their_mean(tmp_path):
    images = gaussian_images(40)
    found = columns(study(tmp_path, images, 40), steps=40, probes=8)
    gap = found["network", 40].bits - found["Gaussian", 0].bits
    assert gap.std() > 1e-4
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(40) + 0.02
    fewer = columns(study(tmp_path, images, 40), steps=40, probes=2)["network", 40].bits
    assert (fewer - found["Gaussian", 0].bits).std() > 1.4 * gap.std()


def test_an_image_depends_neither_on_its_batch_nor_on_how_many_there_are(tmp_path):
    pixels = gaussian_images(7).pixels
    asked = {"steps": 8, "probes": 2, "bound": 30}
    few = columns(study(tmp_path / "a", Images(pixels, 256), 3), **asked)
    one = columns(study(tmp_path / "b", Images(pixels[:5], 256), 4), **asked)
    for key, column in few.items():
        assert torch.allclose(column.nats[:5], one[key].nats, rtol=1e-11, atol=0)
    assert len({round(float(nats), 6) for nats in few["network", 8].nats}) == 7


def test_what_was_stopped_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    images, asked, left = gaussian_images(8), {"steps": 8, "bound": 30}, [50]
    whole = columns(study(tmp_path / "a", images), **asked)

    def tiring(denoise, _):
        def call(x, sigma):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return denoise(x, sigma)

        return call

    monkeypatch.setattr(likelihood, "counted", tiring)
    with pytest.raises(KeyboardInterrupt):
        columns(study(tmp_path / "b", images), **asked)
    finished = 2 * (4 + 8) + 16  # calls: two batches of 2 and of 4 steps, one of 8; 10 are lost
    left[0] = 1000
    again = columns(study(tmp_path / "b", images), **asked)
    chain = next(steps for title, steps in again if title == Bound.title)
    assert 1000 - left[0] == 2 * (4 + 8 + 16 + chain) - finished
    assert all(torch.equal(again[key].nats, whole[key].nats) for key in whole)
    left[0] = 0
    columns(study(tmp_path / "b", images), **asked)


def test_damaged_and_foreign_numbers_are_made_anew(tmp_path):
    images = gaussian_images(4)
    before = columns(study(tmp_path, images), steps=4)
    paths = sorted(tmp_path.glob("*/nats.npy"))
    assert len(paths) == 3
    np.save(paths[0], np.zeros(4))
    np.save(paths[1], np.zeros(3))
    paths[2].write_bytes(b"damaged")
    after = columns(study(tmp_path, images), steps=4)
    assert all(torch.equal(after[key].nats, before[key].nats) for key in before)
    other = columns(study(tmp_path, images, version="2"), steps=4)
    assert torch.equal(other["network", 4].nats, before["network", 4].nats)
    assert len(list(tmp_path.glob("*/nats.npy"))) == 6


def test_the_chain_begins_in_the_models_density():
    """The mean of one draw each is the closed divergence of two Gaussians."""
    x, sigma = torch.full((4000, 4), 0.3, dtype=torch.float64), torch.tensor(0.4).double()
    generator = torch.Generator().manual_seed(0)
    drawn = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    found = started(GAUSSIAN, x, sigma, drawn)
    wide, offset = VARIANCES + sigma**2, (x[0] - GAUSSIAN.mean) @ BASIS
    expected = (sigma**2 / wide + offset**2 / wide - 1 + (wide / sigma**2).log()).sum() / 2
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean() - expected)) < 4 * error < 0.1


def test_the_bound_of_the_gaussian_is_above_its_likelihood_and_near(tmp_path):
    images = gaussian_images(100)
    found = columns(study(tmp_path, images, 100), steps=1, bound=300)
    bound = next(column for (title, _), column in found.items() if title == Bound.title)
    middles = next(images.batches(100)).middles(CPU.device)
    gap = bound.bits - bits_per_dimension(GAUSSIAN.log_prob(middles), SHAPE)
    assert -3 * float(gap.std()) / 10 < float(gap.mean()) < 0.15
    assert bound.sigma_min == pytest.approx((0.1 / 300) ** 0.5, rel=1e-3)
    assert bound.sigma_max < 80


def test_a_chain_has_the_levels_that_the_network_knows_and_the_bins_ask_for():
    known = lambda sigma: sigma  # noqa: E731
    photographs = chain_levels(1000, WITHIN, known)
    assert photographs[-2] == pytest.approx(0.01, rel=1e-3)
    digits = chain_levels(1000, WITHIN, known, levels=17)
    assert within_level(17) == pytest.approx(0.125 / math.sqrt(12))
    assert within_level(17) <= digits[-2] < 1.05 * within_level(17)
    assert photographs[0] == digits[0] <= 80 and photographs[-1] == digits[-1] == 0
    low = chain_levels(1000, Range(0.3, 20.0, 0.3, 50.0), known)
    assert low[-2] >= 0.3 and low[0] <= 20
    with pytest.raises(UsageError, match="--bound 20: a DDPM chain has 21"):
        chain_levels(20, WITHIN, known)
    with pytest.raises(UsageError, match=r"0 levels of the chain lie from 79 to 79\.1"):
        chain_levels(1000, Range(79.0, 79.1, 79.0, 79.1), known)


def test_a_network_of_few_levels_is_asked_at_those_alone():
    levels = torch.tensor([0.05, 1.0, 80.0], dtype=torch.float64)
    nearest = lambda s: levels[(s[:, None] - levels).abs().argmin(1)]  # noqa: E731
    two = network(round_sigma=nearest)
    assert measures(two, WITHIN, steps=1)[0].sigmas.tolist() == pytest.approx([0.05, 80])
    with pytest.raises(UsageError, match="--steps 9: the network knows fewer"):
        measures(two, WITHIN, steps=9)


def test_the_range_is_the_networks_or_else_the_presets():
    digits = presets.find("digits")
    assert Range.of(digits, network()) == Range(0.02, 80.0, 0.002, 80.0)
    own = network(sigma_min=0.03, sigma_max=50.0)
    assert Range.of(digits, own) == Range(0.03, 50.0, 0.03, 50.0)
    for ends in ((0.01, None), (None, 51.0), (2.0, 1.0), (math.nan, None), (0.1, math.inf)):
        with pytest.raises(UsageError, match=r"within the network's range, 0\.03 to 50"):
            Range.of(digits, own, *ends)


def test_a_conditional_network_is_told_the_class_of_each_image(tmp_path):
    """A network that moves by its label sees each image with its own."""

    def told(x, sigma, labels):
        return GAUSSIAN.denoise(x, sigma) + expand(labels / 10, x)

    pixels, labels = gaussian_images(6).pixels, torch.tensor([0, 1, 2, 3, 4, 0])
    own = network(told, label_dim=5)
    images = Images.of(Dataset.of("with", pixels, labels), 6, own)
    together = Study(own, GAUSSIAN, images, CPU, tmp_path / "a", 4)
    found = columns(together, steps=4, bound=30)
    for label in range(5):
        alone = network(lambda x, sigma, at=label: told(x, sigma, torch.full(x.shape[:1], at)))
        same = Study(alone, GAUSSIAN, replace(images, labels=None), CPU, tmp_path / str(label), 4)
        for key, column in columns(same, steps=4, bound=30).items():
            assert torch.allclose(column.nats[labels == label], found[key].nats[labels == label])
    with pytest.raises(UsageError, match="conditional and without has no labels"):
        Images.of(Dataset.of("without", pixels), 6, own)
    with pytest.raises(UsageError, match="expected 0 to 4"):
        Images.of(Dataset.of("other", pixels, labels + 3), 6, own)
    assert Images.of(Dataset.of("with", pixels, labels), 6, network()).labels is None


def test_the_isotropic_model_has_the_gaussians_variance():
    models = {key.title: model for key, model in closed_models(GAUSSIAN).items()}
    assert models["isotropic"].s0 ** 2 * 4 == pytest.approx(float(VARIANCES.sum()))
    mixture = GaussianMixture(torch.ones(3) / 3, (GAUSSIAN,) * 3)
    assert [key.title for key in closed_models(mixture)] == ["mixture of 3"]


def test_nan_of_a_network_is_said_and_not_kept(tmp_path):
    with pytest.raises(WorkError, match="NaN"):
        columns(study(tmp_path, gaussian_images(2), denoise=lambda x, sigma: x * math.nan))
    assert not list(tmp_path.glob("*/*"))


def test_grey_levels_are_of_all_images_not_of_those_that_are_measured():
    pixels = torch.full((3, *SHAPE), 255, dtype=torch.uint8)
    pixels[2, 0, 0] = torch.tensor([16, 32])
    images = Images.of(Dataset.of("few", pixels), 1, network())
    assert (images.levels, images.bins, len(images.pixels)) == (17, 8, 1)


@pytest.mark.slow
def test_digits_have_the_specified_likelihood(command, tmp_path):
    code, *_ = command("digits", "--count", "32", "--out", tmp_path)
    assert code == 0
    means = {
        (each["title"], each["steps"]): each["mean"]
        for each in json.loads((tmp_path / "likelihood.json").read_text())["outputs"]["means"]
    }
    for steps, expected in ((30, 1.776), (60, 1.868), (120, 1.895)):
        assert means["network", steps] == pytest.approx(expected, abs=0.12)
    assert means["Gaussian", 0] == pytest.approx(2.967, abs=0.03)


@pytest.mark.slow
def test_one_probe_is_near_the_exact_trace_on_digits(tmp_path):
    loading = likelihood_script().loading
    preset = likelihood_script().presets.find("digits")
    own = loading.load_network(preset, CPU)
    model, _ = fit.fit_gaussian(datasets.load("digits"))
    images = Images.of(datasets.load("digits"), 4, own)
    made = Study(own, model, images, CPU, tmp_path)
    exact, probed = (
        finest_flow(made.columns(measures(own, Range.of(preset, own), 60, probes)[-1:])).mean
        for probes in (0, 32)
    )
    assert exact == pytest.approx(1.694, abs=0.1)
    assert probed == pytest.approx(exact, abs=0.1)


def likelihood_script():
    """The command as a module."""
    return builders.module(SCRIPT)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Type a command in an empty folder; returns exit code, output and complaints."""
    monkeypatch.chdir(tmp_path)
    main, threads = likelihood_script().main, torch.get_num_threads()

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["likelihood.py", *map(str, words), "--device", "cpu"])
        code = run_command(main)
        return code, *capsys.readouterr()

    yield typed
    set_threads(threads)


def test_the_command_writes_numbers_settings_and_picture(command):
    asked = ("digits", "--count", 3, "--steps", 2, "--bound", 25, "--batch", 2)
    code, said, _ = command(*asked)
    assert code == 0
    assert "3 images of digits, 17 grey levels; sigma from 0.02 to 80" in said
    assert "These are training images: gaussian_params_digits was made from them" in said
    folder = Path("score_based/digits")
    with (folder / "likelihood.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == likelihood.HEAD
    assert [row["image"] for row in rows] == ["0", "1", "2"] * 5
    assert {(row["model"], row["probes"]) for row in rows} == {
        ("network", "1"), ("network, bound", "0"), ("Gaussian", "0"), ("isotropic", "0"),
    }  # fmt: skip
    row = next(row for row in rows if row["model"] == "Gaussian")
    expected = -float(row["nats"]) / (64 * math.log(2)) + 3
    assert float(row["bits"]) == pytest.approx(expected, abs=1e-4)
    record = json.loads((folder / "likelihood.json").read_text())
    assert record["outputs"]["likelihood.csv"] == digest_of_file(folder / "likelihood.csv")
    assert record["inputs"]["count"] == 3
    assert (folder / "likelihood.png").read_bytes().startswith(b"\x89PNG")
    before = (folder / "likelihood.csv").read_bytes()
    (folder / "likelihood.csv").write_text("foreign")
    assert command(*asked)[0] == 0
    assert (folder / "likelihood.csv").read_bytes() == before


def test_images_that_the_parameters_were_not_made_from_are_said_to_be_others(command, tmp_path):
    images = datasets.load("digits").images()
    np.savez("others.npz", images=images[5:9, 0].numpy())
    parameters.save(tmp_path / "own", *fit.fit_gaussian(datasets.load("digits")))
    asked = ("digits", "--count", 1, "--steps", 1, "--parameters", "own")
    code, said, _ = command(*asked, "--dataset", "others.npz")
    assert (code, "not the images that own was made from" in said) == (0, True)
    code, said, _ = command(*asked)
    assert "training images: own was made from them. Images" in said
    assert "+-" not in said  # one image has no standard error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--probes", "0"), "--probes 0: expected 1 or more"),
        (("--steps", "0"), "--steps 0: expected 1 or more"),
        (("--bound", "0"), "--bound 0: expected 1 or more"),
        (("--bound", "20"), "--bound 20: a DDPM chain has 21 steps or more"),
        (("--count", "0"), "--count 0: expected 1 to 1797"),
        (("--count", "1798"), "--count 1798: expected 1 to 1797, the images of digits"),
        (("--exact", "--probes", "2"), "--probes would change nothing"),
        (("--sigma-max", "200"), "within the network's range, 0.002 to 80"),
        (("--sigma-min", "0"), "within the network's range, 0.002 to 80"),
        (("--sigma-min", "2", "--sigma-max", "1"), "an ascending pair"),
        (("--network", "NET"), "it makes 8"),
        (("--parameters", "nowhere"), "nowhere is no directory"),
        (("--threads", "0"), "--threads 0: expected 1 to 1024"),
    ],
)
def test_each_mistake_is_one_sentence(command, tmp_path, words, message):
    if "NET" in words:
        save(tiny.network(), tmp_path / "NET", {})
        message = "digits holds images of 1 x 8 x 8, the network makes 3 x 8 x 8"
    code, _, complaint = command("digits", *words)
    assert (code, complaint.count("\n")) == (2, 1)
    assert message in complaint


def test_a_preset_without_images_asks_for_them(command):
    code, _, complaint = command("cifar10-small")
    assert (code, complaint) == (2, "error: cifar10-small comes without images: give --dataset\n")
    assert command("nothing")[0] == 2


def test_a_point_cloud_has_no_likelihood_below_its_resolution(command, tmp_path):
    parameters.save(tmp_path / "cloud", *fit.fit(datasets.load("digits"), "pointcloud"))
    asked = ("digits", "--parameters", "cloud", "--count", 2, "--steps", 1)
    code, _, complaint = command(*asked)
    assert code == 2
    assert "--sigma-min 0.02 is below the resolution of a point cloud of 17 grey" in complaint
    code, said, _ = command(*asked, "--sigma-min", 0.04)
    assert (code, "point cloud" in said) == (0, True)


def test_a_conditional_network_needs_labels(command, tmp_path):
    images = datasets.load("digits").images()
    np.savez("unlabelled.npz", images=images[:, 0].numpy())
    conditional = shipped("digits-conditional.safetensors")
    asked = ("digits", "--network", conditional, "--count", 2, "--steps", 1)
    assert command(*asked)[0] == 0
    code, _, complaint = command(*asked, "--dataset", "unlabelled.npz")
    assert (code, "unlabelled has no labels" in complaint) == (2, True)
