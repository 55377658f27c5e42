"""Samplers in the plane: what is measured, which way pictures are, and the command."""

import csv
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edm.checkpoints import shipped
from edm.network import network_of
from experiments import plane, plane_figures
from experiments.plane import SHIPPED, Run, Study, density, histogram, numbers_of, total_variation
from experiments.plane_figures import Panel, colours, sampled
from linear_structure.data.plane import DRAWS
from linear_structure.gaussian import Gaussian
from linear_structure.sampling.grids import sigma_grid
from linear_structure.system.errors import run_command
from linear_structure.system.files import digest_of

SCRIPT = Path(__file__).parents[2] / "scripts/plane.py"
CENTRE = {(4.0, 0.0): (1, 0), (0.0, 4.0): (0, 1), (-4.0, 0.0): (-1, 0), (0.0, -4.0): (0, -1)}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; returns the exit code and what was said."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, words)])
        code = run_command(runpy.run_path(str(SCRIPT))["main"])
        said = capsys.readouterr()
        return code, said.out if code == 0 else said.err

    return call


@pytest.fixture
def undrawn(monkeypatch):
    """Call it to leave out the pictures, which take most of a small run."""

    def leave_out():
        for name in ("density", "noised", "scores", "samples"):
            monkeypatch.setattr(plane_figures, f"write_{name}", lambda *given: None)

    return leave_out


def study_of(tmp_path, name="mixture", count=5000):
    return Study(plane.load(name), None, count, 0, tmp_path)


def run_named(study, name):
    return next(run for run in study.runs if run.name == name)


def brightest(panel):
    """Where the brightest pixels of a drawn panel are from its middle, right and up, from -1."""
    figure = Figure(figsize=(2, 2))
    axes = figure.add_axes((0, 0, 1, 1))
    colours(axes, panel)
    axes.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    light = np.asarray(canvas.buffer_rgba())[..., :3].astype(float).sum(2)
    rows, columns = np.nonzero(light == light.max())
    height, width = light.shape
    return 2 * columns.mean() / width - 1, 1 - 2 * rows.mean() / height


@pytest.mark.parametrize(("place", "side"), CENTRE.items())
def test_histogram_and_density_have_one_orientation(place, side):
    """x_0 to the right and x_1 upwards, in the picture itself."""
    at = torch.tensor(place, dtype=torch.float64)
    narrow = Gaussian.from_covariance(at, torch.eye(2, dtype=torch.float64) / 100)
    wide = Panel("", density(narrow, 0.0))
    for panel in (sampled("", at.repeat(10, 1)), wide):
        right, up = brightest(panel)
        assert (right, up) == pytest.approx((0.8 * side[0], 0.8 * side[1]), abs=0.05)


def test_a_histogram_is_numpys_and_a_density_its_limit():
    study = plane.load("mixture")
    x = study.draw(200_000, torch.Generator().manual_seed(0))
    edges = np.linspace(-5, 5, 51)
    theirs, *_ = np.histogram2d(*x.numpy().T, bins=(edges, edges))
    assert np.array_equal(histogram(x).numpy(), theirs.T / len(x))
    squares = density(study.model, 0.0) * 0.2**2
    error = (squares / len(x)).sqrt()
    off = (histogram(x) - squares)[squares > 1e-4] / error[squares > 1e-4]
    assert float(off.square().mean()) == pytest.approx(1, abs=0.15)


def test_total_variation_of_halves_is_the_floor_and_of_others_is_not(tmp_path):
    study = study_of(tmp_path, count=10_000)
    halves = study.reference.split(5000)
    other = study.exact(0)[:5000]
    floor, error = total_variation(halves[0], other), float(study.variations.std()) * math.sqrt(2)
    assert total_variation(*halves) == pytest.approx(floor, abs=4 * error)
    assert total_variation(study.gaussian[:5000], other) > floor + 10 * error
    assert total_variation(other, other) == 0
    assert total_variation(other[:1], other[:1] + 20) == 1  # one of them lies outside
    assert total_variation(other[:1] + 20, other[:1] + 30) == 0


def test_standard_errors_are_the_spread_of_exact_samples(tmp_path):
    study = study_of(tmp_path, count=2000)
    found = torch.tensor([numbers_of(study.exact(k), study.reference) for k in range(40)])
    ratio = torch.tensor(study.errors) / found.std(0)
    assert ((ratio > 0.6) & (ratio < 1.6)).all()


NAMES = plane.Numbers._fields[:5]
EXPECTED = {  # of 20,000 particles, and how far from the data's mean 100 steps stay
    "langevin-100": {"mean_off": 0.14},
    "langevin-1000": dict(zip(NAMES, (0.221, 1.422, 3.302, 0.701, 2.470), strict=True)),
    "heun-10": {"cov_00": 4.25},
    "heun-18": {"cov_00": 3.52},
    "heun-40": {"cov_00": 3.34},
}


def test_runs_have_the_published_moments(tmp_path):
    """Within three standard errors of the difference of 2,500 and 20,000 particles; what 100 steps
    leave of the start is seen in the mean alone."""
    study = study_of(tmp_path, count=2500)
    share = math.sqrt(1 + 2500 / 20_000)
    for name, expected in EXPECTED.items():
        run = run_named(study, name)
        x = run.particles(study.plane.model.denoise, study.plane.gaussian, 2500, study.generator())
        found = numbers_of(x, study.reference)._asdict()
        truth = x.new_tensor([0.2, 1.4])
        found["mean_off"] = float((x.mean(0) - truth).norm())
        for key, value in expected.items():
            error = study.errors._asdict().get(key, study.errors.mean_0)
            assert found[key] == pytest.approx(value, abs=3 * share * error), (name, key)
            floor = float(study.variations.mean())
        assert name == "heun-10" or total_variation(x, study.reference) < 1.1 * floor, name


def test_calls_are_those_that_are_made():
    """Also of teleported runs, which start at the first level that is not above the given one."""
    data = plane.load("mixture")
    for run in plane.runs(data, learned=True):
        levels = []

        def denoise(x, sigma, levels=levels):
            levels.append(float(sigma))
            return x / (1 + sigma**2)

        run.particles(denoise, data.gaussian, 1, torch.Generator().manual_seed(0))
        assert len(levels) == run.calls
        if run.teleported:
            assert levels[0] == max(s for s in run.walk.sigmas.tolist() if s <= plane.TELEPORT)
            assert run.calls < run.walk.calls(0)
    names = [run.name for run in plane.runs(data, learned=True)]
    assert len(set(names)) == len(names) == 20
    assert len(plane.runs(data, learned=False)) == 12


def test_a_teleport_of_gaussian_data_leads_to_the_same_place():
    """To Heun's error; with the wrong noise, level or chain it would be off by the data's size."""
    data = plane.load("mixture")
    heun = plane.walk_of("heun", sigma_grid(100))
    found = [
        Run(heun, teleported).particles(
            data.gaussian.denoise, data.gaussian, 100, torch.Generator().manual_seed(0)
        )
        for teleported in (False, True)
    ]
    assert float((found[0] - found[1]).abs().max()) < 0.02


def test_particles_of_another_network_or_seed_are_made_anew(tmp_path):
    """Those of another network along the exact score are the same."""
    data = plane.load("mixture")

    def inputs(version, seed):
        network = network_of(data.model.denoise, (2, 1, 1), version=version)
        study = Study(data, network, 10, seed, tmp_path)
        return {run.name: digest_of(study.inputs_of(run)) for run in study.runs}

    first, network, seed = inputs("a", 0), inputs("b", 0), inputs("a", 1)
    assert {name for name in first if first[name] != network[name]} == {
        name for name in first if name.endswith("learned")
    }
    assert not any(first[name] == seed[name] for name in first)
    assert len(set(first.values())) == len(first)


def rows_of(folder):
    with (folder / "numbers.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_command_twice_then_damaged_and_then_stopped(command, undrawn, tmp_path, monkeypatch):
    """What is there serves; what is damaged is made anew; what was stopped continues."""
    made = []
    particles = Run.particles

    def counted(self, *given):
        made.append(self.name)
        return particles(self, *given)

    monkeypatch.setattr(Run, "particles", counted)
    code, said = command("mixture", "--count", "60")
    assert code == 0 and "| heun-18-teleported-learned | 19 |" in said
    folder = tmp_path / "score_based/plane"
    pictures = {"density.png", "noised.png", "scores.png", "samples.png"}
    assert {path.name for path in folder.iterdir()} == pictures | {
        "numbers.csv",
        "numbers.json",
        "samples",
    }
    rows = rows_of(folder)
    assert list(rows[0]) == list(plane.HEAD)
    assert [row["sampler"] for row in rows] == ["exact", "gaussian", *made]
    assert {row["floor"] for row in rows} == {rows[0]["total_variation"]}
    numbers = (folder / "numbers.csv").read_bytes()
    inputs = json.loads((folder / "numbers.json").read_text())["inputs"]
    assert (inputs["count"], inputs["seed"], len(inputs["runs"])) == (60, 0, len(made))

    made.clear()
    undrawn()
    blocks = sorted(folder.rglob("*.npy"))
    blocks[0].write_bytes(b"no array")
    np.save(blocks[1], np.load(blocks[1]) + 1)
    blocks[2].unlink()
    assert command("mixture", "--count", "60")[0] == 0
    assert len(made) == 3
    assert (folder / "numbers.csv").read_bytes() == numbers

    def stopped(self, *given):
        if self.name == "pc-50":
            raise KeyboardInterrupt
        return counted(self, *given)

    made.clear()
    monkeypatch.setattr(Run, "particles", stopped)
    assert command("mixture", "--count", "50", "--seed", "1", "--out", "other")[0] == 130
    assert made == [row["sampler"] for row in rows[2 : 2 + len(made)]]
    monkeypatch.setattr(Run, "particles", counted)
    before = len(made)
    assert command("mixture", "--count", "50", "--seed", "1", "--out", "other")[0] == 0
    assert sorted(made) == sorted(inputs["runs"])
    assert made[before] == "pc-50"


def test_points_are_known_by_heart_and_have_no_density(command, tmp_path, monkeypatch):
    monkeypatch.setattr(plane, "POINTS", 40)
    code, said = command("rings", "--count", "30")
    assert code == 0
    assert "No network of rings is shipped" in said
    assert "rings has no density: density.png" in said
    folder = tmp_path / "score_based/rings"
    assert {path.name for path in folder.glob("*.png")} == {
        "noised.png",
        "scores.png",
        "samples.png",
    }
    assert not any("langevin" in row["sampler"] for row in rows_of(folder))
    points = plane.load("rings").points
    assert len(points) == 40
    for path in folder.rglob("*.npy"):
        distances = torch.cdist(torch.from_numpy(np.load(path)), points).amin(1)
        assert float(distances.max()) < 0.01


def test_a_network_is_that_which_is_named(command, undrawn, tmp_path, monkeypatch):
    undrawn()
    monkeypatch.setattr(plane, "POINTS", 20)
    assert command("checkerboard", "--count", "20", "--network", shipped(SHIPPED))[0] == 0
    names = {row["sampler"] for row in rows_of(tmp_path / "score_based/checkerboard")}
    assert {"heun-18-learned", "heun-18-teleported-learned", "ancestral-40-learned"} < names


@pytest.mark.parametrize("name", DRAWS)
def test_every_name_of_data_is_loaded(name):
    data = plane.load(name)
    assert data.points.shape == (plane.POINTS, 2)
    assert data.has_density == (name == "mixture")
    assert plane.load(name).points.equal(data.points)
    x = data.draw(20_000, torch.Generator().manual_seed(1))
    assert torch.allclose(x.mean(0), data.gaussian.mean, atol=0.3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("mixture", "--count", 0), 2, "--count 0: expected 2 to 1,000,000 particles"),
        (("mixture", "--count", 1), 2, "--count 1: expected 2 to"),
        (("mixture", "--count", 10**7), 2, "--count 10000000: expected 2 to"),
        (("mixture", "--seed", -1), 2, "--seed -1: expected 0 to 4294967295"),
        (("moon",), 2, "data 'moon' are not known: expected one of mixture, swiss_roll, moons"),
        (("moons", "--network", "none.safetensors"), 2, "none.safetensors"),
        (
            ("mixture", "--network", shipped("digits-denoiser.safetensors")),
            2,
            "is a network of images 1 x 8 x 8 without classes: expected one of points in the plane",
        ),
        (("mixture", "--count", 9, "--out", "file"), 2, "file"),
    ],
)
def test_misuse_is_one_sentence(command, tmp_path, words, code, message):
    (tmp_path / "file").write_text("mine")
    found, said = command(*words)
    assert found == code
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "score_based").exists()
