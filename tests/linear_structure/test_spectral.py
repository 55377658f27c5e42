"""The spectral Gaussian: the full one where its blocks hold all, and sums that are a mere sum."""

import pytest
import torch

from linear_structure.denoise import Position, score, slope
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.spectral import (
    Spectral,
    SpectralMoments,
    SpectralSums,
    cosines,
    inverse,
    transform,
)

SHAPES = [(1, 4, 4), (3, 4, 4), (2, 3, 5), (4, 5, 2), (5, 1, 3)]


def images_of(shape: tuple[int, ...], count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dim = shape[0] * shape[1] * shape[2]
    mixed = torch.randn(dim, dim, generator=generator, dtype=torch.float64) + torch.eye(dim)
    drawn = torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixed
    return (drawn * 0.3 + 0.2).view(count, *shape)


def states(shape: tuple[int, ...]) -> torch.Tensor:
    return 5 * torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).double()


def near(found, expected, tolerance=1e-12):
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_cosines_are_the_orthonormal_transform_by_its_definition(size):
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size).double()
    expected = (torch.pi * (n + 0.5) * k / size).cos() * (2 / size) ** 0.5
    expected[0] = size**-0.5
    assert torch.allclose(cosines(size), expected, rtol=0, atol=1e-14)
    x = torch.randn(2, 3, size, 4, dtype=torch.float64)
    assert torch.allclose(inverse(transform(x)), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_all_frequencies_in_the_block_it_is_the_full_gaussian(shape):
    x, y = images_of(shape), states(shape)
    full, spectral = Gaussian.from_samples(x), Spectral.from_samples(x, max(shape[1:]))
    for at, stop in ((80.0, 0.3), (3.0, 0.5), (Position(0.0, 1.0), Position(0.8, 0.6))):
        near(spectral.flow(y, at, stop), full.flow(y, at, stop))
        near(spectral.denoise(y, at), full.denoise(y, at))
        near(spectral.log_prob(y, at), full.log_prob(y, at))
        near(spectral.denoised_along(y, at, stop), full.denoised_along(y, at, stop))
        near(spectral.draw(y, stop), full.draw(y, stop))
    for at in (0.4, Position(0.3, 0.4)):
        near(spectral.squared_error(y, at), full.squared_error(y, at))
    near(spectral.log_prob(y, 0.0), full.log_prob(y, 0.0), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", [80.0, 300.0, 1000.0])
def test_half_precision_is_rounded_once(dtype, sigma):
    spectral = Spectral.from_samples(images_of((2, 3, 5)), 2)
    x, unit = (sigma * states((2, 3, 5))).to(dtype), torch.finfo(dtype).eps
    for of in (
        lambda y: spectral.denoise(y, sigma),
        lambda y: spectral.flow(y, sigma, 3.0),
        lambda y: spectral.flow(y, Position(0.1, sigma), Position(0.6, 0.8)),
        lambda y: spectral.draw(y, Position(0.1, 2.0)),
    ):
        exact, half = of(x.double()), of(x)
        assert half.dtype == dtype
        assert bool(((half.double() - exact).abs() <= unit * exact.abs() + 1e-6).all())


@pytest.mark.parametrize("low", [0, 1, 2, 3])
def test_the_covariance_is_the_full_one_within_its_blocks_and_0_between(low):
    shape = (2, 3, 5)
    x, (channels, height, width) = images_of(shape), shape
    spectral = Spectral.from_samples(x, low)
    basis = spectral.from_axes(torch.eye(30, dtype=torch.float64))  # rows are axes
    found = transform((basis.T * spectral.eigenvalues @ basis).view(30, *shape))
    found = transform(found.flatten(1).T.reshape(30, *shape)).flatten(1)
    expected = torch.cov(transform(x).flatten(1).T)
    _, h, w = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    block = torch.where((h < low) & (w < low), -1, h * width + w).flatten()
    same = block[:, None] == block
    assert torch.allclose(found, expected * same, rtol=0, atol=1e-12)
    assert torch.allclose(basis @ basis.T, torch.eye(30).double(), rtol=0, atol=1e-13)
    assert channels * height * width == spectral.dim


@pytest.mark.parametrize("low", [0, 2])
def test_flow_denoiser_and_density_agree(low):
    spectral, x = Spectral.from_samples(images_of((2, 3, 5)), low), states((2, 3, 5))
    a, b, c = 80.0, 3.0, 0.2
    near(spectral.flow(spectral.flow(x, a, b), b, c), spectral.flow(x, a, c))
    h = 1e-4
    rate = (spectral.flow(x, 3.0, 3.0 + h) - spectral.flow(x, 3.0, 3.0 - h)) / (2 * h)
    near(rate, slope(spectral.denoise, x, 3.0), 1e-7)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(spectral.log_prob(x, 0.5).sum(), x)
    assert torch.allclose(score(spectral.denoise, x, 0.5), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_sample_has_its_own_level_and_the_type_of_x(dtype):
    spectral, x = Spectral.from_samples(images_of((2, 3, 5)), 2), states((2, 3, 5)).to(dtype)
    start, stop = torch.tensor([80.0, 5.0, 1.0, 0.5]), torch.tensor([40.0, 5.0, 0.1, 0.2])
    flows = [spectral.flow(x[i : i + 1], start[i], stop[i]) for i in range(4)]
    assert spectral.flow(x, start, stop).dtype == dtype
    assert torch.allclose(spectral.flow(x, start, stop), torch.cat(flows), atol=1e-5)


def test_fewer_images_than_values_leave_directions_without_spread():
    spectral, x = Spectral.from_samples(images_of((3, 4, 4), count=5), 2), states((3, 4, 4))
    assert bool((spectral.eigenvalues >= 0).all())
    assert bool(torch.isfinite(spectral.denoise(x, 0.0)).all())
    with pytest.raises(ValueError, match="no density"):
        Spectral.from_samples(images_of((3, 4, 4), count=2), 0).log_prob(x, 0.0)


def moments_close(found: SpectralMoments, expected: SpectralMoments):
    assert found.count == expected.count
    for name in ("mean", "low", "rest"):
        near(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_sums_do_not_depend_on_blocks_or_their_order(offset):
    """Nor on a common offset, which sums of plain squares would lose half their digits to."""
    x = images_of((2, 3, 5)) + offset
    whole = SpectralMoments.of(x, 2)
    for size in (1, 7, 64, 299):
        sums = SpectralSums(2)
        for block, images in reversed([*enumerate(x.split(size))]):
            sums.add(images, block)
        moments_close(sums.moments(), whole)
    swapped = SpectralMoments.of(x.flip(0), 2)
    moments_close(swapped, whole)
    centred = SpectralMoments.of(x - offset, 2)
    near(whole.rest, centred.rest, 1e-10)
    assert whole.sigma_data == pytest.approx(float(x.std(correction=0)), rel=1e-12)


def values(moments: SpectralMoments) -> tuple[torch.Tensor, ...]:
    return moments.mean, moments.low, moments.rest


def summed(blocks: list[tuple[int, torch.Tensor]]) -> SpectralSums:
    sums = SpectralSums(2)
    for block, images in blocks:
        sums.add(images, block)
    return sums


def test_at_equal_blocks_sums_are_bit_equal_however_blocks_are_shared_out(one_thread):
    blocks = [*enumerate(images_of((2, 3, 5)).split(23))]  # 14 of them
    expected = summed(blocks).moments()
    shares = [[blocks[i::n] for i in range(n)] for n in (2, 3, 5)]
    shares += [[blocks[:5], blocks[5:6], blocks[6:]], [blocks[9:], blocks[:9]], [blocks[::-1]]]
    for share in shares:
        first, *others = map(summed, share)
        for other in others:
            first.merge(other)
        assert all(map(torch.equal, values(first.moments()), values(expected)))


def test_pixels_stand_for_what_they_are_elsewhere():
    pixels = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
    a, b = Spectral.from_samples(pixels, 2), Spectral.from_samples(from_uint8(pixels).double(), 2)
    near(a.mean, b.mean, 1e-6)
    near(a.eigenvalues, b.eigenvalues, 1e-6)


def test_what_files_keep_is_the_model_in_their_precision():
    spectral, x = Spectral.from_samples(images_of((2, 3, 5)), 2), states((2, 3, 5))
    again = Spectral.from_tensors(spectral.tensors())
    near(again.flow(x, 80.0, 1.0), spectral.flow(x, 80.0, 1.0), 1e-6)
    assert torch.equal(again.rescale(4).eigenvalues, 4 * spectral.eigenvalues)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("mu", lambda t: t[1:], r"do not fit"),
        ("rest", lambda t: t[1:], r"do not fit"),
        ("rest", lambda t: t.flatten(), r"do not fit"),
        ("low", lambda t: t[:, :, :1], r"do not fit"),
        ("lambdas", lambda t: -t, r"lambdas holds .* a variance below 0"),
        ("low", lambda t: 1.1 * t, r"the columns of low are not orthonormal"),
        ("rest", lambda t: t * 0, r"the columns of rest are not orthonormal"),
    ],
)
def test_tensors_that_make_no_model_are_refused(name, wrong, message):
    tensors = Spectral.from_samples(images_of((2, 3, 5)), 2).tensors()
    with pytest.raises(ValueError, match=message):
        Spectral.from_tensors({**tensors, name: wrong(tensors[name])})


def test_no_images_and_no_numbers_are_refused():
    x = images_of((2, 3, 5))
    with pytest.raises(ValueError, match="no image"):
        Spectral.from_samples(x[:0])
    x[7, 1, 1, 1] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        Spectral.from_samples(x)
