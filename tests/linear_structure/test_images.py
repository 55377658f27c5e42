"""Pixels: the one conversion, and grids."""

import torch

from linear_structure.images import from_uint8, grid, to_uint8

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_every_grey_level_survives_both_conversions():
    for dtype in (torch.float32, torch.float64):
        assert to_uint8(from_uint8(LEVELS, dtype)).equal(LEVELS)


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
