"""The multilayer perceptron, as a formula and as a denoiser of points."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edm.checkpoints import load
from edm.checkpoints.checkpoint import save
from edm.precondition import PRECONDITIONERS, Preconditioned, build
from linear_structure.system.errors import UsageError

POINTS = {"model_type": "MLP", "img_resolution": 1, "img_channels": 2}


def network(precondition: str = "EDMPrecond", **options: Any) -> Preconditioned:
    torch.manual_seed(0)
    made = build({"precondition": precondition, **POINTS, "width": 8, **options})
    for parameter in made.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def points(count: int = 5) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1))


def test_the_network_is_the_written_formula() -> None:
    model = network(label_dim=3, depth=2).model
    named, x, noise = model.state_dict(), points(), torch.linspace(-1, 2, 5)
    classes = torch.eye(3)[[0, 1, 2, 2, 0]]
    frequencies = 10000.0 ** (-torch.arange(4) / 3)
    waves = torch.cat([f(noise[:, None] * frequencies) for f in (torch.cos, torch.sin)], 1)
    told = waves @ named["map_layer.weight"].T + named["map_layer.bias"]
    told = F.silu(told + classes @ named["map_label.weight"].T)
    h = x
    for i in range(2):
        h = h @ named[f"layers.{i}.weight"].T + named[f"layers.{i}.bias"]
        h = F.silu(h + told @ named[f"told.{i}.weight"].T)
    expected = h @ named["out.weight"].T + named["out.bias"]
    torch.testing.assert_close(model(x, noise, classes), expected)
    assert not torch.allclose(model(x, noise, classes.flip(0)), expected)


@pytest.mark.parametrize("kind", PRECONDITIONERS)
def test_points_are_images_of_one_pixel(kind: str) -> None:
    made, x, sigma = network(kind), points().double(), torch.tensor([0.1, 0.5, 1, 4, 9]).double()
    denoised = made(x, sigma)
    assert made.shape == (2, 1, 1)
    assert (denoised.shape, denoised.dtype) == ((5, 2), torch.float64)
    assert torch.equal(made(x[:, :, None, None], sigma)[:, :, 0, 0], denoised)
    each = torch.cat([made(row, level) for row, level in zip(x.split(1), sigma, strict=True)])
    torch.testing.assert_close(each, denoised, rtol=1e-5, atol=1e-5)


def test_images_keep_their_shape_and_every_pixel_counts() -> None:
    made = network(img_resolution=3)
    x = torch.randn(2, 2, 3, 3, requires_grad=True)
    denoised = made(x, torch.tensor(0.8))
    assert denoised.shape == x.shape
    (gradient,) = torch.autograd.grad(denoised[0, 0, 0, 0], x)
    assert bool((gradient[0] != 0).all())
    assert not gradient[1].any()


@pytest.mark.parametrize("kind", PRECONDITIONERS)
def test_a_file_gives_the_network_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Its outputs from a copy: tensors lie in a file wherever, and products are rounded by that."""
    made = network(kind, depth=4, label_dim=2)
    save(made, tmp_path / "points.safetensors", {})
    again = copy.deepcopy(load(tmp_path / "points.safetensors"))
    assert (again.config, again.digest) == (made.config, made.digest)
    x, sigma = points().double(), torch.tensor(0.7, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert torch.equal(again.bind(labels)(x, sigma), made.bind(labels)(x, sigma))


def test_the_start_is_the_skip_connection() -> None:
    """The last layer starts near zero, so a network that has learned nothing is c_skip x."""
    torch.manual_seed(0)
    made, x = build({"precondition": "EDMPrecond", **POINTS}), points()
    assert sum(p.numel() for p in made.parameters()) < 30_000
    torch.testing.assert_close(made(x, torch.tensor(0.5)), x / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 7}, "'width' is 7: expected even"),
        ({"width": 2}, "'width' is 2"),
        ({"depth": 0}, "'depth' is 0"),
        ({"model_channels": 8}, "unknown option 'model_channels' of MLP"),
        ({"depth": math.nan}, "'depth' is nan"),
    ],
)
def test_wrong_options_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build({"precondition": "EDMPrecond", **POINTS, **change})
