"""Moments: exact for pixels, mergeable in any order, equal to numpy's in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from linear_structure.data import datasets
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.moments import WAITING, Moments, PixelSums

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (400, 3, 4, 4), generator=GENERATOR, dtype=torch.uint8)
SHARED = Path(__file__).resolve().parents[3] / "shared"


def sums(parts) -> PixelSums:
    made = PixelSums(48)
    for part in parts:
        made.add(part)
    return made


def bits(moments: Moments) -> tuple[bytes, bytes]:
    return moments.mean.numpy().tobytes(), moments.covariance.numpy().tobytes()


def exact_scatter(pixels: torch.Tensor) -> torch.Tensor:
    """From integers; only the scaling of pixels (n, D) rounds."""
    exact = pixels.long()
    scaled = len(exact) * (exact.T @ exact) - torch.outer(exact.sum(0), exact.sum(0))
    return scaled.double() / (len(exact) * 127.5**2)


def test_pixels_are_exact_whatever_the_blocks_order_and_processes():
    expected = bits(sums([PIXELS]).moments())
    for size in (1, 7, 399):
        assert bits(sums(PIXELS.split(size)).moments()) == expected
    shuffled = PIXELS[torch.randperm(400, generator=GENERATOR)]
    assert bits(sums([shuffled]).moments()) == expected
    merged = sums([PIXELS[300:]])
    for other in (sums([PIXELS[:10]]), sums([PIXELS[10:300]])):
        merged.merge(other)
    assert bits(merged.moments()) == expected


def test_pixels_are_numpys():
    moments = sums([PIXELS]).moments()
    x = PIXELS.flatten(1).numpy().astype(np.float64) / 127.5 - 1
    covariance = np.cov(x.T)
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0), rtol=0, atol=1e-15)
    difference = np.abs(moments.covariance.numpy() - covariance).max()
    assert difference < 1e-12 * np.abs(covariance).max()
    assert moments.sigma_data == pytest.approx(x.std(), rel=1e-14)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(2, 30), st.integers(1, 6))))
@settings(max_examples=50, deadline=None)
def test_pixels_are_right_to_the_last_digits(pixels):
    """Where a column is constant or nearly so, too."""
    made = PixelSums(pixels.shape[1])
    made.add(torch.from_numpy(pixels))
    scatter = made.moments().scatter
    expected = exact_scatter(torch.from_numpy(pixels))
    assert torch.allclose(scatter, expected, rtol=1e-14, atol=1e-18 * len(pixels))
    assert torch.equal(scatter, scatter.T)
    assert not scatter.diagonal()[expected.diagonal() == 0].any()


def test_many_extreme_pixels_stay_exact():
    """More than wait, with sums far above what float32 holds: white in equal and rare numbers."""
    black = torch.zeros(2 * WAITING + 3, 3, dtype=torch.uint8)
    black[::2, 1] = 255
    black[4999, 2] = 255
    made = PixelSums(3)
    made.add(black)
    assert torch.allclose(made.moments().scatter, exact_scatter(black), rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", [2**17, 500])
def test_sums_of_many_images_do_not_overflow(size):
    """Of black ones: 2^31, one more than the integers of 32 bits, that they are summed in, hold."""
    made = PixelSums(2)
    for part in torch.zeros(1, dtype=torch.uint8).expand(2**17, 2).split(size):
        made.add(part)
    assert not made.moments().scatter.any()


def test_odd_sums_that_float32_does_not_hold_are_exact():
    """One pixel that differs: an odd sum of squares above 2^24, and odd products beside it."""
    pixels = torch.full((2000, 2), 255, dtype=torch.uint8)
    pixels[5, 0] = 128
    pixels[:7, 1] = 3
    made = PixelSums(2)
    made.add(pixels)
    assert torch.allclose(made.moments().scatter, exact_scatter(pixels), rtol=1e-13, atol=0)


def test_products_of_any_size_are_exact():
    """More columns and rows than the panels and blocks that the products are made of."""
    pixels = torch.randint(0, 256, (700, 1100), generator=GENERATOR, dtype=torch.uint8)
    pixels[:, ::3] = 255 * (pixels[:, ::3] // 128)
    made = PixelSums(1100)
    made.add(pixels)
    scatter = made.moments().scatter
    assert torch.allclose(scatter, exact_scatter(pixels), rtol=1e-14, atol=1e-12)
    assert torch.equal(scatter, scatter.T)


def test_reading_the_moments_does_not_end_the_summing():
    made = sums([PIXELS[:100]])
    made.moments()
    made.add(PIXELS[100:])
    assert bits(made.moments()) == bits(sums([PIXELS]).moments())


def test_the_callers_buffer_may_be_used_again():
    made, buffer = PixelSums(48), torch.empty_like(PIXELS[:100])
    for part in PIXELS.split(100):
        made.add(buffer.copy_(part))
    assert bits(made.moments()) == bits(sums([PIXELS]).moments())


def test_floats_merge_in_any_order():
    x = torch.randn(301, 9, generator=GENERATOR, dtype=torch.float64) + 1e6
    whole = Moments.of(x)
    a, b, c = (Moments.of(part) for part in x.split(137))
    for merged in (a.merge(b).merge(c), c.merge(a.merge(b)), b.merge(c).merge(a)):
        assert merged.count == 301
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-15)
        assert torch.allclose(merged.covariance, whole.covariance, rtol=0, atol=1e-9)
    centred = torch.from_numpy(np.cov((x - 1e6).T.numpy()))
    assert torch.allclose(whole.covariance, centred, rtol=0, atol=1e-9)


def test_one_sample_has_no_spread():
    moments = Moments.of(torch.ones(1, 3))
    assert torch.equal(moments.covariance, torch.zeros(3, 3).double())


def test_what_is_no_pixel_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        PixelSums(48).add(PIXELS.float())
    with pytest.raises(ValueError, match="expected images of 48 values, got 1"):
        PixelSums(48).add(PIXELS[:, :1, :1, :1])
    with pytest.raises(ValueError, match="no image"):
        PixelSums(48).moments()


@pytest.mark.skipif(not SHARED.exists(), reason="the real images are not here")
def test_real_images():
    """Every eigenvalue within 1e-9 of numpy's; on 1,000 images 999 of them are not zero."""
    images = datasets.load(SHARED / "data" / "cifar10-test1000.zip").images()
    images = images[:, :, ::2, ::2]
    made = PixelSums(768)
    made.add(images)
    moments = made.moments()
    x = from_uint8(images.flatten(1), torch.float64).numpy()
    covariance = np.cov(x.T)
    difference = np.abs(moments.covariance.numpy() - covariance).max()
    assert difference < 1e-12 * np.abs(covariance).max()
    ours = Gaussian.from_covariance(moments.mean, moments.covariance).eigenvalues.numpy()
    np.testing.assert_allclose(ours, np.linalg.eigvalsh(covariance)[::-1], rtol=1e-9)
