"""A parameter directory: what is written comes back, what is not ours is refused."""

import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from linear_structure import parameters
from linear_structure.gaussian import Gaussian, Isotropic
from linear_structure.mixture import GaussianMixture
from linear_structure.parameters import STORY, Story
from linear_structure.points import PointCloud
from linear_structure.spectral import Spectral
from linear_structure.system import files
from linear_structure.system.errors import UsageError, run_command

SHAPE = (3, 4, 4)
DIM = 48
DIGITS = Story("digits", "0" * 64, 10, SHAPE, 0.5)


def gaussian(rank: int = 5, seed: int = 0) -> Gaussian:
    """As a file keeps it: float64 mean and eigenvalues, float32 basis."""
    values = torch.randn(DIM, DIM + 1, generator=torch.Generator().manual_seed(seed)).double()
    basis = torch.linalg.qr(values[:, 1:]).Q[:, :rank].float().contiguous()
    return Gaussian(values[:, 0].clone(), basis, torch.logspace(1, -2, rank, dtype=torch.float64))


def mixture() -> GaussianMixture:
    parts = (gaussian(5, 1), gaussian(0, 2), gaussian(DIM, 3))
    return GaussianMixture(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), parts)


MODELS = {
    "gaussian": gaussian(),
    "isotropic": Isotropic(gaussian().mean, 0.25),
    "mixture": mixture(),
    "pointcloud": PointCloud(torch.arange(10 * DIM).reshape(10, DIM).to(torch.uint8)),
}
drawn = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0))
MODELS["spectral"] = Spectral.from_tensors(Spectral.from_samples(drawn, 2).tensors())
every_kind = pytest.mark.parametrize("kind", MODELS)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but the lock beside parameters."""
    files = (path for path in directory.rglob("*") if path.is_file())
    paths = sorted(path for path in files if path.suffix != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def bare(directory: Path, model: Gaussian | None = None, **changed: object) -> Path:
    """Three tensors as the earlier reproduction leaves them: float32, the mean an image."""
    model = model or gaussian()
    values = {
        "mu": model.mean.float().reshape(SHAPE),
        "U": model.basis,
        "lambdas": model.eigenvalues.float(),
    } | changed
    directory.mkdir(exist_ok=True)
    for name, value in values.items():
        torch.save(value, directory / f"{name}.pt")
    return directory


def saved(directory: Path, kind: str = "gaussian") -> Path:
    parameters.save(directory, MODELS[kind], DIGITS)
    return directory


def refusal(directory: Path) -> str:
    """The one sentence with which a directory is refused."""
    with pytest.raises(UsageError) as caught:
        parameters.load(directory)
    sentence = str(caught.value)
    assert str(directory) in sentence
    assert "\n" not in sentence
    return sentence


# What is written comes back


@every_kind
def test_a_model_survives_the_way_through_files(tmp_path, kind):
    found = parameters.load(saved(tmp_path / "p", kind))
    assert found.model.kind == kind
    assert found.notice == ""
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(found.model.denoise(x, 0.3), MODELS[kind].denoise(x, 0.3))
    parameters.save(tmp_path / "again", found.model, DIGITS)
    assert content(tmp_path / "again") == content(tmp_path / "p")


@every_kind
def test_the_story_is_kept(tmp_path, kind):
    story = parameters.load(saved(tmp_path, kind)).story
    assert (story["kind"], story["dataset"], story["count"]) == (kind, "digits", 10)
    assert (story["image_shape"], story["label"]) == ([*SHAPE], None)
    assert story["format"] == parameters.FORMAT
    assert {"torch", "numpy", "scipy"} <= story["versions"].keys()
    listed = {path.name for path in tmp_path.iterdir()} - {STORY}
    assert story["files"].keys() == listed


def test_tensors_are_plain_and_of_the_stated_precision(tmp_path):
    saved(tmp_path)
    for name, dtype in (("mu", torch.float64), ("U", torch.float32), ("lambdas", torch.float64)):
        value = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert value.dtype == dtype
        assert value.is_contiguous()
        assert value.untyped_storage().nbytes() == value.nbytes


@every_kind
def test_the_digest_tells_values_not_files(tmp_path, kind):
    model = MODELS[kind]
    parameters.save(tmp_path / "a", model, DIGITS)
    parameters.save(tmp_path / "b", model, Story("other", "1" * 64, 3, SHAPE, 0.1))
    digests = {parameters.load(tmp_path / name).digest for name in "ab"}
    assert digests == {parameters.digest(model)}
    others = {parameters.digest(other) for other in MODELS.values()}
    assert len(others) == len(MODELS)


MEAN = torch.arange(4, dtype=torch.float64) / 8
PLANE = Gaussian(MEAN, torch.eye(4)[:, :2], torch.tensor([2.0, 0.5]))
PAIR = (PLANE, Gaussian(-MEAN, torch.eye(4)[:, :0], MEAN[:0]))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (PLANE, "526fdde7f8e9aaa81369408c7e35c22323deff39b6194b23b6a7e74398e20fed"),
        (
            Isotropic(MEAN, 0.25),
            "c1d08386c2dcadb2671306bfcedef96a56d3f664ddcdb2a2b5b7fcb259d501aa",
        ),
        (
            GaussianMixture(torch.tensor([0.75, 0.25]), PAIR),
            "dabe590bdbc1474b4ed726f6fbd3187f5f623a0de97253ff4d61c794bb35aff9",
        ),
        (
            PointCloud(torch.arange(8, dtype=torch.uint8).view(2, 4)),
            "1d7146449cb78e70a8faad23669233348c4c6d6633a1580196c5cc8a0404dbc5",
        ),
        (
            Spectral(MEAN, torch.ones(1, 1, 1, 1), torch.ones(2, 2, 1, 1), torch.arange(4) / 2),
            "800c7f19778bb8785aa37e82a41e07fe1c853cb54e3a4bdca3495697f954dd41",
        ),
    ],
    ids=MODELS,
)
def test_digests_are_those_of_stored_results(model, expected):
    assert parameters.digest(model) == expected


def test_a_digest_is_that_of_the_values_wherever_they_are():
    """On a GPU, or recorded for gradients: numpy takes neither."""
    assert parameters.digest(Isotropic(MEAN.clone().requires_grad_(), 0.25)) == parameters.digest(
        Isotropic(MEAN, 0.25)
    )


def test_a_digest_changes_with_any_value():
    g = gaussian()
    moved = Gaussian(g.mean + torch.eye(DIM, dtype=torch.float64)[3] * 1e-9, g.basis, g.eigenvalues)
    assert parameters.digest(moved) != parameters.digest(g)
    assert parameters.digest(gaussian(4)) != parameters.digest(g)


def test_a_digest_changes_with_the_shape():
    points = torch.arange(12, dtype=torch.uint8)
    wide, long = (PointCloud(points.view(n, -1)) for n in (3, 4))
    assert parameters.digest(wide) != parameters.digest(long)


def test_what_the_rank_rule_drops_is_not_written(tmp_path):
    g = gaussian(3)
    loose = Gaussian(g.mean, g.basis, g.eigenvalues * torch.tensor([1, 1, 1e-14]))
    parameters.save(tmp_path, loose, DIGITS)
    assert parameters.load(tmp_path).model.eigenvalues.equal(loose.eigenvalues[:2])
    assert parameters.load(tmp_path).digest == parameters.digest(loose)


def test_a_gaussian_without_directions_comes_back(tmp_path):
    parameters.save(tmp_path, gaussian(0), DIGITS)
    assert parameters.load(tmp_path).model.basis.shape == (DIM, 0)


@every_kind
def test_models_of_classes_come_back_by_label(tmp_path, kind):
    classes = [(MODELS[kind], Story("digits", "0" * 64, 3, SHAPE, 0.5, k)) for k in (0, 2, 11)]
    parameters.save(tmp_path / "p", MODELS[kind], DIGITS, classes)
    found = parameters.load_by_class(tmp_path / "p")
    assert list(found) == [0, 2, 11]
    assert {entry.digest for entry in found.values()} == {parameters.digest(MODELS[kind])}
    assert [entry.story["label"] for entry in found.values()] == [0, 2, 11]


def test_a_directory_without_classes_has_none(tmp_path):
    assert parameters.load_by_class(saved(tmp_path)) == {}


@dataclass(frozen=True)
class Spread(PointCloud):
    """Pixels, each with as much Gaussian noise: a kind that nothing but its row tells of."""

    kind = "spread"
    files = ("points.npy", "scale.pt")
    scale: float = 0.0

    @classmethod
    def from_tensors(cls, tensors):
        if float(tensors["scale"]) < 0:
            raise ValueError("scale: expected 0 or more")
        return cls(tensors["points"], scale=float(tensors["scale"]))

    def tensors(self):
        return {"points": self.points, "scale": torch.tensor(self.scale).double()}


def test_a_new_kind_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setitem(parameters.KINDS, "spread", Spread)
    monkeypatch.setattr(parameters, "CONTENTS", {*parameters.CONTENTS, *Spread.files})
    model = Spread(MODELS["pointcloud"].points, scale=0.5)
    parameters.save(tmp_path / "p", model, DIGITS)
    found = parameters.load(tmp_path / "p")
    assert isinstance(found.model, Spread) and found.model.scale == 0.5
    assert torch.equal(found.model.points, model.points)
    assert found.digest == parameters.digest(model)
    assert found.story["dtype"] == {"scale": "float64"}
    parameters.save(tmp_path / "p", Spread(model.points, scale=-1.0), DIGITS)
    assert refusal(tmp_path / "p") == f"{tmp_path / 'p'}: scale: expected 0 or more"


def test_points_that_are_no_pixels_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"torch\.float32"):
        parameters.save(tmp_path / "p", PointCloud(torch.rand(3, DIM)), DIGITS)
    assert not (tmp_path / "p").exists()


# Directories of the earlier reproduction


def test_bare_tensors_load_as_they_are_and_say_so(tmp_path):
    found, g = parameters.load(bare(tmp_path)), gaussian()
    assert found.story == {}
    assert "taken as pixels in [-1, 1]" in found.notice
    assert "\n" not in found.notice
    assert found.model.mean.equal(g.mean.float().double())
    assert found.model.basis.equal(g.basis)
    assert found.model.eigenvalues.equal(g.eigenvalues.float().double())


def test_bare_tensors_are_sorted_and_small_negative_rounding_is_dropped(tmp_path):
    g, order = gaussian(), torch.tensor([3, 0, 4, 1, 2])
    eigenvalues = g.eigenvalues.clone()
    eigenvalues[4] = -1e-7 * eigenvalues[0]
    bare(tmp_path, U=g.basis[:, order], lambdas=eigenvalues[order])
    found = parameters.load(tmp_path).model
    assert found.eigenvalues.equal(g.eigenvalues[:4])
    assert found.basis.equal(g.basis[:, :4])


def test_eigenvalues_of_another_pixel_range_are_rescaled(tmp_path):
    plain, scaled = parameters.load(bare(tmp_path)), parameters.load(tmp_path, 4.0)
    assert scaled.model.eigenvalues.equal(4 * plain.model.eigenvalues)
    assert scaled.model.mean.equal(plain.model.mean)
    assert scaled.digest != plain.digest
    parts = parameters.load(saved(tmp_path / "m", "mixture"), 4.0).model.components
    assert parts[0].eigenvalues.equal(4 * MODELS["mixture"].components[0].eigenvalues)


@pytest.mark.parametrize("kind", ["isotropic", "pointcloud"])
def test_without_eigenvalues_there_is_nothing_to_rescale(tmp_path, kind):
    with pytest.raises(UsageError, match="no eigenvalues"):
        parameters.load(saved(tmp_path, kind), 4.0)


@pytest.mark.parametrize("scale", [0.0, -4.0, float("nan"), float("inf")])
def test_an_eigenvalue_scale_is_positive(tmp_path, scale):
    with pytest.raises(UsageError, match="expected a positive number"):
        parameters.load(bare(tmp_path), scale)


def test_a_bare_mean_is_isotropic_and_says_so(tmp_path):
    mean = gaussian().mean.float().reshape(SHAPE)
    torch.save(mean, tmp_path / "mu.pt")
    found = parameters.load(tmp_path)
    assert isinstance(found.model, Isotropic) and found.model.s0 == 0
    assert found.model.mean.equal(mean.flatten().double())
    assert f"{tmp_path} has no parameters.json: isotropic, taken as pixels" in found.notice
    torch.save(torch.tensor(0.25), tmp_path / "s0.pt")
    assert parameters.load(tmp_path).model.s0 == 0.25


def test_paths_may_be_strings(tmp_path):
    place = str(tmp_path / "p")
    parameters.check_target(place)
    parameters.save(place, gaussian(), DIGITS, [(gaussian(), DIGITS)])
    assert parameters.load(place).digest == parameters.digest(gaussian())
    assert parameters.read_story(place)["kind"] == "gaussian"
    assert parameters.load_by_class(place) == {}


# What is damaged or foreign


def test_no_directory_is_refused(tmp_path):
    assert "no directory" in refusal(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert "no directory" in refusal(tmp_path / "file")


@pytest.mark.parametrize("name", ["mu", "U", "lambdas"])
@pytest.mark.parametrize("make", [saved, bare])
def test_a_missing_file_is_named(tmp_path, name, make):
    make(tmp_path)
    (tmp_path / f"{name}.pt").unlink()
    assert f"holds no {name}.pt" in refusal(tmp_path)


@every_kind
def test_any_changed_byte_is_noticed(tmp_path, kind):
    whole = content(saved(tmp_path, kind))
    for name in whole.keys() - {STORY}:
        damaged = bytearray(whole[name])
        damaged[len(damaged) // 2] ^= 1
        (tmp_path / name).write_bytes(damaged)
        assert f"{name} has changed" in refusal(tmp_path)
        (tmp_path / name).write_bytes(whole[name])
    parameters.load(tmp_path)


def test_a_changed_value_of_the_description_is_noticed_and_an_earlier_one_is_taken(tmp_path):
    path = saved(tmp_path) / STORY
    story = json.loads(path.read_text())
    changed = {**story, "sigma_data": story["sigma_data"] + 0.25}
    path.write_text(json.dumps(changed))
    assert "not JSON as it was written (its values are not those of its checksum" in refusal(
        tmp_path
    )
    del story["checksum"]
    path.write_text(json.dumps(story))
    assert parameters.load(tmp_path).story == story


def test_a_tensor_of_another_run_is_noticed(tmp_path):
    saved(tmp_path)
    torch.save(gaussian(seed=8).mean, tmp_path / "mu.pt")
    assert "mu.pt has changed" in refusal(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"not a tensor",
        lambda whole: np.random.default_rng(0).bytes(500),
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:-30] + bytes(30),
        lambda whole: b"PK\x03\x04" + whole[40:],
    ],
    ids=["empty", "text", "noise", "half", "cut by a byte", "end overwritten", "start missing"],
)
def test_a_file_that_is_no_tensor_is_refused(tmp_path, damage):
    path = bare(tmp_path) / "U.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert "U.pt" in refusal(tmp_path)


def test_a_flipped_value_in_a_bare_tensor_fails_its_checksum(tmp_path):
    path, basis = bare(tmp_path) / "U.pt", gaussian().basis.numpy().tobytes()
    whole = bytearray(path.read_bytes())
    whole[whole.index(basis) + 100] ^= 1
    path.write_bytes(whole)
    assert "U.pt" in refusal(tmp_path)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    whole = (bare(tmp_path) / "lambdas.pt").read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = generator.integers(len(damaged), size=generator.integers(1, 12))
        damaged[places] = generator.integers(256, size=len(places))
        (tmp_path / "lambdas.pt").write_bytes(damaged.tobytes())
        try:
            parameters.load(tmp_path)
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_damaged_length_never_escapes_as_another_error(tmp_path):
    """One bit of each byte: some make zlib fail."""
    whole = (bare(tmp_path) / "lambdas.pt").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 8
        (tmp_path / "lambdas.pt").write_bytes(damaged)
        try:
            parameters.load(tmp_path)
        except UsageError as error:
            assert "\n" not in str(error)


class Canary:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path, zipped):
    canary = Canary(tmp_path / "canary")
    path = bare(tmp_path) / "mu.pt"
    torch.save(canary, path, _use_new_zipfile_serialization=zipped)
    assert "mu.pt is no readable tensor file" in refusal(tmp_path)
    path.write_bytes(pickle.dumps(canary))
    assert "mu.pt is no readable tensor file" in refusal(tmp_path)
    np.save(saved(tmp_path / "cloud", "pointcloud") / "points.npy", np.array([canary]))
    relisted(tmp_path / "cloud", "points.npy")
    assert "points.npy cannot be read as numpy arrays" in refusal(tmp_path / "cloud")
    assert not canary.path.exists()


def relisted(directory: Path, *names: str, **changed: object) -> Path:
    """A description that fits the changed files: hand-made rather than damaged."""
    story = json.loads((directory / STORY).read_text()) | changed
    story["files"] |= {name: files.digest_of_file(directory / name) for name in names}
    story.pop("checksum", None)  # nor had what earlier versions wrote
    (directory / STORY).write_text(json.dumps(story))
    return directory


G = gaussian()
EDGE = G.basis.clone()
EDGE[:, 2] *= 1.1


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mu": {"mean": G.mean}}, "no tensor of float"),
        ({"mu": [G.mean]}, "no tensor of float"),
        ({"mu": torch.ones(DIM).long()}, "no tensor of float"),
        ({"mu": torch.ones(DIM).half()}, "no tensor of float"),
        ({"mu": torch.full((DIM,), torch.nan)}, "NaN or infinity"),
        ({"lambdas": torch.tensor([torch.inf, 1, 1, 1, 1])}, "NaN or infinity"),
        ({"U": G.basis.to_sparse()}, "sparse"),
        ({"mu": torch.zeros(DIM + 1)}, "do not fit"),
        ({"mu": torch.zeros(())}, "do not fit"),
        ({"U": G.basis.T.contiguous()}, "do not fit"),
        ({"U": G.basis[:, :4]}, "do not fit"),
        ({"U": G.basis[None]}, "do not fit"),
        ({"lambdas": torch.ones(5, 1)}, "do not fit"),
        ({"lambdas": torch.ones(())}, "do not fit"),
        ({"lambdas": torch.tensor([1.0, 0.5, 0.1, 0.1, -0.1])}, "a variance below 0"),
        ({"lambdas": -torch.ones(5)}, "a variance below 0"),
        ({"U": EDGE}, "not orthonormal"),
        ({"U": torch.ones(DIM, 5)}, "not orthonormal"),
        ({"U": torch.zeros(DIM, 5)}, "not orthonormal"),
    ],
)
def test_values_that_are_no_gaussian_are_refused(tmp_path, changed, sentence):
    assert sentence in refusal(bare(tmp_path, **changed))


VIEWS = {
    "of one value": torch.zeros(1).expand(1 << 41),
    "of few values": torch.zeros(4, 1).expand(4, 4),
    "meta": torch.zeros(DIM, device="meta"),
    "negative": torch.complex(torch.zeros(DIM), torch.ones(DIM)).conj().imag,
    "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "jagged": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["mu", "lambdas", "U"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_tensor_whose_values_are_not_in_its_file_is_refused(tmp_path, name, view):
    path = bare(tmp_path) / f"{name}.pt"
    torch.save(VIEWS[view], path)
    assert path.stat().st_size < 5000
    assert f"{name}.pt" in refusal(tmp_path)


@pytest.mark.parametrize("column", range(5))
def test_every_column_must_have_length_one(tmp_path, column):
    basis = G.basis.clone()
    basis[:, column] *= 1.01
    assert "not orthonormal" in refusal(bare(tmp_path, U=basis))


def test_a_tensor_that_wants_gradients_is_only_its_values(tmp_path):
    bare(tmp_path, mu=torch.nn.Parameter(G.mean))
    assert parameters.load(tmp_path).model.mean.equal(G.mean)


@pytest.mark.parametrize(
    ("kind", "changed", "sentence"),
    [
        ("isotropic", {"s0": torch.tensor(-0.1)}, "one standard deviation"),
        ("isotropic", {"s0": torch.ones(2)}, "one standard deviation"),
        ("isotropic", {"s0": torch.tensor(torch.nan)}, "NaN or infinity"),
        ("mixture", {"pi": torch.tensor([0.5, 0.5, 0.5])}, "positive weights of sum 1"),
        ("mixture", {"pi": torch.tensor([1.5, -0.5, 0.0])}, "positive weights of sum 1"),
        ("mixture", {"pi": torch.ones(1)}, "do not count the same components"),
        ("mixture", {"pi": torch.tensor(1.0)}, "do not count the same components"),
        ("mixture", {"mu": torch.ones(3)}, "do not fit"),
        ("mixture", {"U": torch.ones(3, DIM, DIM)}, "not orthonormal"),
        ("mixture", {"lambdas": -torch.ones(3, DIM)}, "a variance below 0"),
    ],
)
def test_hand_made_values_of_other_kinds_are_checked_too(tmp_path, kind, changed, sentence):
    saved(tmp_path, kind)
    for name, value in changed.items():
        torch.save(value, tmp_path / f"{name}.pt")
    relisted(tmp_path, *(f"{name}.pt" for name in changed))
    assert sentence in refusal(tmp_path)


@pytest.mark.parametrize(
    "points", [np.zeros((3, DIM)), np.zeros((0, DIM), np.uint8), np.zeros((2, 3, 4), np.uint8)]
)
def test_points_must_be_rows_of_uint8(tmp_path, points):
    np.save(saved(tmp_path, "pointcloud") / "points.npy", points)
    assert "expected uint8 of shape (N, D)" in refusal(relisted(tmp_path, "points.npy"))


@pytest.mark.parametrize("damage", [b"", b"noise", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops"])
def test_points_that_are_no_array_are_refused(tmp_path, damage):
    (saved(tmp_path, "pointcloud") / "points.npy").write_bytes(damage)
    assert "cannot be read as numpy arrays" in refusal(relisted(tmp_path, "points.npy"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not of format"),
        ("{}", "is not of format"),
        ('{"format": 99, "kind": "gaussian"}', "is not of format"),
        ('{"format": 1, "kind": "gaussian"}', "does not list its files"),
        ('{"format": 1, "kind": "gaussian", "files": {"../x.pt": ""}}', "does not list its files"),
        ('{"format": 1, "kind": "gaussian", "files": {"s0.pt": ""}}', "holds no s0.pt"),
        ('{"format": 1, "kind": "spline", "files": {}}', "unknown kind 'spline'"),
        ('{"format": 1, "kind": ["gaussian"], "files": {}}', "unknown kind ['gaussian']"),
        ('{"format": 1, "kind": "pointcloud", "files": {}}', "holds no points.npy"),
    ],
)
def test_a_description_that_is_not_ours_is_refused(tmp_path, text, sentence):
    (saved(tmp_path) / STORY).write_text(text)
    assert sentence in refusal(tmp_path)


def test_a_description_in_another_encoding_is_refused(tmp_path):
    (saved(tmp_path) / STORY).write_bytes(b"\xff\xfe{}")
    assert "is not JSON" in refusal(tmp_path)


# What is replaced


def test_an_earlier_directory_is_replaced_with_all_its_files(tmp_path):
    classes = [(MODELS["mixture"], Story("digits", "0" * 64, 3, SHAPE, 0.5, 4))]
    parameters.save(tmp_path / "p", MODELS["mixture"], DIGITS, classes)
    saved(tmp_path / "p", "isotropic")
    assert content(tmp_path / "p").keys() == {"mu.pt", "s0.pt", STORY}
    assert {path.name for path in tmp_path.iterdir()} == {"p", ".p.lock"}


def test_an_empty_directory_may_be_filled(tmp_path):
    parameters.load(saved(tmp_path))


@pytest.mark.parametrize("foreign", ["photo.png", "by_class/notes.txt", "sub/mu.pt", ".hidden"])
def test_a_directory_with_anything_else_is_left_alone(tmp_path, foreign):
    path = saved(tmp_path) / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = content(tmp_path)
    with pytest.raises(UsageError, match="name a new directory"):
        saved(tmp_path, "isotropic")
    assert content(tmp_path) == before


def test_hand_made_parameters_are_left_alone(tmp_path):
    before = content(bare(tmp_path))
    with pytest.raises(UsageError, match="name a new directory"):
        saved(tmp_path)
    assert content(tmp_path) == before


def test_where_a_disk_is_mounted_nothing_is_begun():
    with pytest.raises(UsageError, match="a disk is mounted at /: name a new directory within it"):
        parameters.check_target(Path("/"))


def test_a_file_in_the_place_of_the_directory_is_left_alone(tmp_path):
    (tmp_path / "p").write_text("mine")
    with pytest.raises(UsageError, match="name a new directory"):
        saved(tmp_path / "p")
    assert (tmp_path / "p").read_text() == "mine"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, ValueError])
@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_save_leaves_the_old_directory_whole(tmp_path, monkeypatch, stop, after):
    before = content(saved(tmp_path / "p"))
    written = []

    def write_bytes(path: Path, data: bytes) -> int:
        if len(written) == after:
            raise stop
        written.append(path)
        with path.open("wb") as file:
            return file.write(data)

    def failing():
        raise stop
        yield

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(stop):
        parameters.save(tmp_path / "p", gaussian(seed=5), DIGITS, failing())
    assert content(tmp_path) == {f"p/{name}": value for name, value in before.items()}


def in_a_child(work: Callable[[], int]) -> int:
    """Exit code of a copy of this process that does only `work`; -9 if it was killed."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_counting(directory: Path, last: int) -> int:
    """Save, but be killed before the file operation number `last`; the number of operations."""
    done = []

    def counted(operation):
        def call(*arguments, **options):
            done.append(operation)
            if len(done) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_bytes", "write_text", "mkdir", "rename", "replace"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        saved(directory)
    return len(done)


def test_a_killed_save_leaves_the_old_directory_whole_or_nothing(tmp_path):
    parameters.save(tmp_path / "old", gaussian(seed=5), DIGITS)
    old, new = content(tmp_path / "old"), content(saved(tmp_path / "new"))
    operations = save_counting(shutil.copytree(tmp_path / "old", tmp_path / "p"), last=0)
    assert operations > 8
    for last in range(1, operations + 1):
        target = shutil.copytree(tmp_path / "old", tmp_path / str(last) / "p")
        assert in_a_child(partial(save_counting, target, last)) == -signal.SIGKILL
        assert not target.exists() or content(target) in (old, new)
        saved(target)
        assert {path.name for path in target.parent.iterdir()} == {"p", ".p.lock"}


def test_saves_at_the_same_time_wait_for_each_other(tmp_path):
    """Each takes its lock anew, so threads stand for processes here."""

    def save_often(seed: int) -> None:
        for _ in range(20):
            parameters.save(tmp_path / "p", gaussian(seed=seed), DIGITS)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save_often, (1, 2, 3)))
    written = [content(tmp_path / "p")]
    for seed in (1, 2, 3):
        parameters.save(tmp_path / "p", gaussian(seed=seed), DIGITS)
        written.append(content(tmp_path / "p"))
    assert written[0] in written[1:]


@pytest.mark.parametrize("kind", ["gaussian", "pointcloud"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, kind):
    said, limit = tmp_path / "said", 2000
    big = PointCloud(torch.zeros(90, DIM, dtype=torch.uint8))
    model = gaussian(DIM) if kind == "gaussian" else big

    def save_on_a_full_disk() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with said.open("w") as sys.stderr:
            return run_command(lambda: parameters.save(tmp_path / "out", model, DIGITS))

    assert in_a_child(save_on_a_full_disk) == 1
    assert re.fullmatch(rf"error: File too large \({tmp_path}/\S*out\S*\)\n", said.read_text())
    assert {path.name for path in tmp_path.iterdir()} == {".out.lock", said.name}


def test_bytes_do_not_depend_on_how_a_tensor_lay_in_memory(tmp_path):
    g = gaussian()
    strided = Gaussian(g.mean, g.basis.T.contiguous().T, g.eigenvalues)
    for name, model in (("a", g), ("b", strided)):
        parameters.save(tmp_path / name, model, DIGITS)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_tensor_file_is_torchs_own_form(tmp_path):
    expected = io.BytesIO()
    torch.save(gaussian().mean, expected)
    assert (saved(tmp_path) / "mu.pt").read_bytes() == expected.getvalue()
