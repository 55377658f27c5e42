"""Training: order, accumulation, the step's rules, and runs that stop and continue to the bit."""

import dataclasses
import json
import math
import os
import random
import re
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edm.checkpoints import checkpoint
from edm.training.data import Data, Piece, batches
from edm.training.loss import EDM, loss_at
from edm.training.recipes import RECIPES, Recipe
from edm.training.runs import STATE, Job, write_curve
from edm.training.state import State, read_state, write_state
from edm.training.steps import Trainer, accumulate, clean, joined_gradients
from linear_structure.data import datasets
from linear_structure.images import from_uint8
from linear_structure.sampling.scales import Scales
from linear_structure.system.errors import UsageError, WorkError, run_command
from linear_structure.system.files import digest_of, digest_of_file
from linear_structure.system.options import plain, table

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = ROOT / "edm" / "weights"
CPU = torch.device("cpu")
TINY = dataclasses.replace(
    RECIPES["digits"],
    model_channels=8,
    channel_mult=(1,),
    dropout=0.1,
    augment=0.2,
    batch=32,
    piece=16,
    ramp=100,
    duration=960,
    tick=100,
    snapshot=300,
)

SCALES = "scales.json"

pytestmark = pytest.mark.usefixtures("one_thread")


def scales(steps: int = 5) -> Scales:
    return Scales.between(10.0, 0.05, 1.4, steps)


def job(folder: Path, **changes: object) -> Job:
    recipe = dataclasses.replace(TINY, **changes)
    return Job(recipe.shared_by(1), datasets.load("digits"), folder, CPU)


def quick(folder: Path, **changes: object) -> Job:
    """A job that draws no samples."""
    return dataclasses.replace(job(folder, **changes), samples=None)


def command(folder: Path) -> list[str]:
    """`scripts/train.py` for the tiny recipe."""
    line = [str(ROOT / "scripts" / "train.py"), "digits", "--recipe", "digits", "--device", "cpu"]
    line += ["--threads", "1", "--out", str(folder)]
    for each in dataclasses.fields(Recipe):
        value = getattr(TINY, each.name)
        if value != getattr(RECIPES["digits"], each.name):
            values = value if isinstance(value, tuple) else (value,)
            line += [f"--{each.name.replace('_', '-')}", *map(str, values)]
    return line


def start(*line: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *line], env=environment, stderr=subprocess.DEVNULL)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a run's state: weights, average, moments of Adam."""
    saved = read_state(folder / STATE, CPU)
    found = {f"network.{k}": v for k, v in saved["network"].items()}
    found |= {f"average.{k}": v for k, v in saved["average"].items()}
    for number, moments in saved["optimizer"]["state"].items():
        found |= {f"adam.{number}.{k}": v for k, v in moments.items()}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    job(folder).run()
    return folder


def same_runs(folder: Path, other: Path) -> bool:
    """Whether two runs have equal tensors and curves, to the bit."""
    expected, found = tensors_of(folder), tensors_of(other)
    assert expected.keys() == found.keys()
    assert (folder / "loss.csv").read_bytes() == (other / "loss.csv").read_bytes()
    return all(torch.equal(expected[name], found[name]) for name in expected)


def test_killed_and_continued_run_equals_an_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    process = start(*command(tmp_path))
    while not (tmp_path / STATE).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert read_state(tmp_path / STATE, CPU)["images_seen"] < TINY.duration
    assert start(*command(tmp_path)).wait(timeout=300) == 0
    assert same_runs(whole, tmp_path)


@pytest.mark.parametrize(
    "number, steps", [(signal.SIGINT, (1, 5, 13)), (signal.SIGTERM, (3, 4, 21))]
)
def test_a_signal_loses_no_step_before_between_or_after_snapshots(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    steps: tuple[int, ...],
) -> None:
    step, at = Trainer.step, [(each - 1) * TINY.batch for each in steps]

    def interrupted(self: Trainer, state: State, index: Tensor) -> Tensor:
        if state.images_seen in at:
            signal.raise_signal(number)
        return step(self, state, index)

    monkeypatch.setattr(Trainer, "step", interrupted)
    for each in steps:
        assert run_command(quick(tmp_path).run) == 128 + number
        assert read_state(tmp_path / STATE, CPU)["images_seen"] == each * TINY.batch
    assert run_command(quick(tmp_path).run) == 0
    assert same_runs(whole, tmp_path)


def test_a_stop_keeps_no_state_whose_loss_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer, state: State, index: Tensor) -> Tensor:
        state.images_seen += TINY.batch
        signal.raise_signal(signal.SIGINT)
        return torch.tensor(math.nan)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(WorkError, match="loss is nan"):
        quick(tmp_path).run()
    assert not (tmp_path / STATE).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"preconditioning": "vp", "loss": "levels"},
        {"preconditioning": "ncsn", "loss": "levels", "levels": SCALES},
        {"loss": "log-uniform"},
    ],
    ids=["ddpm", "ncsn", "log-uniform"],
)
def test_a_run_with_another_loss_continues_to_the_bit(
    changes: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / SCALES).write_text(json.dumps({"inputs": {}, "outputs": scales().to_json()}))
    changes = {k: str(tmp_path / v) if v == SCALES else v for k, v in changes.items()}
    for folder, durations in (("whole", (320,)), ("part", (192, 320))):
        for duration in durations:
            quick(tmp_path / folder, **changes, duration=duration, tick=64).run()
    assert same_runs(tmp_path / "whole", tmp_path / "part")
    with pytest.raises(UsageError, match=r"other .*loss"):
        quick(tmp_path / "part", preconditioning=changes.get("preconditioning", "edm")).run()


def test_the_levels_of_a_run_are_known_by_their_values(tmp_path: Path) -> None:
    path, moved = tmp_path / SCALES, tmp_path / "moved.json"
    path.write_text(json.dumps({"inputs": {}, "outputs": scales().to_json()}))
    changes = {"preconditioning": "ve", "loss": "levels", "duration": 64}
    quick(tmp_path / "run", **changes, levels=str(path)).run()
    path.rename(moved)
    quick(tmp_path / "run", **changes, levels=str(moved)).run()
    moved.write_text(json.dumps({"inputs": {}, "outputs": scales(steps=4).to_json()}))
    with pytest.raises(UsageError, match="other levels:"):
        quick(tmp_path / "run", **changes, levels=str(moved)).run()


def test_runs_of_earlier_versions_are_known_by_the_same_values(tmp_path: Path) -> None:
    """Digests that the code gave when there was no choice of a loss."""
    found = [digest_of(job(tmp_path, conditional=each).identity)[:16] for each in (False, True)]
    assert found == ["83c80e7439e65745", "e16e7ac43d63644e"]


def test_two_processes_take_the_steps_of_one(whole: Path, tmp_path: Path) -> None:
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert start(*two, *command(tmp_path)).wait(timeout=300) == 0
    expected, found = tensors_of(whole), tensors_of(tmp_path)
    for name in expected:
        if name.startswith("average"):
            torch.testing.assert_close(found[name], expected[name], atol=2e-3, rtol=2e-3)
    rows = [(folder / "loss.csv").read_text().splitlines()[1:] for folder in (whole, tmp_path)]
    for one, other in zip(*rows, strict=True):
        assert float(other.split(",")[1]) == pytest.approx(float(one.split(",")[1]), rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_whose_partner_never_comes(number: signal.Signals) -> None:
    program = (
        "import sys\n"
        "from linear_structure.system.errors import run_command\n"
        "from linear_structure.system.machine import gathered\n"
        "def main():\n"
        "    print('waits', flush=True)\n"
        "    with gathered(patience=None): pass\n"
        "sys.exit(run_command(main))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = os.environ | told | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", program]
    with subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"waits\n"
        time.sleep(0.5)  # it is in C++ by now
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number) and b"Traceback" not in said


def test_a_longer_duration_continues_the_same_run(whole: Path, tmp_path: Path) -> None:
    job(tmp_path, duration=400, tick=50).run()
    state = job(tmp_path).run()
    expected = tensors_of(whole)
    for name, value in state.average.state_dict().items():
        assert torch.equal(value, expected[f"average.{name}"])


def test_snapshots_hold_what_they_promise(whole: Path) -> None:
    last = sorted(whole.glob("network-*.safetensors"))[-1]
    network = checkpoint.load(last)
    average = tensors_of(whole)
    for name, value in network.state_dict().items():
        assert torch.equal(value, average[f"average.{name}"])
    with safe_open(last, framework="pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    assert provenance["images_seen"] == TINY.duration
    assert provenance["dataset"] == "digits"
    recipe = plain(TINY)
    assert {name: provenance[name] for name in recipe} == recipe
    assert f"{TINY.duration},{provenance['loss_per_pixel']!r}\n" in (whole / "loss.csv").read_text()
    assert {f"samples-{TINY.duration:09d}.png", "loss.png", "loss.csv"} <= {
        p.name for p in whole.iterdir()
    }
    losses = [float(row.split(",")[1]) for row in (whole / "loss.csv").read_text().split()[1:]]
    assert losses[-1] < 0.9 * losses[0]


class Shrinkage(nn.Module):
    """A denoiser that is no network of images: one factor for each pixel."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.config = {"pixels": pixels}
        self.factor = nn.Parameter(torch.full((pixels,), 0.5))

    def forward(self, x: Tensor, sigma: Tensor, **_: Tensor | None) -> Tensor:
        return x * self.factor.reshape(x.shape[1:])


class ShrinkageRecipe(Recipe):
    def build(self, dataset: datasets.Dataset) -> nn.Module:
        return Shrinkage(math.prod(dataset.shape))


def shrinkage(config: Mapping[str, Any]) -> Shrinkage:
    return Shrinkage(**config)


@pytest.mark.parametrize("loss", [2.0, 0.03])
def test_a_curve_of_one_row_shows_it(tmp_path: Path, loss: float) -> None:
    """In the first colour of lines, which nothing else on the picture has."""
    write_curve(tmp_path / "loss", [(1000, loss)])
    with Image.open(tmp_path / "loss.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    blue = torch.tensor([0x1F, 0x77, 0xB4], dtype=torch.uint8)
    assert (pixels == blue).all(2).sum() >= 9


def test_a_module_of_any_kind_trains_and_continues_to_the_bit(tmp_path: Path) -> None:
    def trained(folder: Path, duration: int) -> State:
        recipe = ShrinkageRecipe(**vars(dataclasses.replace(TINY, duration=duration)))
        return Job(recipe, datasets.load("digits"), folder, CPU, samples=None).run()

    state = trained(tmp_path / "whole", 960)
    trained(tmp_path / "part", 320)
    trained(tmp_path / "part", 960)
    last = tmp_path / "part" / "network-000000960.safetensors"
    network = checkpoint.load_module(last, shrinkage)
    assert torch.equal(network.factor, state.average.factor)
    assert not torch.equal(network.factor, torch.full((64,), 0.5))
    assert not list(tmp_path.glob("*/samples-*"))


def test_another_configuration_is_refused_by_name(whole: Path) -> None:
    with pytest.raises(UsageError, match="other dropout, learning_rate"):
        job(whole, dropout=0.2, learning_rate=1e-5).run()


def test_commands_of_one_folder_train_in_turn_and_do_not_mix(
    tmp_path: Path, states_meet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without turns both would have read that nothing is there, and both would train."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(quick(tmp_path, seed=n, duration=64).run) for n in (1, 2)]
        errors = [each for each in (run.exception() for run in runs) if each]
    assert len(errors) == 1 and isinstance(errors[0], UsageError)
    assert "belongs to another training, with other seed" in str(errors[0])
    assert f"waiting for another process that trains in {tmp_path}" in capsys.readouterr().err
    assert len(list(tmp_path.glob("network-*"))) == 1


def test_a_state_has_the_form_that_earlier_versions_wrote(whole: Path) -> None:
    saved = read_state(whole / STATE, CPU)
    parts = {"network", "average", "optimizer"}
    assert saved.keys() == {"identity", *parts, "images_seen", "seconds", "curve"}
    free = {"duration", "tick", "snapshot", "compile"}
    told = {each.name for each in dataclasses.fields(Recipe)} - free
    told -= {"loss", "levels"}  # they came later, and are told only where they say something
    assert json.loads(saved["identity"]).keys() == {*told, "images"}


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(UsageError, match="not a training state"):
        job(tmp_path).run()


def test_no_changed_bit_of_a_state_is_trained_on(tmp_path: Path) -> None:
    """Either a checksum of the zip tells, or the bit has no meaning."""
    state = {"images_seen": 7, "network": {"w": torch.arange(8.0)}, "curve": [(3, 0.5)]}
    path, refused = tmp_path / STATE, 0
    write_state(path, state)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_state(path, CPU)
        except UsageError:
            refused += 1
        else:
            assert torch.equal(found["network"].pop("w"), state["network"]["w"])
            assert found == {**state, "network": {}}
    assert refused > 100


def test_a_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    write_state(tmp_path / STATE, {"images_seen": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WorkError, match=r"training-state\.pt cannot be written .*too large"):
            write_state(tmp_path / STATE, {"network": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_state(tmp_path / STATE, CPU) == {"images_seen": 1}
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_snapshot(tmp_path: Path) -> None:
    job(tmp_path, duration=200).run()
    saved = read_state(tmp_path / STATE, CPU)
    saved["network"]["model.map_layer0.bias"].fill_(math.nan)
    torch.save(saved, tmp_path / STATE)
    good = sorted(tmp_path.glob("network-*.safetensors"))
    with pytest.raises(WorkError, match=rf"loss is nan.*{good[-1].name}"):
        job(tmp_path).run()
    assert sorted(tmp_path.glob("network-*.safetensors")) == good


def test_a_recipe_keeps_its_own_values_where_another_loss_has_no_use_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "train.py"))
    words = ["--recipe", "digits", "--preconditioning", "vp", "--loss", "levels", "--out", "run"]
    monkeypatch.setattr(sys, "argv", ["train.py", "digits", *words])
    want = dataclasses.replace(RECIPES["digits"], preconditioning="vp", loss="levels")
    assert script["recipe_of"](script["parse_arguments"]()) == want


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--device", "abacus"), "--device abacus: there is no such device here"),
        (("--threads", "0"), "--threads 0: expected 1 to 1024"),
        (("--threads", "-2"), "--threads -2: expected 1 to 1024"),
        (("--duration", "0"), "'duration' is 0: expected 1"),
        (("--seed", "-1"), "'seed' is -1: expected 0"),
        (("--levels", "a.json"), "'levels' is 'a.json', of which the loss 'own' knows nothing"),
        (
            ("--recipe", "digits", "--loss", "levels", "--levels", "a.json"),
            "a.json cannot be read as noise scales: No",
        ),
        (
            ("--loss", "levels", "--sigma-mean", "0"),
            "--sigma-mean would change nothing: it is of the loss that belongs to --precond",
        ),
        (("--loss", "log-uniform", "--log-uniform", "0.1"), "--log-uniform would change nothing"),
        (("--preconditioning", "vp", "--sigma-std", "1"), "--sigma-std would change nothing"),
        (("--preconditioning", "ve", "--sigma-data", "1"), "--sigma-data would change nothing"),
        (
            ("--recipe", "plane", "--channel-mult", "1", "2"),
            "--channel-mult would change nothing: an mlp has --model-channels and --num-blocks",
        ),
        (("--architecture", "mlp", "--attn-resolutions", "4"), "--attn-resolutions would change"),
        (("--architecture", "mlp"), "knows neither augmentation nor dropout: give --augment 0"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(
    words: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = builders.module(ROOT / "scripts" / "train.py")
    monkeypatch.setattr(sys, "argv", ["train.py", "digits", "--out", str(tmp_path / "run"), *words])
    assert run_command(script.main) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_labels_are_needed_for_a_conditional_network() -> None:
    digits = datasets.load("digits")
    unlabelled = dataclasses.replace(digits, read_labels=lambda: None)
    recipe = dataclasses.replace(TINY, conditional=True)
    assert recipe.network(digits)["label_dim"] == 10
    with pytest.raises(UsageError, match="no labels"):
        recipe.network(unlabelled)


def test_labels_that_are_vectors_are_what_a_network_is_told(tmp_path: Path) -> None:
    digits = datasets.load("digits")
    vectors = torch.rand(digits.count, 3)
    dataset = datasets.Dataset.of("vectors", digits.images(), vectors)
    conditional = dataclasses.replace(TINY, conditional=True)
    assert conditional.network(dataset)["label_dim"] == 3
    source = Job(conditional, dataset, tmp_path, CPU).source
    piece = source.piece(0, torch.tensor([5, 2]))
    assert torch.equal(piece.class_labels, vectors[[5, 2]])
    whole = Job(conditional, digits, tmp_path, CPU).source.piece(0, torch.tensor([5, 2]))
    assert whole.class_labels.argmax(1).tolist() == digits.labels()[[5, 2]].tolist()


def test_labels_are_not_read_for_a_network_without_classes(tmp_path: Path) -> None:
    def odd() -> None:
        raise UsageError("odd labels")

    dataset = dataclasses.replace(datasets.load("digits"), read_labels=odd)
    source = Job(TINY, dataset, tmp_path, CPU).source
    assert source.piece(0, torch.arange(2)).class_labels is None
    assert source.identity == Job(TINY, datasets.load("digits"), tmp_path, CPU).source.identity
    with pytest.raises(UsageError, match="odd labels"):
        dataclasses.replace(TINY, conditional=True).network(dataset)


def test_a_conditional_network_trains(tmp_path: Path) -> None:
    state = job(tmp_path, conditional=True, duration=64, snapshot=64).run()
    assert state.network.label_dim == 10
    assert state.images_seen == 64


@pytest.mark.parametrize(
    ("preconditioning", "architecture", "precision"),
    [
        ("edm", "ddpmpp", "bfloat16"),
        ("vp", "ddpmpp", "float32"),
        ("ve", "ncsnpp", "float32"),
        ("iddpm", "adm", "float32"),
        ("ncsn", "ddpmpp", "float32"),
        ("ve", "mlp", "bfloat16"),
    ],
)
def test_every_preconditioning_and_architecture_trains(
    preconditioning: str, architecture: str, precision: str, tmp_path: Path
) -> None:
    changes = {"preconditioning": preconditioning, "architecture": architecture}
    if architecture == "mlp":
        changes |= {"dropout": 0.0, "augment": 0.0}
    state = job(tmp_path, **changes, precision=precision, duration=64, snapshot=64).run()
    assert math.isfinite(state.curve[-1][1])
    assert {p.dtype for p in state.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("batch", "piece", "processes"), [(32, 24, 1), (32, 32, 2), (1, 0, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(batch: int, piece: int, processes: int) -> None:
    with pytest.raises(UsageError, match=f"a batch of {batch}"):
        dataclasses.replace(TINY, batch=batch, piece=piece).shared_by(processes)


def test_every_pass_sees_every_image_once_in_another_order() -> None:
    drawn = torch.cat([index for index, _ in zip(batches(50, 8, seed=3), range(25), strict=False)])
    first, second = drawn[:50], drawn[50:100]
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(50))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("position", [0, 8, 48, 400])
def test_order_continues_from_any_position(position: int) -> None:
    drawn = torch.cat([i for i, _ in zip(batches(50, 8, seed=3), range(60), strict=False)])
    resumed = next(batches(50, 8, seed=3, position=position))
    assert resumed.tolist() == drawn[position : position + 8].tolist()


def test_accumulated_gradient_is_that_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64)).double()
    images = torch.randn(32, 1, 8, 8, dtype=torch.float64)

    def objective(layer: nn.Module, batch: Tensor, labels: Tensor | None) -> Tensor:
        return (layer(batch) - batch.flatten(1)) ** 2

    def gradient(size: int) -> tuple[Tensor, Tensor]:
        network.zero_grad()
        pieces = [Piece(0, part, None) for part in images.split(size)]
        return accumulate(network, objective, pieces, 1 / 32), network[1].weight.grad.clone()

    total, whole_gradient = gradient(32)
    for size in (1, 8, 16):
        found_total, found = gradient(size)
        torch.testing.assert_close(found_total, total)
        torch.testing.assert_close(found, whole_gradient)
    assert float(total) == pytest.approx(float(objective(network, images, None).detach().sum()))


def trainer_of(recipe: Recipe) -> tuple[Trainer, State]:
    digits = datasets.load("digits")
    torch.manual_seed(0)
    state = State.start(checkpoint.build(recipe.network(digits)))
    data = Data(digits.images(), None, 0, CPU)

    def objective(network: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
        sigma = torch.full((len(images),), 0.5)
        noisy = images + 0.5 * torch.randn_like(images)
        return (network(noisy, sigma, class_labels=labels) - images) ** 2

    return Trainer(recipe, data, objective, state.network), state


def test_first_step_has_rate_zero_and_the_rate_rises_linearly() -> None:
    trainer, state = trainer_of(dataclasses.replace(TINY, augment=0.0, ramp=128))
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    order, rates = batches(1797, 32, seed=0), []
    for step in range(6):
        trainer.step(state, next(order))
        rates.append(state.optimizer.param_groups[0]["lr"] / TINY.learning_rate)
        if step == 0:
            after = state.network.state_dict()
            assert all(torch.equal(after[name], before[name]) for name in before)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_gradients_are_cleaned() -> None:
    layer = nn.Conv2d(4, 1, 1, bias=False).requires_grad_(True)
    gradients = joined_gradients(layer.parameters())
    factors = torch.tensor([math.nan, math.inf, -math.inf, 2.0])
    (layer.weight.flatten() * factors).sum().backward()
    clean(gradients)
    assert layer.weight.grad.flatten().tolist() == [0.0, 1e5, -1e5, 2.0]


def test_gradients_are_parts_of_one_tensor_in_the_layout_of_their_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).double()
    network.to(memory_format=torch.channels_last)
    network[1].bias.requires_grad_(False)
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    network(images).square().sum().backward()
    expected = [each.grad for each in network.parameters()]
    joined = joined_gradients(network.parameters())
    network(images).square().sum().backward()
    for parameter, alone in zip(network.parameters(), expected, strict=True):
        if alone is not None:
            assert torch.equal(parameter.grad, alone)
            assert parameter.grad.stride() == parameter.stride()
    assert joined.square().sum().item() == pytest.approx(
        sum(each.square().sum().item() for each in expected if each is not None), rel=1e-12
    )


def test_steps_are_those_with_an_operation_for_each_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, whether or not a batch is cut."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    loops = builders.module(ROOT / "benchmarks" / "training.py")
    for piece in (16, 32):
        recipe = dataclasses.replace(TINY, augment=0.0, piece=piece)
        images = loops.random_images("digits")
        networks = [loops.network_of(recipe, images, "cpu") for _ in range(2)]
        makers = (loops.ours, loops.separate)
        steps = [make(recipe, each, images) for make, each in zip(makers, networks, strict=True)]
        errors = [torch.stack([step() for _ in range(6)]) for step in steps]
        assert torch.equal(*errors)
        ours, separate = (each.state_dict() for each in networks)
        assert all(torch.equal(ours[name], separate[name]) for name in ours)


def test_the_recipe_for_one_card_is_as_large_as_it_says() -> None:
    cifar = dataclasses.replace(datasets.load("digits"), shape=(3, 32, 32))
    recipe = RECIPES["gpu"]
    with torch.device("meta"):
        network = recipe.build(cifar)
        assert network.compute_dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 32, 32), torch.tensor(1.0), force_fp32=True)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(6.99e6, rel=1e-3)
    assert counter.get_total_flops() == pytest.approx(3.5e9, rel=0.01)  # torch counts vary


def test_a_run_may_be_compiled_from_now_on(tmp_path: Path) -> None:
    """Which is no part of what it is known by."""
    assert job(tmp_path).identity == job(tmp_path, compile=True).identity


def test_published_recipe_is_the_published_network() -> None:
    """55,733,891 parameters, as counted in the published CIFAR-10 checkpoint."""
    cifar = dataclasses.replace(datasets.load("digits"), shape=(3, 32, 32))
    with torch.device("meta"):
        network = checkpoint.build(RECIPES["published"].network(cifar))
    assert sum(p.numel() for p in network.parameters()) == 55_733_891


def test_recipes_have_one_table() -> None:
    rows = table(Recipe, RECIPES).splitlines()
    assert len(rows) == len(dataclasses.fields(Recipe)) + 2
    assert all(row.count("|") == len(RECIPES) + 3 for row in rows)


def test_shipped_denoiser_is_what_its_card_says() -> None:
    path, card = WEIGHTS / "digits-denoiser.safetensors", (WEIGHTS / "digits.md").read_text()
    assert digest_of_file(path) in card
    assert f"{path.stat().st_size:,} bytes" in card
    network = checkpoint.load(path)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 8, 8), torch.tensor(1.0))
    flops = counter.get_total_flops()
    assert flops <= 20e6
    stated = float(re.search(r"([0-9.]+) MFLOP for one image", card)[1])
    assert flops / 1e6 == pytest.approx(stated, rel=0.01)  # torch's count varies by version
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in card


def test_shipped_networks_are_small_and_made_for_the_digits() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("digits-*.safetensors")) <= 4e6
    pixels = from_uint8(datasets.load("digits").images(), torch.float64)
    network = checkpoint.load(WEIGHTS / "digits-denoiser.safetensors")
    assert network.options.sigma_data == pytest.approx(float(pixels.std()), abs=1e-4)


@pytest.mark.parametrize(("sigma", "most"), [(0.1, 0.6), (0.5, 0.6), (2.0, 0.96)])
def test_shipped_denoiser_beats_the_gaussian(sigma: float, most: float) -> None:
    images = from_uint8(datasets.load("digits").images(), torch.float64)
    flat = images.flatten(1)
    lam = torch.linalg.eigvalsh(torch.cov(flat.T)).clamp(min=0)
    loss = EDM(sigma_data=0.7518)
    gaussian = loss.weight(torch.tensor(sigma)) * (lam * sigma**2 / (lam + sigma**2)).mean()
    network = checkpoint.load(WEIGHTS / "digits-denoiser.safetensors")
    assert loss_at(loss, network, images.float(), sigma) < most * float(gaussian)
