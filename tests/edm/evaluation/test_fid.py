"""Theorems about the distances between sets of features, and the files that hold statistics."""

import io
import math
import weakref
import zipfile
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch

from edm.evaluation import fid
from edm.evaluation.fid import Repeated, Statistics, frechet, measure
from edm.evaluation.kid import kid, mmd_squared
from edm.evaluation.precision_recall import precision_recall
from linear_structure.system.errors import UsageError, WorkError


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def statistics(sigma, mu=None):
    return Statistics(torch.zeros(len(sigma), dtype=torch.float64) if mu is None else mu, sigma)


def factor(eigenvalues):
    """F of a dense covariance F F' with these eigenvalues: a reflection of scaled axes."""
    across = normal(len(eigenvalues), seed=1)
    mirror = torch.outer(across, across) / across.square().sum()
    return (torch.eye(len(eigenvalues)) - 2 * mirror) * eigenvalues.double().sqrt()


def covariance(eigenvalues):
    root = factor(eigenvalues)
    return root @ root.T


def positive_definite(dim, seed):
    """Dense, of condition below 10."""
    x = normal(dim, dim, seed=seed) / dim**0.5
    return x @ x.T + torch.eye(dim, dtype=torch.float64) / 2


SPECTRA = {
    "decaying": lambda dim: torch.logspace(0, -9, dim),
    "steep": lambda dim: torch.logspace(0, -14, dim),
    "harmonic": lambda dim: 1 / torch.arange(1, dim + 1),
    "flat": torch.ones,
    "rank 100": lambda dim: torch.logspace(0, -6, dim) * (torch.arange(dim) < 100),
    "rank one": lambda dim: torch.eye(dim)[0],
}


@pytest.mark.parametrize(
    "dim, name", [*((128, name) for name in SPECTRA), (2048, "decaying"), (2048, "rank 100")]
)
def test_distance_has_its_closed_form_where_one_covariance_is_the_other_transformed(dim, name):
    a = positive_definite(dim, seed=1)
    first = covariance(SPECTRA[name](dim))
    second = a @ first @ a
    overlap = float((a @ first).trace())  # of sqrt(first @ second)
    expected = float(first.trace() + second.trace()) - 2 * overlap
    found = frechet(statistics(first), statistics((second + second.T) / 2))
    assert found == pytest.approx(expected, abs=1e-10 * overlap)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_covariance_of_low_rank_against_a_full_one(name):
    low, root = normal(128, 5), factor(SPECTRA[name](128))
    first, second = low @ low.T, root @ root.T
    overlap = float(torch.linalg.svdvals(low.T @ root).sum())
    expected = float((first + second).trace()) - 2 * overlap
    found = frechet(statistics(first), statistics(second))
    assert found == pytest.approx(expected, abs=1e-10 * overlap)


def test_distance_agrees_with_a_matrix_square_root():
    a, b = positive_definite(64, seed=1), positive_definite(64, seed=2)
    root = scipy.linalg.sqrtm((a @ b).numpy()).real
    expected = float((a + b).trace()) - 2 * root.trace()
    assert frechet(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-10)


def test_distance_is_symmetric_and_zero_between_equals():
    a, b = measure([normal(90, 16)]), measure([normal(80, 16, seed=1) * 2 + 1])
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert 0 <= frechet(a, a) < 1e-12 * float(a.sigma.trace())
    assert frechet(a, b) > 1


def test_distance_of_a_translation_is_its_squared_length():
    a, shift = measure([normal(90, 16)]), normal(16, seed=1)
    moved = statistics(a.sigma, a.mu + shift)
    assert frechet(a, moved) == pytest.approx(float(shift.square().sum()), rel=1e-12)


def test_distance_of_features_rotated_and_scaled_together():
    x, y = normal(90, 16), normal(80, 16, seed=1) + 1
    axes = torch.linalg.qr(normal(16, 16, seed=2)).Q
    before = frechet(measure([x]), measure([y]))
    assert frechet(measure([3 * x @ axes]), measure([3 * y @ axes])) == pytest.approx(9 * before)


@pytest.mark.parametrize("other", [torch.zeros(3, 3), torch.diag(torch.tensor([4.0, 0, 0]))])
def test_a_point_and_a_line_have_distances_too(other):
    point, other = statistics(torch.zeros(3, 3).double()), statistics(other.double())
    assert frechet(point, other) == float(other.sigma.trace())


def test_covariances_that_are_none_are_refused():
    sigma = torch.diag(torch.tensor([1.0, -0.5])).double()
    with pytest.raises(UsageError, match="not a covariance"):
        frechet(statistics(sigma), statistics(sigma))


def test_features_of_two_networks_are_refused():
    a = measure([normal(9, 4)], "first")
    with pytest.raises(UsageError, match="two networks"):
        frechet(a, measure([normal(9, 4)], "second"))
    with pytest.raises(UsageError, match="4 and 3 dimensions"):
        frechet(a, measure([normal(9, 3)]))
    assert frechet(a, measure([normal(9, 4)])) < 1e-12


def test_statistics_are_mean_and_covariance():
    x = normal(50, 6) + 5
    found = measure(x.split(7), "network")
    np.testing.assert_allclose(found.mu, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(x.T), rtol=1e-10, atol=1e-12)
    assert (found.count, found.features, found.dim) == (50, "network", 6)


@pytest.mark.parametrize("size", [1, 700, fid.ROWS, 2500])
def test_statistics_do_not_depend_on_how_the_rows_are_cut(size):
    x = normal(2500, 3).float()
    whole, cut = measure([x]), measure(x.split(size))
    assert cut.digest == whole.digest
    assert cut.count == 2500


def test_a_stream_is_not_held_in_memory():
    alive = weakref.WeakSet()

    def blocks():
        for seed in range(50):
            block = normal(100, 4, seed=seed)
            alive.add(block)
            yield block
            assert len(alive) <= 2

    assert measure(blocks()).count == 5000


def test_too_few_or_damaged_features_are_refused():
    for rows in ([], [normal(1, 4)]):
        with pytest.raises(UsageError, match="at least two images"):
            measure(rows)
    with pytest.raises(WorkError, match="NaN"):
        measure([torch.tensor([[1.0, math.nan], [0.0, 1.0]])])


def test_statistics_come_back_from_their_file(tmp_path):
    path, written = tmp_path / "a" / "statistics.npz", measure([normal(9, 4)], "network")
    fid.write(path, written)
    found = fid.read(path)
    assert (found.digest, found.count, found.features) == (written.digest, 9, "network")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_published_file_has_mu_and_sigma_alone(tmp_path, dtype):
    path = tmp_path / "published.npz"
    np.savez(path, mu=np.zeros(2, dtype), sigma=np.eye(2, dtype=dtype))
    found = fid.read(path)
    assert (found.count, found.features) == (None, None)
    assert found.mu.dtype == found.sigma.dtype == torch.float64


STANDARD = {"mu": np.zeros(2), "sigma": np.eye(2)}


@pytest.mark.parametrize(
    "arrays, complaint",
    [
        ({"m": np.zeros(2), "s": np.eye(2)}, "holds m, s"),
        ({"mu": np.zeros(2)}, "holds mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"shape \(3,\) and sigma \(2, 2\)"),
        ({"mu": np.zeros((1, 2)), "sigma": np.eye(2)}, "shape"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) * 1j}, "complex"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "NaN"),
        ({"mu": np.array([0, np.inf]), "sigma": np.eye(2)}, "infinite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "not symmetric"),
        ({}, "holds nothing"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"shape \(0,\)"),
        (STANDARD | {"count": np.zeros(3)}, r"count has shape \(3,\) and type float64"),
        (STANDARD | {"count": np.array("many")}, "count has shape .* and type <U4"),
        (STANDARD | {"count": np.array(-1)}, "count"),
        (STANDARD | {"features": np.zeros((2, 2))}, r"features has shape \(2, 2\)"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "numpy arrays"),
    ],
)
def test_files_that_hold_no_statistics_are_refused(tmp_path, arrays, complaint):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(UsageError, match=rf"wrong\.npz .*{complaint}"):
        fid.read(tmp_path / "wrong.npz")


def archive(path, offset, value, compression=zipfile.ZIP_STORED):
    """Statistics in a zip, two bytes of whose entries are others, as in both kinds of header."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, values in STANDARD.items():
            content = io.BytesIO()
            np.save(content, values)
            file.writestr(f"{name}.npy", content.getvalue())
    data = bytearray(path.read_bytes())
    for signature, start in ((b"PK\3\4", offset), (b"PK\1\2", offset + 2)):
        at = data.find(signature) + start
        data[at : at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    "offset, value, compression",
    [
        (6, 1, zipfile.ZIP_STORED),  # encrypted
        (8, 9, zipfile.ZIP_STORED),  # a compression that Python does not know
        (8, 8, zipfile.ZIP_STORED),  # not deflated, though it says so
        (40, 0, zipfile.ZIP_BZIP2),  # damaged in the compressed part
        (45, 0, zipfile.ZIP_LZMA),
        (45, 0, zipfile.ZIP_DEFLATED),
    ],
)
def test_archives_that_cannot_be_unpacked_are_one_sentence(tmp_path, offset, value, compression):
    archive(tmp_path / "odd.npz", offset, value, compression)
    with pytest.raises(UsageError, match=r"odd\.npz (cannot be read as numpy arrays|holds m,)"):
        fid.read(tmp_path / "odd.npz")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x93NUMPY", b"mu"])
def test_files_that_are_no_archive_are_one_sentence(tmp_path, content):
    (tmp_path / "odd.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"odd\.npz cannot be read as numpy arrays"):
        fid.read(tmp_path / "odd.npz")


def test_entries_that_are_no_arrays_are_one_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as file:
        file.writestr("mu", b"text")
        file.writestr("sigma", b"text")
    with pytest.raises(UsageError, match=r"odd\.npz cannot be read as numpy arrays"):
        fid.read(tmp_path / "odd.npz")


def test_files_that_are_none_are_refused(tmp_path):
    fid.write(tmp_path / "cut.npz", measure([normal(9, 40)]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-300])
    (tmp_path / "page.npz").write_text("<html>")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for path in [*tmp_path.iterdir(), tmp_path / "missing.npz"]:
        with pytest.raises(UsageError, match=path.name):
            fid.read(path)


def test_repeated_distances_have_mean_spread_and_published_minimum():
    repeated = Repeated((1.0, 2.0, 6.0))
    assert (repeated.mean, repeated.minimum) == (3, 1)
    assert repeated.spread == pytest.approx(math.sqrt(7))
    assert math.isnan(Repeated((1.0,)).spread)


def test_distances_at_different_n_are_refused():
    with pytest.raises(UsageError, match="n = 500, 400 do not compare"):
        fid.refuse_unequal([500, 400])


def cubic(x, y):
    return (float(x @ y) / len(x) + 1) ** 3


def test_mmd_equals_its_definition():
    x, y = normal(5, 3).numpy(), normal(4, 3, seed=1).numpy()
    within = [
        np.mean([cubic(p[i], p[j]) for i, j in product(range(len(p)), repeat=2) if i != j])
        for p in (x, y)
    ]
    between = np.mean([cubic(p, q) for p, q in product(x, y)])
    assert mmd_squared(x, y) == pytest.approx(sum(within) - 2 * between)


def test_kid_is_unbiased_and_sees_a_difference():
    x, y = normal(2000, 4).numpy(), normal(2000, 4, seed=1).numpy()
    same = kid(x, y, size=100)
    assert abs(same.mean) < 3 * same.deviation / 10
    assert kid(x, y + 1, subsets=5, size=100).mean > 1
    assert kid(x, y, size=100) == same


def test_kid_of_whole_sets_does_not_depend_on_the_draw():
    x, y = normal(50, 4).numpy(), normal(50, 4, seed=1).numpy()
    found = kid(x, y, subsets=3, size=50)
    assert found.mean == pytest.approx(mmd_squared(x, y))
    assert found.deviation < 1e-12
    with pytest.raises(UsageError, match="subsets of 51 images"):
        kid(x, y, size=51)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_their_definition(k):
    x, y = normal(60, 3), 0.7 * normal(50, 3, seed=1) + 0.5
    reach_x = torch.cdist(x, x).kthvalue(k + 1).values
    reach_y = torch.cdist(y, y).kthvalue(k + 1).values
    between = torch.cdist(x, y)
    precision = float((between <= reach_y).any(1).double().mean())
    recall = float((reach_x >= between.T).any(1).double().mean())
    assert precision_recall(x.numpy(), y.numpy(), k) == pytest.approx((precision, recall))
    assert 0 < precision < 1
    assert 0 < recall < 1


def test_precision_and_recall_at_their_ends():
    x = normal(60, 3).numpy()
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    assert precision_recall(x[:5], x).precision == 1
    with pytest.raises(UsageError, match="more than 3 images"):
        precision_recall(x[:3], x)


@pytest.mark.parametrize("scale", [1, 1e-3, 1e4])
def test_repeated_images_are_points_that_cover_their_like(scale):
    """Balls of radius 0: of a collapsed set, of one whose images come in fours, of a memory."""
    x = (scale * normal(400, 64)).float().numpy()
    collapsed = np.repeat(x[:1], 40, 0)
    assert precision_recall(collapsed, collapsed.copy()) == (1, 1)
    assert precision_recall(collapsed, np.repeat(x[1:2], 40, 0)) == (0, 0)
    fours = np.repeat(x[:100], 4, 0)
    shuffled = fours[np.random.default_rng(0).permutation(400)]
    assert precision_recall(shuffled, fours) == (1, 1)
    assert precision_recall(x[100:200], fours).precision == 0
    assert precision_recall(x[:200], fours, 1) == (0.5, 1)
