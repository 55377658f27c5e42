"""`python linear_structure/get_parameters.py DATASET KIND SAVE_DIR`, as typed."""

import importlib.util
import io
import json
import math
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from linear_structure import get_parameters, parameters
from linear_structure.gaussian import Gaussian
from linear_structure.parameters import KINDS
from linear_structure.spectral import Spectral
from linear_structure.system.errors import run_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "linear_structure/get_parameters.py"
DIGITS = np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(-1, 64)
LABELS = load_digits().target
X = torch.from_numpy(DIGITS / 127.5 - 1)


def typed(folder: Path, script: str | Path, *arguments: object):
    """Run the script as a user types it in a folder, in a process that knows no PYTHONPATH."""
    command = [sys.executable, "-E", str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def command(monkeypatch, capsys):
    """The same command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
        capsys.readouterr()
        try:
            code = run_command(get_parameters.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def images(count: int = 7, shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def write_pngs(folder: Path, arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array.squeeze()).save(folder / f"{number:03}.png")
    return folder


# As typed


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_made_wherever_it_is_typed(tmp_path, kind):
    at_home = kind in ("gaussian", "mixture")
    folder, script = (ROOT, SCRIPT) if at_home else (tmp_path, ROOT / SCRIPT)
    run = typed(folder, script, "digits", kind, tmp_path / "p" if at_home else "p")
    assert run.returncode == 0, run.stderr
    found = parameters.load(tmp_path / "p")
    assert (found.model.kind, found.story["dataset"], found.story["count"]) == (
        kind,
        "digits",
        1797,
    )
    assert found.story["image_shape"] == [1, 8, 8]
    assert found.story["sigma_data"] == pytest.approx(float(X.std(correction=0)), rel=1e-12)
    assert f"sigma_data) {float(X.std(correction=0)):.4f}" in run.stdout
    assert "1,797 images of shape (1, 8, 8)" in run.stdout


def test_the_scripts_folder_shadows_nobody(monkeypatch):
    """Its `datasets.py` must not answer to `import datasets`, nor its `files.py` to `files`."""
    monkeypatch.setattr(sys, "path", [str((ROOT / SCRIPT).parent), *sys.path[1:]])
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
    assert sys.path[0] == str(ROOT)
    for name in ("errors", "gaussian", "points", "get_parameters"):
        assert importlib.util.find_spec(name) is None


def test_bad_input_is_exit_code_2_and_one_sentence(tmp_path):
    run = typed(ROOT, SCRIPT, "CIFAR11", "gaussian", tmp_path / "p")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "CIFAR11" in run.stderr
    assert "digits" in run.stderr
    assert not (tmp_path / "p").exists()


# What is fitted


def test_the_gaussian_has_numpys_mean_and_covariance(tmp_path, command):
    assert command("digits", "gaussian", tmp_path)[0] == 0
    g = parameters.load(tmp_path).model
    covariance = np.cov(X.numpy().T)
    np.testing.assert_allclose(g.mean, X.mean(0), rtol=0, atol=1e-15)
    rebuilt = (g.basis * g.eigenvalues @ g.basis.T.double()).numpy()
    np.testing.assert_allclose(rebuilt, covariance, rtol=0, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(g.eigenvalues, eigenvalues[: len(g.eigenvalues)], rtol=1e-9)
    assert len(g.eigenvalues) == np.linalg.matrix_rank(covariance)


def test_the_parameters_do_not_depend_on_the_batch(tmp_path, command):
    for batch in (1, 100, 5000):
        assert command("digits", "gaussian", tmp_path / str(batch), "--batch", batch)[0] == 0
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("1", "100", "5000")
    ]
    assert files[0] == files[1] == files[2]


def test_a_rank_keeps_the_leading_directions(tmp_path, command):
    command("digits", "gaussian", tmp_path / "all")
    assert command("digits", "gaussian", tmp_path / "few", "--rank", 5)[0] == 0
    whole, few = (parameters.load(tmp_path / name).model for name in ("all", "few"))
    assert few.eigenvalues.equal(whole.eigenvalues[:5])
    assert few.basis.equal(whole.basis[:, :5])
    assert command("digits", "mixture", tmp_path / "mix", "--rank", 3, "--components", 4)[0] == 0
    parts = parameters.load(tmp_path / "mix").model.components
    assert [len(part.eigenvalues) for part in parts] == [3] * 4


def test_each_class_gets_a_model_of_its_own(tmp_path, command):
    code, said, _ = command("digits", "gaussian", tmp_path, "--by-class", "--rank", 20)
    assert code == 0
    found = parameters.load_by_class(tmp_path)
    assert list(found) == list(range(10))
    for label, entry in found.items():
        rows = X[torch.from_numpy(label == LABELS)]
        np.testing.assert_allclose(entry.model.mean, rows.mean(0), rtol=0, atol=1e-14)
        expected = Gaussian.from_samples(rows, 20).eigenvalues
        np.testing.assert_allclose(entry.model.eigenvalues, expected, rtol=1e-9)
        assert (entry.story["label"], entry.story["count"]) == (label, len(rows))
        assert f"class {label}: {len(rows)} images" in said
    assert parameters.load(tmp_path).story["label"] is None


def test_the_isotropic_model_is_the_mean_and_the_deviation_asked_for(tmp_path, command):
    assert command("digits", "isotropic", tmp_path, "--s0", 0.25)[0] == 0
    model = parameters.load(tmp_path).model
    assert model.s0 == 0.25
    np.testing.assert_allclose(model.mean, X.mean(0), rtol=0, atol=1e-15)


def test_the_point_cloud_is_the_images(tmp_path, command):
    assert command("digits", "pointcloud", tmp_path)[0] == 0
    assert np.array_equal(parameters.load(tmp_path).model.points, DIGITS)


def test_the_mixture_repeats_with_its_seed_and_covers_the_data(tmp_path, command):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = ("--components", 6, "--seed", seed)
        assert command("digits", "mixture", tmp_path / name, *arguments)[0] == 0
    a, b, c = (parameters.load(tmp_path / name) for name in "abc")
    assert a.digest == b.digest != c.digest
    assert len(a.model.components) == 6
    means = torch.stack([part.mean for part in a.model.components])
    torch.testing.assert_close(a.model.weights @ means, X.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [7, 70])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 1)])
def test_a_folder_of_images_fewer_or_more_than_pixels(tmp_path, command, count, shape):
    arrays = images(count, shape)
    folder = write_pngs(tmp_path / "images", arrays)
    assert command(folder, "gaussian", tmp_path / "p")[0] == 0
    found = parameters.load(tmp_path / "p")
    height, width, channels = shape
    assert found.story["image_shape"] == [channels, height, width]
    rows = arrays.transpose(0, 3, 1, 2).reshape(count, -1) / 127.5 - 1
    g = found.model
    np.testing.assert_allclose(g.mean, rows.mean(0), rtol=0, atol=1e-14)
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    rank = min(count - 1, math.prod(shape))
    np.testing.assert_allclose(g.eigenvalues, singular[:rank] ** 2 / (count - 1), rtol=1e-9)
    assert found.story["sigma_data"] == pytest.approx(rows.std(), rel=1e-12)


def test_a_zip_with_labels(tmp_path, command):
    folder = write_pngs(tmp_path / "images", images(12))
    labels = [[f"{number:03}.png", number % 3] for number in range(12)]
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    assert command(tmp_path / "data.zip", "gaussian", tmp_path / "p", "--by-class")[0] == 0
    assert parameters.load(tmp_path / "p").story["count"] == 12
    assert list(parameters.load_by_class(tmp_path / "p")) == [0, 1, 2]


def test_a_single_image_is_a_point(tmp_path, command):
    folder = write_pngs(tmp_path / "images", images(1))
    assert command(folder, "gaussian", tmp_path / "p")[0] == 0
    assert parameters.load(tmp_path / "p").model.basis.shape == (60, 0)


@pytest.mark.parametrize("low", [0, 3, 8])
def test_the_spectral_model_is_that_of_the_images(tmp_path, command, low):
    assert command("digits", "spectral", tmp_path, "--low", low)[0] == 0
    found, images = parameters.load(tmp_path), torch.from_numpy(DIGITS).view(-1, 1, 8, 8)
    assert found.digest == parameters.digest(Spectral.from_samples(images, low))
    command("digits", "isotropic", tmp_path / "other")
    story = parameters.read_story(tmp_path / "other")
    assert found.story["digest"] == story["digest"]
    assert found.story["sigma_data"] == pytest.approx(story["sigma_data"], rel=1e-12)


def test_so_many_images_at_random_or_the_first(tmp_path, command):
    for name, words, said in (
        ("random", ("--seed", 3), "50 of 1797, random by seed 3"),
        ("again", ("--seed", 3), "50 of 1797, random by seed 3"),
        ("first", ("--first",), "the first 50 of 1797"),
    ):
        assert command("digits", "gaussian", tmp_path / name, "--count", 50, *words)[0] == 0
        story = parameters.read_story(tmp_path / name)
        assert (story["count"], story["selection"]) == (50, said)
    random, again, first = (parameters.load(tmp_path / n) for n in ("random", "again", "first"))
    assert random.digest == again.digest != first.digest
    np.testing.assert_allclose(first.model.mean, X[:50].mean(0), rtol=0, atol=1e-14)


def test_the_rank_is_planned_for_the_level_of_a_teleport(tmp_path, command):
    command("digits", "gaussian", tmp_path / "all")
    words = ("--rank", "auto", "--sigma", 3, "--error", 0.01)
    code, said, _ = command("digits", "gaussian", tmp_path / "few", *words)
    lam = parameters.load(tmp_path / "all").model.eigenvalues
    cost = (np.sqrt(1 + lam.numpy() / 9) - 1) ** 2
    kept = next(r for r in range(64) if math.sqrt(cost[r:].sum() / 64) <= 0.01)
    assert code == 0 and f"{kept} of 64 directions" in said
    assert torch.equal(parameters.load(tmp_path / "few").model.eigenvalues, lam[:kept])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("digits", "mixture", "{new}", "--components", "1798"),
            "1798 components cannot be fitted",
        ),
        (("{images}", "gaussian", "{new}", "--by-class"), "has no labels"),
        (("{missing}", "gaussian", "{new}"), "missing"),
        (("digits", "gaussian", "{images}"), "name a new directory"),
        (("digits", "gaussian", "{images}/000.png"), "name a new directory"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, command, arguments, sentence):
    places = {name: tmp_path / name for name in ("images", "missing", "new")}
    write_pngs(places["images"], images())
    before = sorted(tmp_path.rglob("*"))
    code, _, said = command(*(text.format(**places) for text in arguments))
    assert code == 2
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "options",
    [
        ("--rank", "0"),
        ("--rank", "1.5"),
        ("--batch", "-3"),
        ("--components", "none"),
        ("--s0", "-1"),
        ("--s0", "nan"),
        ("--s0", "wide"),
        ("--seed", "-1"),
        ("--low", "-1"),
        ("--low", "many"),
        ("--sigma", "1e300"),
        ("--error", "1e200"),
        ("--s0", "1e155"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(tmp_path, command, options):
    code, _, said = command("digits", "isotropic", tmp_path / "p", *options)
    assert code == 2
    assert options[1] in said
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("isotropic", ("--rank", "3"), "--rank is for gaussian and mixture, not for isotropic"),
        ("gaussian", ("--count", "1798"), "--count 1798: digits has 1,797 images"),
        ("gaussian", ("--first",), "--first is for --count: expected how many are the first ones"),
        ("gaussian", ("--sigma", "3"), "--sigma and --error are for --rank auto"),
        (
            "gaussian",
            ("--rank", "auto"),
            "--rank auto needs --sigma, the level where the teleport ends",
        ),
        ("pointcloud", ("--s0", "0.5"), "--s0 is for isotropic, not for pointcloud"),
        ("gaussian", ("--components", "3"), "--components is for mixture, not for gaussian"),
        ("gaussian", ("--low", "3"), "--low is for spectral, not for gaussian"),
        ("gaussian", ("--seed", "3"), "--seed is for mixture, not for gaussian"),
        (
            "gaussian",
            ("--count", "5", "--first", "--seed", "3"),
            "--seed is for mixture, not for gaussian",
        ),
        ("spectral", ("--batch", "9"), "--batch is for gaussian, not for spectral"),
        ("mixture", ("--batch", "9"), "--batch is for gaussian, not for mixture"),
    ],
)
def test_an_option_of_another_kind_is_refused(tmp_path, command, kind, options, sentence):
    assert command("digits", kind, tmp_path / "p", *options) == (2, "", f"error: {sentence}\n")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("count", [9, 40])
@pytest.mark.parametrize("kind", ["gaussian", "isotropic", "mixture", "spectral"])
def test_numbers_that_cannot_be_squared_are_refused_by_all_kinds(tmp_path, command, kind, count):
    values = np.random.default_rng(0).standard_normal((count, 1, 4, 4)) * 1e200
    np.save(tmp_path / "huge.npy", values)
    code, _, said = command(tmp_path / "huge.npy", kind, tmp_path / "p")
    assert code == 2
    assert "huge.npy holds numbers beyond 1e+15, NaN or infinity, in images 0 to" in said
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("kind", ["gaussian", "isotropic", "mixture", "spectral"])
def test_numbers_that_can_be_squared_are_fitted_by_all_kinds(tmp_path, command, kind):
    values = np.random.default_rng(0).standard_normal((40, 1, 4, 4)).clip(-2, 2) * 4e14
    np.save(tmp_path / "large.npy", values)
    assert command(tmp_path / "large.npy", kind, tmp_path / "p")[0] == 0
    story = parameters.load(tmp_path / "p").story
    assert story["sigma_data"] == pytest.approx(float(values.std()), rel=1e-9)


def test_the_current_folder_is_no_disk_but_one_that_holds_something(tmp_path, command, monkeypatch):
    (tmp_path / "mine").write_text("kept")
    monkeypatch.chdir(tmp_path)
    code, _, said = command("digits", "isotropic", ".")
    assert (code, said) == (2, "error: . exists and was not made by this: name a new directory\n")


def test_an_unknown_kind_lists_the_known(tmp_path, command):
    code, _, said = command("digits", "spline", tmp_path / "p")
    assert code == 2
    assert all(kind in said for kind in KINDS)


def test_a_class_that_cannot_be_fitted_leaves_the_old_parameters(tmp_path, command):
    command("digits", "isotropic", tmp_path / "p")
    before = parameters.load(tmp_path / "p").digest
    arguments = ("digits", "mixture", tmp_path / "p", "--by-class", "--components", 180)
    code, _, said = command(*arguments)
    assert code == 2
    assert "class 0 has 178 images: 180 components cannot be fitted" in said
    assert parameters.load(tmp_path / "p").digest == before
    assert {path.name for path in tmp_path.iterdir()} == {"p", ".p.lock"}


def test_an_unwritable_folder_is_one_sentence(tmp_path, command):
    (tmp_path / "file").touch()
    code, _, said = command("digits", "isotropic", tmp_path / "file" / "p")
    assert code == 2
    assert said.startswith(f"error: {tmp_path}/file is a file: expected a folder")
    assert said.count("\n") == 1


def test_parameters_of_another_kind_or_dataset_are_not_replaced_without_a_word(tmp_path, command):
    images_of_mine = write_pngs(tmp_path / "images", images())
    for words, said in (
        (("digits", "isotropic"), ""),
        (("digits", "isotropic"), ""),
        (("digits", "pointcloud"), "isotropic parameters of digits are replaced"),
        ((images_of_mine, "pointcloud"), "pointcloud parameters of digits are replaced"),
    ):
        code, output, _ = command(*words, tmp_path / "p")
        assert code == 0
        assert ("replaced" in output) == bool(said) and said in output


# Labels are read when they are used

ODD_LABELS = {
    "vectors": [[0.5, 1.0]] * 7,
    "one-hot": [[0, 1, 0]] * 7,
    "strings": ["cat"] * 7,
    "booleans": [True] * 7,
    "partial": [0] * 4,
    "null": None,
    "empty": [],
    "odd": [[1], 0, None, {}, "a", 2.5, -1],
}


@pytest.mark.parametrize("labels", ODD_LABELS)
def test_labels_that_nobody_needs_do_not_stop_a_fit(tmp_path, command, labels):
    folder = write_pngs(tmp_path / "images", images())
    assert command(folder, "gaussian", tmp_path / "plain")[0] == 0
    rows = ODD_LABELS[labels]
    named = rows and [[f"{i:03}.png", label] for i, label in enumerate(rows)]
    (folder / "dataset.json").write_text(json.dumps({"labels": named}))
    code, _, said = command(folder, "gaussian", tmp_path / "p")
    assert code == 0, said
    assert parameters.load(tmp_path / "p").digest == parameters.load(tmp_path / "plain").digest
    code, _, said = command(folder, "gaussian", tmp_path / "q", "--by-class")
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "q").exists()


def test_a_damaged_dataset_json_does_not_stop_a_fit(tmp_path, command):
    folder = write_pngs(tmp_path / "images", images())
    (folder / "dataset.json").write_text("{")
    assert command(folder, "pointcloud", tmp_path / "p")[0] == 0
    code, _, said = command(folder, "pointcloud", tmp_path / "q", "--by-class")
    assert code == 2 and "dataset.json must hold" in said


def test_a_folder_that_the_terminal_cannot_encode_is_named_all_the_same(tmp_path, monkeypatch):
    """The work is done by then: its last sentence must not end in a traceback."""
    folder = write_pngs(tmp_path / "a-\udcff", images())
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(folder), "gaussian", str(tmp_path / "p")])
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(said, "ascii", write_through=True))
    assert run_command(get_parameters.main) == 0
    assert rb"a-\udcff: 7 images" in said.getvalue()
