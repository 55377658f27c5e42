"""What a fit needs and which structure suits; parts of a dataset, and real numbers."""

import re

import numpy as np
import pytest
import torch

from linear_structure import fit, parameters, planning
from linear_structure.data.datasets import Dataset, load
from linear_structure.gaussian import Gaussian, Planned
from linear_structure.points import PointCloud
from linear_structure.spectral import Spectral
from linear_structure.system.errors import UsageError


@pytest.mark.parametrize("sigma", [12.9, 3.0, 1.0])
def test_the_planned_rank_is_the_least_that_keeps_the_error(sigma):
    """The error of a teleport from endless noise, whose ends are `sqrt(lam + sigma^2) z`."""
    lam = 100 / torch.arange(1, 49, dtype=torch.float64) ** 2
    full = Gaussian(torch.zeros(48).double(), torch.eye(48).double(), lam)
    rank = Planned(sigma, 0.01).of(lam, 48)
    assert 0 < rank < 48
    far = 1e7
    unit = full.flow(far * torch.eye(48, dtype=torch.float64), far, sigma)
    for kept, within in ((rank, True), (rank - 1, False)):
        moved = full.truncated(kept).flow(far * torch.eye(48).double(), far, sigma) - unit
        assert (float((moved.square().sum() / 48).sqrt()) / sigma <= 0.01) == within
    assert len(full.truncated(Planned(sigma, 0.01)).eigenvalues) == rank


def test_the_ranks_of_cifar10_are_the_published_ones():
    """Of the first levels; the shipped file has 300 of 3072 directions."""
    lam = parameters.load("edm/weights/cifar10-parameters").model.eigenvalues
    assert [Planned(sigma).of(lam, 3072) for sigma in (12.91, 8.40, 5.32)] == [2, 7, 21]


def test_the_forecast_names_what_would_fit():
    shape, free = (3, 256, 256), 2_000_000_000
    many = Dataset("many", 200_000, shape, lambda *_: torch.zeros(0), lambda: None)
    with pytest.raises(UsageError, match=r"take about 927.7 GB of memory, .* 2.0 GB are free"):
        planning.check_memory("gaussian", many, 8, free)
    with pytest.raises(UsageError, match=r"spectral ones take 0.3 GB"):
        planning.check_memory("gaussian", many, 8, free)
    assert "spectral parameters of 200,000 images" in planning.check_memory(
        "spectral", many, 8, free
    )
    with pytest.raises(UsageError) as refused:
        planning.check_memory("spectral", many, 128, free)
    assert "spectral ones" not in str(refused.value)
    assert "--low 8 takes 0.3 GB; or take a machine with more" in str(refused.value)
    assert planning.check_memory("gaussian", many, 8, None)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "pointcloud", "spectral"])
def test_the_count_that_would_fit_is_the_largest(kind):
    def images(count):
        return Dataset("some", count, (1, 16, 16), lambda *_: torch.zeros(0), lambda: None)

    free = planning.memory_of(kind, 100, (1, 16, 16), 8) + 100
    with pytest.raises(UsageError, match=r"would fit; or take a machine with more") as refused:
        planning.check_memory(kind, images(10**8), 8, free)
    fitting = int(re.search(r"--count (\d+) would", str(refused.value))[1])
    assert 100 <= fitting < 10**8 and planning.check_memory(kind, images(fitting), 8, free)
    with pytest.raises(UsageError):
        planning.check_memory(kind, images(fitting + 1), 8, free)
    with pytest.raises(UsageError, match=r"are free: or take") as refused:
        planning.check_memory(kind, images(10**8), 8, 200)
    assert "--count" not in str(refused.value) and "spectral ones" not in str(refused.value)


def test_held_out_errors_tell_smooth_images_from_aligned_ones():
    """Fields of one spectrum are better off with frequencies, multiples of one image with rank."""
    generator = torch.Generator().manual_seed(0)
    amplitude = torch.outer(*[1 / (1 + torch.arange(16.0)) for _ in range(2)])
    white = torch.randn(300, 1, 16, 16, generator=generator)
    smooth = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
    shapes = torch.randn(3, 1, 16, 16, generator=generator)
    aligned = torch.einsum("nk,kchw->nchw", torch.randn(300, 3, generator=generator), shapes)
    for images, better in ((smooth, "spectral"), (aligned, "gaussian")):
        dataset = of_floats(images)
        found = planning.trials(dataset, 4, float(images.std()))
        assert (found.total, found.fitted, found.apart, len(found.rows)) == (300, 240, 60, 3)
        assert found.rows[0].better == better
        assert f"{better} is better" in planning.told(found)[1]


def of_floats(images: torch.Tensor) -> Dataset:
    count, *shape = images.shape
    return Dataset("floats", count, tuple(shape), lambda a, b: images[a:b], lambda: None, False)


def test_a_structure_that_holds_all_is_not_better():
    found = planning.trials(load("digits"), 8, 0.75)
    assert {trial.better for trial in found.rows} == {"neither"}
    few = planning.trials(load("digits").only(torch.arange(39)), 8, 0.75)
    assert few.rows == [] and planning.told(few) == []


def test_few_images_do_not_tell_which_structure_is_better_for_all(monkeypatch):
    """Of a covariance that no frequencies hold: with few images spectral wins, with all it loses.

    What was held out, and a second fit that is not afforded, are as the report says.
    """
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(144, 144, generator=generator))
    spread = 0.1 / (1 + torch.arange(144.0)) ** 0.5
    other = torch.randn(4000, 144, generator=generator) * spread @ axes
    smooth = torch.outer(*[2 / (1 + torch.arange(12.0)) for _ in range(2)])
    white = torch.randn(4000, 1, 12, 12, generator=generator)
    dataset = of_floats(other.view_as(white) + torch.fft.ifft2(torch.fft.fft2(white) * smooth).real)
    whole = planning.trials(dataset, 0, 0.2)
    assert (whole.fitted, whole.apart) == (3800, 200)
    assert whole.rows[0].better == "gaussian" and len(planning.told(whole)) == 4
    monkeypatch.setattr(planning, "AFFORDED", (0, 1e9))
    monkeypatch.setattr(planning, "FEW", (400, 10**6))
    few = planning.trials(dataset, 0, 0.2)
    assert (few.total, few.fitted, few.apart) == (4000, 320, 80)
    assert few.rows[0].better == "spectral"
    assert planning.told(few)[-1].endswith(
        "with more images a full covariance gains, and may be better"
    )
    assert planning.trials(dataset, 0, 0.2, 2).rank == 2


@pytest.mark.parametrize("change", [(3.0, 2.0, 4.0), (-28.0, -29.0, -27.0), (0.1, -1.0, 1.2)])
@pytest.mark.parametrize("rank", [None, 5])
def test_whatever_wins_by_few_images_is_said_to_be_uncertain_for_a_rank(rank, change):
    """A rank that is given gains little by more images; a full covariance gains much."""
    row = planning.Trial(2.0, 0.1, 0.1, change)
    few, most = (planning.Trials(20_000, used, 80, [row], rank) for used in (320, 19_000))
    said = planning.told(few)[2:]
    assert planning.told(most)[2:] == []
    if row.better == "neither" or (rank is None and row.better == "gaussian"):
        assert said == []
    else:
        wins = "a full covariance gains" if rank is None else "either may be better"
        assert len(said) == 1 and wins in said[0]


def test_rounding_does_not_decide_which_structure_is_better():
    """Of equal images both keep all: what is left is rounding, of one more than of the other."""
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = planning.trials(of_floats(one.expand(200, 3, 8, 8)), 4, 0.3)
    assert {row.better for row in found.rows} == {"neither"}


@pytest.mark.parametrize(
    ("count", "shape", "free", "used"),
    [
        (50_000, (3, 32, 32), None, 50_000),  # CIFAR-10, in a minute
        (60_000, (1, 28, 28), 2**30, 60_000),
        (50_000, (3, 32, 32), 2**27, 2200),  # no room for a second covariance
        (70_000, (3, 64, 64), None, 682),  # FFHQ, hours
        (2_000, (3, 256, 256), None, 42),  # fast, but 16 GB
    ],
)
def test_all_images_are_compared_on_where_time_and_memory_allow(count, shape, free, used):
    dataset = Dataset("some", count, shape, lambda *_: torch.zeros(0), lambda: None)
    assert planning._used(dataset, 8, free) == used


def test_a_second_fit_has_the_rank_that_is_asked_for():
    dataset = load("digits")
    all_of_it = planning.trials(dataset, 8, 0.75)
    low = planning.trials(dataset, 8, 0.75, rank=2)
    assert all(a.gaussian > b.gaussian for a, b in zip(low.rows, all_of_it.rows, strict=True))
    assert [each.spectral for each in low.rows] == [each.spectral for each in all_of_it.rows]


def test_the_intervals_of_held_out_errors_hold_the_truth():
    """Of pairs that both are chi-square, whose ratio is 1: in 95 % of 400 trials of 20 images."""
    generator = torch.Generator().manual_seed(0)

    class Fixed:
        dim = 1

        def __init__(self, error):
            self.error = error

        def squared_error(self, held, sigma):
            return self.error

    inside = 0
    for _ in range(400):
        common = torch.randn(20, 5, generator=generator).double().square().sum(1)
        a, b = (
            common + torch.randn(20, 5, generator=generator).double().square().sum(1)
            for _ in range(2)
        )
        _, low, high = planning._trial(Fixed(a), Fixed(b), a, 1.0).change
        inside += low < 0 < high
    assert 0.92 * 400 < inside < 0.98 * 400


def test_only_some_images_have_their_labels():
    digits, chosen = load("digits"), torch.tensor([3, 4, 700])
    part = digits.only(chosen)
    assert torch.equal(part.images(), digits.images()[chosen])
    assert torch.equal(part.labels(), digits.labels()[chosen])
    assert torch.equal(part.read(1, 3), digits.images()[chosen[1:]])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("end", ["npy", "npz"])
def test_latents_are_taken_as_they_are(tmp_path, dtype, end):
    values = np.random.default_rng(0).normal(3, 20, (50, 4, 3, 2)).astype(dtype)
    path = tmp_path / f"latents.{end}"
    np.save(path, values) if end == "npy" else np.savez(path, images=values)
    with pytest.raises(UsageError, match="uint8"):
        load(path)
    dataset, rows = load(path, floats=True), values.reshape(50, -1).astype(np.float64)
    assert (dataset.count, dataset.shape, dataset.pixels) == (50, (4, 3, 2), False)
    for kind in ("gaussian", "spectral", "isotropic", "mixture"):
        model, story = fit.fit(dataset, kind, components=2, batch=7)
        assert story.pixel_range is None
        assert story.sigma_data == pytest.approx(rows.std(), rel=1e-10)
        if kind != "mixture":
            np.testing.assert_allclose(model.mean, rows.mean(0), rtol=0, atol=1e-10)
    gaussian, _ = fit.fit(dataset, batch=7)
    covariance = (gaussian.basis * gaussian.eigenvalues) @ gaussian.basis.T
    np.testing.assert_allclose(covariance, np.cov(rows.T), rtol=0, atol=1e-9)
    with pytest.raises(UsageError, match="point clouds are kept as uint8"):
        fit.fit(dataset, PointCloud.kind)
    parameters.save(tmp_path / "p", *fit.fit(dataset, Spectral.kind, low=2))
    assert "real numbers" in parameters.load(tmp_path / "p").notice


def test_latents_that_are_none_are_refused(tmp_path):
    values = np.zeros((5, 4, 3, 2), np.float32)
    np.save(tmp_path / "flat.npy", values[0])
    with pytest.raises(UsageError, match=r"\(n, C, H, W\)"):
        load(tmp_path / "flat.npy", floats=True)
    values[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", values)
    with pytest.raises(UsageError, match="NaN or infinity, in images 0 to 4"):
        fit.fit(load(tmp_path / "nan.npy", floats=True), "spectral")
