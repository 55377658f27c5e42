"""Coloured digits: colours, factors, and parts that share no source image."""

import colorsys
from pathlib import Path

import pytest
import torch

from linear_structure.data import datasets, factors
from linear_structure.data.archives import read_mnist
from linear_structure.data.datasets import Dataset
from linear_structure.data.factors import coloured, in_fixed_colours, in_parts, pooled
from linear_structure.system.errors import UsageError

MNIST = Path(__file__).resolve().parents[4] / "shared" / "data" / "mnist"


def grey(count: int, size: int = 4, labels: bool = True) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    return Dataset.of("grey", images, torch.arange(count) % 10 if labels else None)


@pytest.fixture(scope="module")
def digits() -> factors.Factors:
    return in_fixed_colours(datasets.load("digits"))


def test_a_pixel_lies_between_background_and_foreground() -> None:
    values = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 1, 1, 3)
    over, under = torch.tensor([[1.0, 0.2, 0.0]]), torch.tensor([[0.0, 0.6, 1.0]])
    found = coloured(values, over, under)
    assert found.dtype == torch.uint8
    assert found[0, :, 0].T.tolist() == [[0, 153, 255], [64, 128, 191], [255, 51, 0]]


def test_palettes_are_nine_hues_of_one_saturation_and_value() -> None:
    for colours, saturation, value in (
        (factors.foregrounds(), 0.9, 1.0),
        (factors.backgrounds(), 0.6, 0.45),
    ):
        found = torch.tensor([colorsys.rgb_to_hsv(*colour) for colour in colours.tolist()])
        expected = torch.arange(9) / 9
        torch.testing.assert_close(found[:, 0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[:, 1], torch.full((9,), saturation))
        torch.testing.assert_close(found[:, 2], torch.full((9,), value))


def test_sizes_of_the_digits_parts(digits: factors.Factors) -> None:
    assert digits.part.bincount().tolist() == [3000, 600, 1194]
    sources = [digits.source[digits.part == part].unique() for part in range(3)]
    assert [len(each) for each in sources] == [1000, 200, 597]
    assert digits.images.shape == (4794, 3, 8, 8)
    assert digits.within("test").shape == (1194, 3, 8, 8)


def test_no_source_image_is_in_two_parts(digits: factors.Factors) -> None:
    assert len(torch.stack([digits.source, digits.part], 1).unique(dim=0)) == 1797


def test_every_factor_is_what_the_image_shows(digits: factors.Factors) -> None:
    plain = datasets.load("digits")
    assert torch.equal(digits.labels["digit"], plain.labels()[digits.source])
    value = plain.images()[digits.source] / 255
    over = factors.foregrounds()[digits.labels["foreground"]][:, :, None, None]
    under = factors.backgrounds()[digits.labels["background"]][:, :, None, None]
    expected = value * over + (1 - value) * under
    torch.testing.assert_close(digits.images / 255, expected, atol=0.51 / 255, rtol=0)
    assert all(
        set(each.tolist()) == set(range(9 + (name == "digit")))
        for name, each in digits.labels.items()
    )


def test_colourings_are_the_same_in_every_call(digits: factors.Factors) -> None:
    assert torch.equal(in_fixed_colours(datasets.load("digits")).images, digits.images)


def test_blocks_do_not_change_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = in_fixed_colours(grey(50)).images
    monkeypatch.setattr(factors, "BLOCK", 7)
    assert torch.equal(in_fixed_colours(grey(50)).images, whole)


def test_pooled_pixels_are_means() -> None:
    images = torch.tensor([[0, 10, 200, 255], [20, 31, 255, 250]], dtype=torch.uint8)
    assert pooled(images[None, None], 2).tolist() == [[[[15, 240]]]]
    assert torch.equal(pooled(images[None, None], 1), images[None, None])


def test_other_numbers_of_images_are_cut_8_1_1() -> None:
    assert in_parts(grey(50)).part.bincount().tolist() == [40, 5, 5]
    assert in_parts(grey(9)).part.tolist() == [2] * 9
    assert in_parts(grey(20, labels=False)).labels == {}


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (grey(50, labels=False), "no labels"),
        (grey(4), "too few"),
        (Dataset.of("colour", torch.zeros(20, 3, 4, 4, dtype=torch.uint8)), "colours of its own"),
    ],
)
def test_what_cannot_be_coloured_is_named(dataset: Dataset, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        in_fixed_colours(dataset)


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST is not here")
def test_mnist_is_coloured_at_half_its_size() -> None:
    paths = [MNIST / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    images, labels = read_mnist(*paths)
    few = Dataset.of("few", images[:100], labels[:100])
    found = in_fixed_colours(few, (1, 1, 1), pool=2)
    assert found.images.shape == (100, 3, 14, 14)
    assert found.part.bincount().tolist() == [80, 10, 10]
    value = few.images()[found.source].double().reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    red = factors.foregrounds()[found.labels["foreground"], 0][:, None, None]
    dark = factors.backgrounds()[found.labels["background"], 0][:, None, None]
    expected = value * red + (1 - value) * dark
    torch.testing.assert_close(
        found.images[:, 0] / 255.0, expected, atol=1.01 / 255, rtol=0, check_dtype=False
    )
