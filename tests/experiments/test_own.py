"""The preset own: a sweep over the user's images and network, and all that follows by its name."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from edm.checkpoints import checkpoint, shipped
from edm.evaluation import features, fid
from edm.evaluation.features import Resized
from experiments import consent, loading, options, own, presets, results
from linear_structure.data.datasets import Dataset
from linear_structure.system.errors import UsageError, run_command

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--seeds", "0-4", "--block", "5", "--steps", "4", "--skips", "0,2", "--threads", "1")
CODE = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.spread = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, sigma):
        return x * (self.spread**2 / (self.spread**2 + sigma**2)).reshape(-1, 1, 1, 1)


def nothing():
    pass


def blind():
    return lambda x, sigma: x * float("nan")
"""


def test_of_two_claims_of_a_name_at_once_one_holds(tmp_path, monkeypatch):
    """Each comes to write before the other has; without turns both would."""
    meet, write = builders.meeting(0.5), own.write_sealed

    def write_together(path, value):
        meet()
        write(path, value)

    monkeypatch.setattr(own, "ROOT", tmp_path)
    monkeypatch.setattr(own, "write_sealed", write_together)
    with ThreadPoolExecutor() as pool:
        typed = ({"dataset": "a.npy", "network": f"{n}.safetensors"} for n in range(2))
        told = [each.exception() for each in [pool.submit(own.claim, "x", t) for t in typed]]
    (refused,) = filter(None, told)
    assert isinstance(refused, UsageError) and "the name x is taken" in str(refused)


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Spots of any colour on coloured ramps, uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:height, :width]
    made = np.empty((count, height, width, 3), np.uint8)
    for image in made:
        image[:] = rng.integers(60, 150, 3) + 5 * x[..., None]
        image[np.hypot(*(a - rng.integers(2, 6) for a in (x, y))) < 2] = rng.integers(0, 256, 3)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images, networks of files and of code, beside folders that are named as packages here."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("edm", "experiments"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('of someone else')")
    colours = pictures(24, 8, 8)
    np.save(folder / "colours.npy", colours)
    np.save(folder / "grey.npy", colours[..., 0])
    np.save(folder / "wide.npy", pictures(4, 8, 10))
    np.save(folder / "one.npy", colours[:1])
    (folder / "empty").mkdir()
    checkpoint.save(tiny.network(), folder / "net.safetensors", {})
    checkpoint.save(tiny.network(label_dim=5), folder / "classes.safetensors", {})
    (folder / "owntest.py").write_text(CODE)
    return folder


@pytest.fixture
def call(files, tmp_path, monkeypatch, one_thread):
    """A command in this process, in a folder of its own with those files: its exit code."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINEAR_STRUCTURE_CACHE", str(tmp_path / "cache"))

    def run(*words, script="scripts/run_experiments_with_skips.py"):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        try:
            return run_command(runpy.run_path(str(ROOT / script))["main"])
        except SystemExit as misuse:
            return misuse.code

    return run


def own_sweep(call, *words, network="net.safetensors", dataset="colours.npy"):
    return call("own", "--dataset", dataset, "--network", network, *SMALL, *words)


def test_all_follows_from_the_name(call, capsys, tmp_path):
    """Pictures to a dataset, a training, the sweep, then table, scores, figures and suggestion."""
    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(pictures(30, 20, 16)):
        Image.fromarray(pixels).save(f"photos/ü {i}.{'PNG' if i % 2 else 'jpg'}", quality=95)
    assert call("photos", "my.zip", "--size", 8, script="scripts/prepare_images.py") == 0
    train = ("my.zip", "--recipe", "laptop", "--model-channels", 4, "--channel-mult", 1, "--out")
    length = ("training", "--duration", 64, "--threads", 1)
    assert call(*train, *length, script="scripts/train.py") == 0
    network = "training/network-000000064.safetensors"
    assert own_sweep(call, "--name", "mine", network=network, dataset="my.zip") == 0
    said = capsys.readouterr()
    assert "images_with_skips/mine/parameters does not exist: making it from my.zip" in said.out
    assert "FD-cifar is of images brought to 32 x 32" in said.out and "note: 5 images" in said.err
    told = json.loads(Path("images_with_skips/mine/own.json").read_text())
    assert (told["dataset"], told["network"], told["seeds"]) == ("my.zip", network, "0-4")

    assert call("mine", script="process_experiments_with_skips.py") == 0
    said = capsys.readouterr().out
    assert said.startswith("mine\n") and "KID" in said and "are copies, now of mine" in said
    for name in ("experiments_with_skip_results.txt", "experiments_with_skip_graph.png"):
        assert Path(name).read_bytes() == Path("images_with_skips/mine", name).read_bytes()
    assert call("mine", "--threads", 1, script="scripts/plot_scores.py") == 0
    scores = Path("scores/scores.png"), Path("scores/mine/scores.png")
    assert scores[0].read_bytes() == scores[1].read_bytes()
    by_name = ("mine", "--count", 4, "--threads", 1)
    assert call(*by_name, script="scripts/reproduce_figures.py") == 0
    assert len(list(Path("figures/mine").glob("*.png"))) >= 8
    capsys.readouterr()
    assert call(*by_name, script="scripts/suggest_skip.py") == 0
    assert "Skip" in (said := capsys.readouterr().out) and "nothing to compare" not in said


def test_code_of_ones_own_in_another_process_beside_folders_named_as_packages_here(files, tmp_path):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    given = ("--dataset", "colours.npy", "--network", "owntest:Net", *SMALL)
    command = ["bash", str(ROOT / "run_experiments_with_skips.sh"), "own", *given]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": ""}
    environment["LINEAR_STRUCTURE_CACHE"] = str(tmp_path / "cache")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = results.latest_sweep(tmp_path / "images_with_skips", "own")
    assert [result.skip for result in kept] == [0, 2, 4]


@pytest.mark.parametrize("code", ["images_with_skips.mine.evil:load", "evil:load"], ids=str)
@pytest.mark.parametrize(
    "command",
    [
        ("scripts/run_experiments_with_skips.py", "mine", *SMALL),
        ("scripts/run_experiments_with_skips.py", "own", "--name", "mine", "--seeds", "0-4"),
        ("scripts/plot_scores.py", "mine"),
        ("scripts/suggest_skip.py", "mine"),
        ("scripts/reproduce_figures.py", "mine"),
        ("scripts/losses.py", "mine"),
        ("scripts/generate.py", "--preset", "mine", "--outdir", "images"),
        ("scripts/likelihood.py", "mine"),
        ("scripts/annealed.py", "mine"),
        ("scripts/teleported_chains.py", "mine"),
    ],
    ids=" ".join,
)
def test_code_that_a_copied_folder_names_is_not_run(call, capsys, code, command):
    """Neither a module inside of the folder, nor one beside; of a name that ran other code, too."""
    script, *words = command
    record = {"dataset": "colours.npy", "network": "owntest:Net"}
    own.write("mine", record)  # what this user typed
    own.path_of("mine").write_text(json.dumps({**record, "network": code}))
    for folder in (Path(), own.path_of("mine").parent):
        (folder / "evil.py").write_text("raise SystemExit('it runs')")
    capsys.readouterr()
    assert call(*words, script=script) == 2
    said = capsys.readouterr().err
    assert f"names code to run, {code}, which was not typed here" in said


def test_code_that_was_typed_runs_by_the_name_where_it_was_typed(call, capsys, tmp_path):
    assert own_sweep(call, "--name", "mine", network="owntest:Net") == 0
    assert call("mine", "--count", 4, "--threads", 1, script="scripts/suggest_skip.py") == 0
    Path("images_with_skips/mine").rename("images_with_skips/moved")
    assert call("moved", *SMALL) == 2
    assert "own --name moved --network owntest:Net" in capsys.readouterr().err
    assert call("moved", "--network", "owntest:Net", *SMALL) == 0
    assert call("moved", *SMALL) == 2  # that was for one command; this is for the name
    assert call("own", "--name", "moved", "--network", "owntest:Net", *SMALL) == 0
    assert call("moved", *SMALL) == 0


def test_what_another_user_typed_in_a_shared_cache_runs_nothing(call, capsys, monkeypatch):
    """Neither under the other's number, nor a file of theirs under this user's."""
    assert own_sweep(call, "--name", "mine", network="owntest:Net") == 0
    mine = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: mine + 1)
    assert call("mine", *SMALL) == 2
    theirs, ours = consent._path(own.path_of("mine").parent), next(Path("cache/code").iterdir())
    shutil.copy(ours, theirs)
    assert call("mine", *SMALL) == 2
    assert "which was not typed here" in capsys.readouterr().err
    monkeypatch.undo()


def test_where_the_cache_cannot_be_written_code_is_typed_each_time(call, capsys, monkeypatch):
    Path("cache").write_text("")
    assert own_sweep(call, network="owntest:Net") == 0
    assert "note: type --network owntest:Net each time" in capsys.readouterr().err
    assert call("own", *SMALL) == 2
    assert own_sweep(call, network="owntest:Net") == 0


def test_a_name_serves_a_second_range_and_keeps_its_settings(call, capsys, monkeypatch):
    assert own_sweep(call) == 0
    first = results.latest_sweep(results.ROOT, "own")
    monkeypatch.setattr("edm.precondition.Preconditioned.forward", None)  # a call would raise
    assert call("own", "--seeds", "0-4", "--skips", "0,2", "--threads", 1) == 0  # all is there
    assert results.latest_sweep(results.ROOT, "own") == first
    preset = options.find("own")
    assert (preset.block, preset.steps, preset.seeds.count, preset.skips) == (5, 4, 5, (0, 2))
    assert preset.title == "own" and preset.makes_parameters
    assert call("own", "--seeds", "0-4", "--steps", 5) == 2
    assert "the name own is taken, with steps 4: leave out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    {
        "wrong channels": ({"dataset": "grey.npy"}, "the network makes 3 x 8 x 8: make images"),
        "wrong size": ({"dataset": "wide.npy"}, "images of 3 x 8 x 10, the network makes"),
        "no images": ({"dataset": "empty"}, "empty contains no images (PNG"),
        "one image": ({"dataset": "one.npy"}, "holds one image: two are needed"),
        "no labels": ({"network": "classes.safetensors"}, "no labels: give them, as a folder"),
        "returns nothing": ({"network": "owntest:nothing"}, "returns None: expected a function"),
        "returns NaN": ({"network": "owntest:blind"}, "gives NaN or infinity at sigma 80; D(x"),
        "other features": ({"--reference": "other.npz"}, "make the reference again, with"),
        "a name that is taken": ({"--rho": "5"}, "the name own is taken, with rho of its own"),
        "a file for a folder": ({}, "images_with_skips is a file: expected a folder"),
        "a name of a preset": ({"--name": "digits"}, "digits is a preset: choose another --name"),
        "a name that is a path": ({"--name": "../x"}, "--name '../x': expected letters"),
        "no name at all": ({"--name": ""}, "--name '': expected letters"),
        "no images named": ({"dataset": None}, "nothing says which images are yours"),
        "another preset": ({"preset": "digits", "--name": "x"}, "--name would change nothing"),
    }.values(),
    ids=str,
)
def test_mistakes_are_one_sentence_that_tells_what_to_do(call, capsys, words, said):
    given = {"preset": "own", "dataset": "colours.npy", "network": "net.safetensors", **words}
    dataset, network = given.pop("dataset"), given.pop("network")
    command = [given.pop("preset"), "--network", network, *SMALL]
    command += ["--dataset", dataset] if dataset else []
    if "--reference" in given:
        some = torch.rand(200, 128, generator=torch.Generator().manual_seed(0))
        fid.write("other.npz", fid.measure([some], "0" * 64))
    if "taken" in said:
        own.write("own", {"dataset": "colours.npy", "network": "net.safetensors", "block": "5"})
        command = ["own", "--rho", "5"]
    if "is a file" in said:
        Path("images_with_skips").write_text("")
    assert call(*command, *(word for pair in given.items() for word in pair)) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and said in error and "Traceback" not in error
    assert list(Path().glob("images_with_skips/*/own.json")) == (
        [Path("images_with_skips/own/own.json")] if "taken" in said else []
    )


def test_without_a_network_the_command_that_trains_one_is_said(call, capsys, monkeypatch):
    monkeypatch.setattr("experiments.forecast._seconds_of_call", lambda *_: 0.01)
    assert call("own", "--dataset", "colours.npy", "--threads", 1) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "python scripts/train.py colours.npy --recipe laptop --out training/own" in said
    assert "training/own/network-000250016.safetensors is made in about" in said
    assert call("own", script="scripts/suggest_skip.py") == 2
    assert "or a name that a sweep of it was given here" in capsys.readouterr().err


def test_shipped_features_judge_by_channels_at_the_size_that_they_learned(monkeypatch):
    def judged(channels, side=8):
        images = Dataset.of("some", torch.zeros(2, channels, side, side, dtype=torch.uint8))
        return own.judge_of(images)

    assert (judged(3).features, judged(3).side) == ("cifar10-features.safetensors", 32)
    assert judged(1).features in ("fashion-features.safetensors", "digits-features.safetensors")
    monkeypatch.setattr(own, "JUDGES", (own.Judge(1, 28, "not shipped"), *own.JUDGES[2:]))
    assert "whose word is weak" in judged(1).note


def test_resized_features_are_those_of_images_brought_to_one_size():
    plain = features.load(shipped("cifar10-features.safetensors"))
    resized = Resized(plain, 32)
    small = pictures(3, 8, 8)
    large = [Image.fromarray(x).resize((32, 32), Image.Resampling.BICUBIC) for x in small]
    by_pillow = plain(torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2))
    ours = resized(torch.from_numpy(small).permute(0, 3, 1, 2))
    assert torch.allclose(ours, by_pillow, atol=0.05)
    whole = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(resized(whole), plain(whole))
    assert resized.digest not in (plain.digest, Resized(plain, 28).digest)


def test_features_that_are_named_judge_as_they_do_where_nobody_names_them(call, capsys, tmp_path):
    """So do those of a copy: one name of a distance, one number."""
    shutil.copy(shipped("cifar10-features.safetensors"), tmp_path / "copy.safetensors")
    assert own_sweep(call, "--name", "chosen") == 0
    assert own_sweep(call, "--name", "named", "--features", "copy.safetensors") == 0
    assert capsys.readouterr().out.count("FD-cifar is of images brought to 32 x 32") == 2
    root = tmp_path / "images_with_skips"
    chosen, named = (results.latest_sweep(root, name) for name in ("chosen", "named"))
    assert [each.outputs for each in named] == [each.outputs for each in chosen]
    (judges,) = {each.inputs["features"] for each in (*chosen, *named)}
    assert judges.startswith("classifier-cifar-of-32-pixels:")


@pytest.mark.parametrize("judge", own.JUDGES, ids=lambda judge: judge.features)
def test_images_of_the_size_that_features_learned_on_are_taken_as_they_are(judge):
    """By any preset: what was measured on them before stays valid."""
    file = shipped(judge.features)
    preset = replace(presets.find("digits"), features=file)
    plain = features.load(file)
    same, other = (
        loading.load_features(preset, torch.device("cpu"), (judge.channels, height, judge.side))
        for height in (judge.side, judge.side + 1)
    )
    assert (same.name, same.digest) == (plain.name, plain.digest)
    assert (other.name, other.digest) == (
        f"{plain.name}-of-{judge.side}-pixels",
        Resized(plain, judge.side).digest,
    )
    assert own.note_on(preset) == judge.note


def test_a_record_that_is_damaged_is_one_sentence(call):
    own.write("x", {"dataset": "colours.npy", "network": "net.safetensors", "width": "3"})
    with pytest.raises(UsageError, match=r"own\.json of this name holds what is no option"):
        options.find("x")
    for text in ("{", "[]", '{"steps": 3}'):
        own.path_of("x").write_text(text)
        with pytest.raises(UsageError, match="remove it, and type all again"):
            options.find("x")


@pytest.mark.parametrize(
    "before, after",
    [
        ('"rho": "7.0"', '"rho": "3.0"'),
        ('"by_class": false', '"by_class": true'),
        ('"steps"', '"rhos"'),
    ],
)
def test_a_record_that_was_changed_is_no_other_experiment(call, before, after):
    """One of before there was a checksum is read as it is."""
    record = {"dataset": "colours.npy", "rho": "7.0", "by_class": False, "steps": "9"}
    own.write("x", {**record, "network": "net.safetensors"})
    path = own.path_of("x")
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UsageError, match=r"not those of its checksum.*type all again"):
        options.find("x")
    path.write_text(json.dumps({**record, "network": "net.safetensors"}))
    assert options.find("x").rho == 7


def test_the_page_says_which_features_judge_what():
    """The rows of the table are those of the rule, in its order."""
    page = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    lines = page.split("### Which features judge what\n")[1].strip().split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:-1]]
    told = [(cells[0].split()[0].rstrip(","), cells[1].split("`")[1], cells[2]) for cells in rows]
    kinds = {1: "grey", 3: "colour"}
    assert told == [
        (kinds[j.channels], Path(j.features).stem, f"{j.side} x {j.side}") for j in own.JUDGES
    ]
