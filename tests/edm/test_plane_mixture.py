"""What networks learn of the mixture in the plane, against its closed form and its Gaussians."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from edm.checkpoints import load, shipped
from edm.precondition import Preconditioned
from edm.training.data import Points
from edm.training.recipes import RECIPES
from edm.training.runs import Job
from linear_structure.data.plane import find, mixture
from linear_structure.denoise import Denoiser
from linear_structure.gaussian import Gaussian
from linear_structure.system.files import digest_of_file
from linear_structure.system.options import plain

PATH, CARD = shipped("plane-mixture.safetensors"), shipped("plane.md").read_text()
CPU, PLANE = torch.device("cpu"), RECIPES["plane"]
SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
BAYES, GAUSSIAN_LOSS = 0.84721, 0.8605  # under 0.5 |D - x_0|^2 / sigma^2 on the levels below
LEVELS = torch.logspace(torch.tensor(5.0).log10(), -3, 100, dtype=torch.float64)

Errors = dict[float, float]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def missed(quadrature: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[float, float]]:
    """E|D - D*|^2 and E|D* - x|^2 of a denoiser at a level, by quadrature."""
    model = mixture()

    def measure(denoise: Denoiser, sigma: float) -> tuple[float, float]:
        x, weights = quadrature(model, sigma)
        level = torch.tensor(sigma, dtype=torch.float64)
        exact = model.denoise(x, level)
        pairs = ((denoise(x, level), exact), (exact, x))
        error, size = ((weights * (a - b).square().sum(1)).sum() for a, b in pairs)
        return float(error), float(size)

    return measure


@pytest.fixture(scope="module")
def errors(missed: Callable[..., tuple[float, float]]) -> Callable[[Denoiser], Errors]:
    """The squared error of a score relative to the squared score, by level."""

    def measure(denoise: Denoiser) -> Errors:
        found = {sigma: missed(denoise, sigma) for sigma in SIGMAS}
        return {sigma: error / size for sigma, (error, size) in found.items()}

    return measure


@pytest.fixture(scope="module")
def gaussian(errors: Callable[[Denoiser], Errors]) -> Errors:
    """Errors of the Gaussian with the mixture's mean and covariance."""
    covariance = torch.tensor([[3.26, 0.72], [0.72, 2.44]], dtype=torch.float64)
    mean = torch.tensor([0.2, 1.4], dtype=torch.float64)
    return errors(Gaussian.from_covariance(mean, covariance).denoise)


def trained(folder: Path, **changes: object) -> Preconditioned:
    recipe, points = replace(PLANE, **changes).shared_by(1), Points("mixture", find("mixture"), CPU)
    return Job(recipe, points, folder, CPU, samples=None).run().average


def stated(name: str) -> Errors:
    """A row of the card's table."""
    cells = re.search(rf"^\| {name} \|(.*)\|$", CARD, re.MULTILINE)[1].split("|")
    return dict(zip(SIGMAS, map(float, cells), strict=True))


def test_the_shipped_network_is_what_its_card_says() -> None:
    network = load(PATH)
    assert digest_of_file(PATH) in CARD
    assert f"{PATH.stat().st_size:,} bytes" in CARD
    assert PATH.stat().st_size < 110_000
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in CARD
    assert f"`sigma_data` is {network.options.sigma_data}," in CARD
    with safe_open(PATH, framework="pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    recipe = plain(PLANE.shared_by(1))
    assert recipe.pop("compile") is False  # which its training did not know yet
    assert {name: provenance[name] for name in recipe} == recipe
    assert (provenance["dataset"], provenance["images_seen"]) == ("mixture", 2500 * 512)


def test_the_shipped_network_takes_points() -> None:
    network, x = load(PATH), torch.randn(7, 2, dtype=torch.float64)
    sigma = torch.tensor(0.5, dtype=torch.float64)
    denoised = network(x, sigma)
    assert (denoised.shape, denoised.dtype) == (x.shape, torch.float64)
    assert float((denoised - mixture().denoise(x, sigma)).abs().max()) < 0.5


def test_errors_are_those_of_the_card(
    errors: Callable[[Denoiser], Errors], gaussian: Errors
) -> None:
    for name, found in (("this network", errors(load(PATH))), ("Gaussian", gaussian)):
        assert found == pytest.approx(stated(name), rel=0.05)


def test_the_shipped_network_is_nearer_than_the_gaussian_up_to_sigma_2(
    errors: Callable[[Denoiser], Errors], gaussian: Errors
) -> None:
    found = errors(load(PATH))
    assert all(found[sigma] < gaussian[sigma] for sigma in SIGMAS if sigma <= 2)
    assert all(gaussian[sigma] < found[sigma] for sigma in SIGMAS if sigma >= 10)


def test_the_loss_of_the_shipped_network_lies_between_the_exact_and_the_gaussian(
    missed: Callable[..., tuple[float, float]],
) -> None:
    """Any model's loss is the exact one's and its squared distance to that."""
    network = load(PATH)
    excess = sum(missed(network, s)[0] / (2 * s**2) for s in LEVELS.tolist()) / len(LEVELS)
    assert 0 < excess < 0.001
    assert f"this network {BAYES + excess:.4f}," in CARD
    generator, losses = torch.Generator().manual_seed(0), []
    for sigma in LEVELS:
        clean = mixture().sample(2000, generator=generator)
        noisy = clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
        losses.append((network(noisy, sigma) - clean).square().sum(1) / (2 * sigma**2))
    drawn = torch.stack(losses)
    error = float((drawn.var(1) / drawn[0].numel()).sum().sqrt() / len(LEVELS))
    assert BAYES - 3 * error < float(drawn.mean()) < GAUSSIAN_LOSS


@pytest.mark.parametrize(
    ("preconditioning", "steps"),
    [
        ("ve", 200),
        ("ncsn", 200),
        pytest.param("edm", 2500, marks=pytest.mark.slow),
        pytest.param("ve", 2500, marks=pytest.mark.slow),
        pytest.param("ncsn", 2500, marks=pytest.mark.slow),
    ],
)
def test_where_training_leads(
    preconditioning: str,
    steps: int,
    errors: Callable[[Denoiser], Errors],
    gaussian: Errors,
    tmp_path: Path,
) -> None:
    """At high noise the Gaussian is nearer than any network; without sigma, from 1 on."""
    changes = {"preconditioning": preconditioning, "duration": 512 * steps}
    found = errors(trained(tmp_path, **changes))
    worse = 1 if preconditioning == "ncsn" else 10
    assert all(gaussian[sigma] < found[sigma] for sigma in SIGMAS if sigma >= worse)
    if preconditioning != "ncsn":
        assert all(found[sigma] < gaussian[sigma] for sigma in SIGMAS if 0.2 <= sigma <= 2)
    if steps == 2500:
        name = {"edm": "this network"}.get(preconditioning, preconditioning.upper())
        for sigma, expected in stated(name).items():
            assert 0.5 < found[sigma] / expected < 2
