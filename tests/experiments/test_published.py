"""The authors' shares of the score, and ours beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from edm.network import network_of
from experiments import comparison, figures, published
from experiments.comparison import GAUSSIAN, ISOTROPIC, NOISE_SEED, POINTS, SPHERICAL, Key, States
from experiments.published import SHARES, SIGMAS
from experiments.sampling import Sampling
from linear_structure.gaussian import Gaussian
from linear_structure.images import from_uint8
from linear_structure.sampling.grids import sigma_grid
from linear_structure.system.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT.parent / "shared" / "reference" / "anywhere.md"
NAMED = {
    "exact point cloud": POINTS,
    "isotropic, s0": SPHERICAL,
    "mean only": ISOTROPIC,
    "Gaussian": GAUSSIAN,
    "rank 128": Key("gaussian", rank=128),
    "rank 1024": Key("gaussian", rank=1024),
    "mixture of 10, rank 1024": Key("mixture", 10, 1024),
    "best of 104 mixtures": Key("best of 104 mixtures"),
}
IMAGES = torch.randint(
    0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
FULL = Gaussian.from_samples(IMAGES)
NETWORK = FULL.truncated(9)  # of the test: what it explains of itself is known


@pytest.fixture
def study(tmp_path):
    """Of models beside a network that is a Gaussian of nine directions, and its states."""

    def made(makers, images):
        network = network_of(NETWORK.denoise, shape=(1, 4, 4), version="nine")
        sampling = Sampling(network, sigma_grid(6))
        machine = Machine(torch.device("cpu"), torch.get_num_threads())
        found = comparison.study_of(sampling, machine, makers, images, tmp_path)
        return found, States(sampling, range(20), images)

    return made


def test_shares_are_those_of_the_source():
    """Its table as it was noted elsewhere, row by row."""
    if not SOURCE.exists():
        pytest.skip(f"{SOURCE} is not here")
    table = SOURCE.read_text(encoding="utf-8").split("Animadversio/DiffusionMemorization", 1)[1]
    lines = [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| ")]
    head, *rows = ([name, *map(float, values)] for name, *values in lines)
    assert tuple(head[1:]) == SIGMAS
    assert {NAMED[name]: values for name, *values in rows} == {k: [*v] for k, v in SHARES.items()}


def test_published_shares_rise_with_noise_with_the_rank_and_with_what_a_model_knows():
    for shares in SHARES.values():
        assert len(shares) == len(SIGMAS)
        assert list(shares) == sorted(shares) and max(shares) <= 1
    best = SHARES[NAMED["best of 104 mixtures"]]
    lowest, low = (SHARES[Key("gaussian", rank=rank)] for rank in (128, 1024))
    for more, less in (
        (best, SHARES[GAUSSIAN]),
        (SHARES[GAUSSIAN], low),
        (low, lowest),
        (SHARES[SPHERICAL], SHARES[ISOTROPIC]),
    ):
        assert all(a >= b for a, b in zip(more, less, strict=True))


def unexplained(model, count: int) -> np.ndarray:
    """|s_network - s|^2 / |s_network|^2 of each noised image and level (n, L), in numpy alone."""
    clean = from_uint8(IMAGES[:: len(IMAGES) // count][:count]).double().flatten(1).numpy()
    noise = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(NOISE_SEED))
    mean = FULL.mean.numpy()
    axes, variances = FULL.basis.numpy(), FULL.eigenvalues.numpy()

    def score(rank, x, sigma):
        covariance = (axes[:, :rank] * variances[:rank]) @ axes[:, :rank].T
        return -np.linalg.solve(covariance + sigma**2 * np.eye(16), (x - mean).T).T

    found = []
    for sigma in SIGMAS:
        x = clean + sigma * noise.double().flatten(1).numpy()
        theirs = score(9, x, sigma)
        found.append(((score(model, x, sigma) - theirs) ** 2).sum(1) / (theirs**2).sum(1))
    return np.stack(found, 1)


def test_ours_is_at_the_published_levels_of_the_gaussian_of_all_directions(study):
    """Of the images that are at hand, not of the parameters; with half of a 95 % interval."""
    found = published.measured(*study(published.models(FULL, IMAGES), IMAGES), FULL)
    assert found.keys() == {ISOTROPIC, SPHERICAL, GAUSSIAN, POINTS}  # no rank of 128 in 16
    left = unexplained(16, 20)
    share, half = np.array(found[GAUSSIAN]).T
    np.testing.assert_allclose(1 - share, left.mean(0), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(half, 1.96 * left.std(0, ddof=1) / 20**0.5, rtol=1e-5, atol=1e-12)


def test_without_images_ours_is_named_by_its_rank(study):
    """Of six directions it is not the Gaussian of theirs, and stands in a row of its own."""
    six = FULL.truncated(6)
    found = published.measured(*study(comparison.models(six, None), None), six)
    own = Key("gaussian", rank=6)
    assert found.keys() == {ISOTROPIC, SPHERICAL, own}
    rows = published.beside(found)
    assert len(rows) == (len(SHARES) + 1) * len(SIGMAS)
    assert all(row[3] == "" for row in rows if row[0] == "Gaussian")
    mine = [row[1:] for row in rows if row[0] == "Gaussian, rank 6"]
    assert mine == [[sigma, "", *each] for sigma, each in zip(SIGMAS, found[own], strict=True)]


def test_both_are_drawn_as_they_are(tmp_path, monkeypatch, study):
    """Not rounded; where a published share is 1.0000, nothing."""
    kept = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, path, **_: (kept.append(figure), path.touch()),
    )
    ours = published.measured(*study(published.models(FULL, IMAGES), IMAGES), FULL)
    figures.published_shares(tmp_path / "p.png", ours, "both")
    axes = kept[0].axes[0]
    theirs = {line.get_label(): line for line in axes.lines}
    points = theirs["point cloud, published"]
    assert (points.get_linestyle(), to_rgba(points.get_color())) == (":", (0, 0, 0, 1))
    wanted = np.array([1 - share if share < 1 else np.nan for share in SHARES[POINTS]])
    np.testing.assert_array_equal(points.get_ydata(), wanted)
    assert np.isnan(points.get_ydata()[-1])
    assert {NAMED[name].title + ", published" for name in NAMED if "rank" not in name} < {*theirs}
    assert {name for name in theirs if name.endswith("ours")} == {
        f"{key.title}, ours" for key in (ISOTROPIC, SPHERICAL, GAUSSIAN, POINTS)
    }
    drawn, left = theirs["Gaussian, ours"], unexplained(16, 20).mean(0)
    assert tuple(drawn.get_xdata()) == SIGMAS
    np.testing.assert_allclose(drawn.get_ydata(), left, rtol=1e-5, atol=1e-12)
