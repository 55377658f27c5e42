"""Pixels: the one conversion, grey levels, and grids."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from linear_structure.data.datasets import load
from linear_structure.images import dequantize, from_uint8, grey_levels, grid, save_png, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_grey_level_survives_both_conversions():
    for dtype in (torch.float32, torch.float64):
        assert to_uint8(from_uint8(LEVELS, dtype)).equal(LEVELS)


def test_a_png_is_written_whole_and_the_disk_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", pytest.fail)
    save_png(tmp_path / "a.png", LEVELS.reshape(1, 16, 16))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), LEVELS.reshape(16, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pixels_span_minus_one_to_one_evenly():
    x = from_uint8(LEVELS, torch.float64)
    assert (x[0], x[-1]) == (-1, 1)
    torch.testing.assert_close(x.diff(), torch.full((255,), 2 / 255, dtype=torch.float64))


def test_the_conversion_leaves_its_argument_alone():
    levels = LEVELS.clone()
    from_uint8(levels)
    assert levels.equal(LEVELS)


def test_values_are_truncated_after_the_shift_and_clipped():
    x = torch.tensor([-9.0, -1.0, -1 + 0.49 / 127.5, 0.0, 0.999 / 127.5, 1.0, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 128, 128, 255, 255]


def test_a_grid_places_image_by_image_and_leaves_blanks_black():
    images = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 4)
    canvas = grid(images, columns=3)
    assert canvas.shape == (3, 4, 12)
    assert canvas[:, ::2, ::4].equal(torch.tensor([[1, 2, 3], [4, 5, 0]]).expand(3, 2, 3))


def test_a_grid_keeps_the_inside_of_an_image():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    assert grid(images, columns=1).equal(torch.cat(list(images), dim=1))
    assert grid(images, columns=2).equal(torch.cat(list(images), dim=2))


def stored(levels, k):
    """Grey levels k of so many, in 8 bits."""
    return (255 * k.double() / (levels - 1)).round().to(torch.uint8)


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 17, 64, 128])
def test_the_grey_levels_of_images_are_counted(levels):
    pixels = stored(levels, torch.arange(levels))
    assert grey_levels([pixels[1:], pixels[:1]]) == levels
    assert grey_levels(iter([pixels[: levels // 2], LEVELS])) == 256


def test_digits_have_17_levels_and_photographs_256():
    assert grey_levels([load("digits").images()]) == 17
    noise = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    assert grey_levels([noise.to(torch.uint8)]) == 256


def test_later_blocks_are_not_read_once_it_is_decided():
    def blocks():
        yield LEVELS
        raise AssertionError("read in vain")

    assert grey_levels(blocks()) == 256


def test_the_bins_of_17_levels_are_an_eighth_wide_and_lie_around_them():
    k = torch.arange(17)
    pixels = stored(17, k)
    assert torch.equal(dequantize(pixels, 17, 0.5), k / 8 - 1.0)
    assert torch.equal(dequantize(pixels, 17, 0.0), k.double() / 8 - 1 - 1 / 16)
    uniform = torch.rand(17, dtype=torch.float64)
    found = dequantize(pixels, 17, uniform)
    assert torch.allclose(found, k / 8 - 1 + (uniform - 0.5) / 8, rtol=0, atol=1e-15)


def test_the_bins_of_256_levels_are_those_of_pixels():
    assert torch.allclose(dequantize(LEVELS, 256, 0.5), from_uint8(LEVELS, torch.float64))
    lower, upper = dequantize(LEVELS, 256, 0.0), dequantize(LEVELS, 256, 1.0)
    assert torch.allclose(lower[1:], upper[:-1], rtol=0, atol=1e-15)
    width = torch.full((256,), 1 / 127.5, dtype=torch.float64)
    assert torch.allclose(upper - lower, width, rtol=0, atol=1e-15)
