"""Training from a network that is there: the first loss is its own, and the run knows it."""

import dataclasses
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import builders
import pytest
import tiny
import torch
from safetensors.torch import save_file

from edm.checkpoints import checkpoint
from edm.precondition import Preconditioned
from edm.training.data import NOISE
from edm.training.loss import EDM, denoising_loss
from edm.training.recipes import RECIPES
from edm.training.runs import STATE, Job
from edm.training.state import mixed, read_state
from edm.training.transfer import Transfer
from linear_structure.data import datasets
from linear_structure.images import from_uint8
from linear_structure.system.errors import UsageError, run_command

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
BATCH = 32
OPTIONS = {"img_channels": 1, "augment_dim": 9, "dropout": 0.0, "sigma_data": 0.7}

pytestmark = pytest.mark.usefixtures("one_thread")


def network(**changes: object) -> Preconditioned:
    return tiny.network(**OPTIONS | changes)


def snapshot_of(published: ModuleType, source: Preconditioned) -> dict:
    return published.snapshot(source.config, source.state_dict(), published.Form())


def pickled(published: ModuleType, path: Path, source: Preconditioned) -> Path:
    with path.open("wb") as file:
        published.dump(snapshot_of(published, source), file, published.Form())
    return path


def stated(published: ModuleType, path: Path, source: Preconditioned) -> Path:
    published.dump_state(snapshot_of(published, source)["ema"], path, published.Form())
    return path


def saved(published: ModuleType, path: Path, source: Preconditioned) -> Path:
    checkpoint.save(source, path, {})
    return path


FILES = {
    "network-snapshot.pkl": pickled,
    "training-state-000001.pt": stated,
    "a.safetensors": saved,
}


def job(folder: Path, transfer: Transfer, **changes: object) -> Job:
    values = {"augment": 0.0, "batch": BATCH, "tick": BATCH, "duration": BATCH} | changes
    recipe = transfer.recipe(dataclasses.replace(RECIPES["digits"], **values)).shared_by(1)
    return Job(recipe, datasets.load("digits"), folder, CPU, samples=None, transfer=transfer)


@pytest.mark.parametrize("name", FILES)
def test_the_first_loss_is_the_network_s_own_on_the_same_batch(
    published: ModuleType, tmp_path: Path, name: str
) -> None:
    source = network()
    path = FILES[name](published, tmp_path / name, source)
    run = job(tmp_path / "run", Transfer.of(str(path)))
    state = run.run()
    batch = next(run.source.order(BATCH, run.recipe.seed, 0))
    images = from_uint8(datasets.load("digits").images()[batch])
    torch.manual_seed(mixed(run.recipe.seed, NOISE, 0))
    loss = EDM(run.recipe.sigma_mean, run.recipe.sigma_std, 0.7, run.recipe.log_uniform)
    own = denoising_loss(loss, source, images, None).sum() / images.numel()
    assert state.curve == [(BATCH, pytest.approx(float(own), rel=1e-6))]
    for made in (state.network, state.average):  # the first step has a learning rate of 0
        for key, value in made.state_dict().items():
            assert torch.equal(value, source.state_dict()[key]), key


def test_it_learns_from_there_and_says_where_from(published: ModuleType, tmp_path: Path) -> None:
    source = network()
    path = pickled(published, tmp_path / "of mine.pkl", source)
    state = job(tmp_path / "run", Transfer.of(str(path)), duration=20 * BATCH, ramp=0).run()
    images, losses = from_uint8(datasets.load("digits").images()[:500]), []
    for each in (source, state.network.eval()):
        torch.manual_seed(0)
        error = denoising_loss(EDM(-1.2, 1.2, 0.7), each, images, None)
        losses.append(float(error.detach().mean()))
    assert losses[1] < 0.9 * losses[0]
    (last,) = (tmp_path / "run").glob("network-*.safetensors")
    made, told = checkpoint.load(last), checkpoint.provenance(last)
    assert made.config == source.config
    assert (told["transfer"], told["transfer_name"]) == (source.digest, "of mine.pkl")
    kept = json.loads(read_state(tmp_path / "run" / STATE, CPU)["identity"])
    assert kept["transfer"] == source.digest


def test_a_run_continues_from_the_same_network_alone(published: ModuleType, tmp_path: Path) -> None:
    path = pickled(published, tmp_path / "a.pkl", network())
    transfer, folder = Transfer.of(str(path)), tmp_path / "run"
    job(folder, transfer).run()
    again = saved(published, tmp_path / "the-same.safetensors", checkpoint.load(path))
    ended = job(folder, Transfer.of(str(again)), duration=3 * BATCH).run()
    whole = job(tmp_path / "whole", transfer, duration=3 * BATCH).run()
    assert ended.curve == whole.curve
    other = Transfer(tiny.network(0.2, **OPTIONS), "other")
    with pytest.raises(UsageError, match="another training, with other transfer: give what"):
        job(folder, other).run()
    with pytest.raises(UsageError, match="another training, with other transfer"):
        dataclasses.replace(job(folder, transfer), transfer=None).run()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"precondition": "VPPrecond"}, {"preconditioning": "vp", "architecture": "ddpmpp"}),
        (
            {
                "embedding_type": "fourier",
                "channel_mult_noise": 2,
                "encoder_type": "residual",
                "resample_filter": [1, 3, 3, 1],
                "channel_mult": [1, 2],
                "attn_resolutions": [4],
            },
            {"architecture": "ncsnpp", "channel_mult": (1, 2), "attn_resolutions": (4,)},
        ),
        ({"model_type": "DhariwalUNet", "model_channels": 32}, {"architecture": "adm"}),
        ({"label_dim": 10}, {"conditional": True, "model_channels": 8, "sigma_data": 0.7}),
    ],
    ids=["vp", "ncsnpp", "adm", "conditional"],
)
def test_the_recipe_says_what_the_network_has(tmp_path: Path, config: dict, expected: dict) -> None:
    options = OPTIONS | config
    if "VP" in options.get("precondition", ""):
        del options["sigma_data"]
    transfer = Transfer(tiny.network(**options), "a")
    recipe = transfer.recipe(RECIPES["laptop"])
    assert {name: getattr(recipe, name) for name in expected} == expected
    if "model_channels" not in config:  # it would take long
        state = job(tmp_path, transfer).run()
        assert math.isfinite(state.curve[0][1])


def test_a_perceptron_goes_on_too() -> None:
    shipped = Transfer.of(str(checkpoint.shipped("plane-mixture.safetensors")))
    recipe = shipped.recipe(RECIPES["laptop"])
    assert (recipe.architecture, recipe.model_channels, recipe.num_blocks) == ("mlp", 64, 3)


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        ({"augment_dim": 0}, {"augment": 0.1}, "a knows no augmentation: give --augment 0"),
        ({"img_channels": 3}, {}, "digits has images of 1 x 8 x 8, and a makes 3 x 8 x 8"),
        ({"img_resolution": 16}, {}, "digits has images of 1 x 8 x 8, and a makes 1 x 16 x 16"),
        ({"label_dim": 7}, {}, "digits has 10 classes, and a is told one of 7"),
    ],
)
def test_what_does_not_suit_is_one_sentence(
    tmp_path: Path, config: dict, changes: dict, told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        job(tmp_path, Transfer(network(**config), "a"), **changes).run()
    assert not (tmp_path / STATE).exists()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(name: str, *arguments: object) -> int:
        script = builders.module(ROOT / "scripts" / name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return run_command(script.main)

    return run


def test_the_command_takes_what_is_the_network_s_from_it(
    published: ModuleType,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = pickled(published, tmp_path / "a.pkl", network())
    line = ["train.py", "digits", "--recipe", "digits", "--transfer", path, "--device", "cpu"]
    line += ["--threads", 1, "--out", tmp_path / "run", "--batch", BATCH, "--duration", BATCH]
    assert command(*line) == 0
    assert (tmp_path / "run" / f"network-{BATCH:09d}.safetensors").exists()
    assert command(*line, "--model-channels", 16) == 2
    assert "the network of --transfer has its own" in capsys.readouterr().err
    assert command(*line, "--transfer", tmp_path / "none.pkl") == 2
    assert "is not a file" in capsys.readouterr().err


def test_no_file_that_is_read_is_written_over(
    published: ModuleType,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor do a run's pictures join those that it learns from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Job, "run", lambda self: pytest.fail("it began"))
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "1.png").write_bytes(builders.deep_png(0, 1))
    (tmp_path / "link.safetensors").symlink_to("network-1.safetensors")
    path = saved(published, tmp_path / "network-1.safetensors", network())
    (tmp_path / "o.json").write_text("{}")
    content, train = path.read_bytes(), ["train.py", "--recipe", "digits", "--device", "cpu"]
    for line in (
        ["convert_checkpoint.py", path, "./network-1.safetensors"],
        ["convert_checkpoint.py", path, "link.safetensors", "--dtype", "float16"],
        ["convert_checkpoint.py", path, "o.json", "--options", "o.json"],
        [*train, "digits", "--transfer", path, "--out", "pics/.."],
        [*train, "pics", "--out", tmp_path / "pics"],
        [*train, "pics", "--out", "pics/run"],
    ):
        assert command(*line) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("is what is read" in said or "the run writes" in said)
    assert path.read_bytes() == content and (tmp_path / "o.json").read_text() == "{}"


# Training states of EDM


@pytest.mark.parametrize("damage", ["no network", "compressed", "another storage", "cut", "code"])
def test_a_training_state_that_is_none_is_one_sentence(
    published: ModuleType, tmp_path: Path, damage: str
) -> None:
    path = stated(published, tmp_path / "a.pt", network())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in members if name.endswith("data.pkl"))
    if damage == "no network":
        torch.save({"net": {"a": torch.zeros(3)}, "optimizer_state": {}}, path)
    elif damage == "code":
        members[program] = pickle.dumps({"optimizer_state": print}, 2)
    elif damage == "another storage":
        members[program.replace("data.pkl", "data/0")] += b"abcd"
    with zipfile.ZipFile(path, "a" if damage in ("no network", "cut") else "w") as archive:
        for name, content in members.items() if damage not in ("no network", "cut") else ():
            kind = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
            archive.writestr(name, content, kind)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UsageError, match=r"a\.pt gives no network: ") as caught:
        Transfer.of(str(path))
    assert "\n" not in str(caught.value)


def test_a_training_state_is_no_network_to_sample_from(
    published: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="averaged network is in network-snapshot"):
        checkpoint.load(stated(published, tmp_path / "a.pt", network()))


# Bare state dicts


@pytest.mark.parametrize("form", ["torch", "below a name", "tied", "safetensors"])
def test_a_bare_state_dict_is_converted_with_its_options(
    tmp_path: Path, command: Callable[..., int], form: str
) -> None:
    source, path, options = network(), tmp_path / "a.pt", tmp_path / "options.json"
    config = {name: source.config[name] for name in tiny.CONFIG | OPTIONS}
    options.write_text(json.dumps(config))
    state = source.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "tied":
        flat = torch.cat([value.flatten() for value in state.values()])
        parts = flat.split([value.numel() for value in state.values()])
        torch.save(
            {k: p.view(v.shape) for (k, v), p in zip(state.items(), parts, strict=True)}, path
        )
    else:
        torch.save(state if form == "torch" else {"state_dict": state, "epoch": 3}, path)
    assert (
        command(
            "convert_checkpoint.py", path, out := tmp_path / "b.safetensors", "--options", options
        )
        == 0
    )
    assert checkpoint.load(out).digest == source.digest


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no options"),
        ("{}", "unknown precondition None"),
        (json.dumps(tiny.CONFIG | {"img_channels": 2}), "expected"),
        (json.dumps(tiny.CONFIG | {"num_blocks": 2}), "its tensors are not those of its options"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    text: str,
    told: str,
) -> None:
    torch.save(tiny.network().state_dict(), path := tmp_path / "a.pt")
    (tmp_path / "o.json").write_text(text)
    line = ["convert_checkpoint.py", path, tmp_path / "b.safetensors", "--options"]
    assert command(*line, tmp_path / "o.json") == 2
    assert told in capsys.readouterr().err and not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    "value", [[1], {"a": 3}, {3: torch.zeros(2)}, {"a": torch.zeros(2).to_sparse()}]
)
def test_what_is_no_state_dict_is_told(tmp_path: Path, value: object) -> None:
    torch.save(value, path := tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"a\.pt holds no state dict of tensors"):
        checkpoint.load_bare(path, tiny.CONFIG)
