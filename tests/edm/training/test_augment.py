"""The augmentation pipe: labels and images follow the geometry that the labels name."""

import math

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edm.training.augment import LABELS, Augment, rotation, scaling, transform, translation

SIZE = 32
DELAY = 0.1  # pixels by which the low-pass, which is not quite symmetric, shifts a turned image


def blob(x: float, y: float, count: int = 1, width: float = 2.0) -> Tensor:
    """A Gaussian spot at (x, y) in centred pixel coordinates, x right, y down: (n, 1, 32, 32)."""
    place = torch.arange(SIZE) - (SIZE - 1) / 2
    spot = torch.exp(-((place[None, :] - x) ** 2 + (place[:, None] - y) ** 2) / (2 * width**2))
    return spot.expand(count, 1, SIZE, SIZE)


def centre(images: Tensor) -> Tensor:
    """Centre of mass (n, 2) as (x, y)."""
    place, mass = torch.arange(SIZE) - (SIZE - 1) / 2, images.sum((1, 2, 3))
    x = (images * place).sum((1, 2, 3)) / mass
    y = (images * place[:, None]).sum((1, 2, 3)) / mass
    return torch.stack([x, y], 1)


def number(value: float) -> Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (2, 1, 8, 8), (1, 3, 16, 24)])
def test_identity_returns_the_image(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = transform(images, torch.eye(3).expand(len(images), 3, 3))
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)


def test_whole_pixel_translation_moves_pixels() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([-3.0, 2.0]), torch.tensor([-1.0, 0.0])
    moved = transform(images, translation(*shift))
    torch.testing.assert_close(moved[0, :, 1:, 3:], images[0, :, :-1, :-3], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[1, :, :, :-2], images[1, :, :, 2:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("matrix", "where"),
    [
        (translation(number(-2.5), number(4.0)), (6.5, -1.0)),
        (scaling(number(0.5), number(0.5)), (8.0, 6.0)),
        (scaling(number(-1.0), number(1.0)), (-4.0, 3.0)),
        (rotation(number(math.pi / 2)), (3.0, -4.0)),
        (rotation(number(math.pi)), (-4.0, -3.0)),
    ],
)
def test_a_spot_lands_where_the_inverse_map_says(
    matrix: Tensor, where: tuple[float, float]
) -> None:
    """The result at p shows the source at G p: a spot at q goes to G^-1 q."""
    landed = centre(transform(blob(4.0, 3.0, width=1.5), matrix))
    torch.testing.assert_close(landed, torch.tensor([where]), atol=DELAY, rtol=0)


def test_quarter_turn_of_a_smooth_image_is_rot90() -> None:
    image = blob(4.0, 3.0) - 0.5 * blob(-5.0, 1.0)
    turned = transform(image, rotation(number(math.pi / 2)))
    torch.testing.assert_close(turned, torch.rot90(image, 1, (2, 3)), atol=0.03, rtol=0)


def test_labels_say_where_the_image_went() -> None:
    """From its nine labels alone: mirror and flip, then the inverse of the affine map.

    (w, r) and (-w, r + pi) have equal labels for the stretch: one of both must be right.
    """
    torch.manual_seed(0)
    images, labels = Augment(1.0)(blob(2.0, -1.0, count=200, width=1.5))
    mirror, flip, scale, cos, sin, pull_x, pull_y, right, down = labels.double().T
    assert labels.shape == (200, LABELS)
    q = torch.stack([2.0 * (1 - 2 * mirror), -1.0 * (1 - 2 * flip)], 1)
    q = turned(q * 2 ** (0.2 * scale)[:, None], -torch.atan2(sin, cos + 1))
    stretch, axis = 2 ** (0.2 * torch.hypot(pull_x, pull_y)), torch.atan2(pull_y, pull_x)
    pulled = [
        turned(turned(q, axis) * torch.stack([s, 1 / s], 1), -axis) for s in (stretch, 1 / stretch)
    ]
    expected = torch.stack(pulled) + 0.125 * SIZE * torch.stack([right, down], 1)
    inside = (expected.abs() < 8).all(2).all(0)
    assert inside.sum() > 100
    peaks = images.double().clamp(min=0) ** 4
    misses = [(centre(peaks * disc(where)) - where).abs().amax(1) for where in expected]
    assert torch.stack(misses).amin(0)[inside].max() < 0.25


def disc(where: Tensor) -> Tensor:
    """A mask of radius 5 around each place (n, 2), beyond which the edges reflect the spot."""
    place = torch.arange(SIZE) - (SIZE - 1) / 2
    x, y = where.T[:, :, None, None]
    return ((place - x) ** 2 + (place[:, None] - y) ** 2 < 25)[:, None]


def turned(points: Tensor, angle: Tensor) -> Tensor:
    x, y = points.T
    return torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], 1)


def test_labels_are_zero_where_nothing_is_done_and_the_mirror_is_always_told() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 1, 8, 8)
    changed, labels = Augment(0.0)(images)
    assert not labels[:, 1:].any()
    assert 0.4 < labels[:, 0].mean() < 0.6
    told = torch.where(labels[:, 0].reshape(-1, 1, 1, 1) == 1, images.flip(3), images)
    torch.testing.assert_close(changed, told, atol=1e-4, rtol=0)


def test_changes_come_with_their_probability() -> None:
    torch.manual_seed(0)
    _, labels = Augment(0.12)(torch.zeros(20_000, 1, 4, 4))
    made = (labels != 0).double().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])
    torch.testing.assert_close(made, expected.double(), atol=0.01, rtol=0)
    assert labels[:, 2].std() == pytest.approx(math.sqrt(0.12), rel=0.05)


class Searches(TorchFunctionMode):
    """Whether a convolution would search for its fastest way, at each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if "conv" in function.__name__:
            self.found.append(torch.backends.cudnn.benchmark)
        return function(*args, **(kwargs or {}))


def test_no_search_for_the_fastest_convolution_of_sizes_that_never_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training lets the network's be searched for, and goes on to do so."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with Searches() as searches:
        Augment(1.0)(torch.zeros(2, 1, 8, 8))
    assert searches.found == [False] * 4
    assert torch.backends.cudnn.benchmark
