"""Pairs and codes on disk: training that continues, codes that say what they are of."""

import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import tiny
import torch

from edm.checkpoints import checkpoint
from edm.training.runs import STATE
from edm.training.state import read_state
from experiments import representation
from experiments.representation import CODES, PAIR, Codes, load_codes, load_pair
from linear_structure.system import errors

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"dim": 2, "model-channels": 16, "encoder-channels": 8}
PACE = {"batch": 32, "snapshot": 128, "tick": 64}
TINY = [word for name, value in {**SIZE, **PACE}.items() for word in (f"--{name}", str(value))]
PLACE = ["--device", "cpu", "--threads", "1"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script() -> Any:
    return builders.module(ROOT / "scripts" / "represent.py")


@pytest.fixture
def run(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`represent.py` with some words: its exit code, and what it says in the end."""

    def command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["represent.py", *map(str, words)])
        code = errors.run_command(script.main)
        said = capsys.readouterr()
        return code, said.err.splitlines()[-1] if code else said.out

    return command


def train(run: Any, folder: Path, *words: object) -> str:
    code, said = run("train", "coloured-digits", *TINY, *PLACE, "--out", folder, *words)
    assert code == 0, said
    return said


def encode(run: Any, folder: Path, *words: object) -> Codes:
    code, said = run("encode", folder, *PLACE, *words)
    assert code == 0, said
    return Codes.read(folder / CODES)


@pytest.fixture(scope="module")
def folder(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of 12 steps with its codes at three levels; its tests leave it as it is."""
    folder = tmp_path_factory.mktemp("pair")
    torch.set_num_threads(1)
    steps = ["train", "coloured-digits", *TINY, "--steps", "12", "--out", str(folder)]
    for words in (steps, ["encode", str(folder), "--levels", "3"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["represent.py", *words, *PLACE])
            script.main()
    return folder


def test_codes_are_those_of_the_averaged_encoder(folder: Path) -> None:
    codes = load_codes(folder)
    assert codes.z.shape == (4794, 3, 2)
    assert codes.z.dtype == torch.float32
    torch.testing.assert_close(codes.sigmas, torch.tensor([0.02, 0.4**0.5, 20.0]).double())
    assert set(codes.labels) == {"digit", "foreground", "background"}
    assert codes.part.bincount().tolist() == [3000, 600, 1194]
    factors = representation.load_material("coloured-digits", torch.device("cpu")).factors
    assert torch.equal(codes.source, factors.source)
    pair = load_pair(folder)
    clean = factors.images[:500] / 127.5 - 1
    expected = pair.code(clean, codes.sigmas[1].float())
    torch.testing.assert_close(codes.z[:500, 1], expected, rtol=1e-4, atol=1e-5)
    state = read_state(folder / STATE, torch.device("cpu"))
    assert torch.equal(state["average"]["encoder.head.weight"], pair.encoder.head.weight)
    assert not torch.equal(state["network"]["encoder.head.weight"], pair.encoder.head.weight)
    assert codes.inputs["weights"] == "averaged"


def test_any_tool_reads_the_codes(folder: Path) -> None:
    with np.load(folder / CODES, allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            "z", "sigmas", "source", "part", "inputs",
            "label_digit", "label_foreground", "label_background",
        }  # fmt: skip
        assert arrays["z"].dtype == np.float32


def test_stop_and_resume_give_equal_codes(run: Any, folder: Path, tmp_path: Path) -> None:
    said = train(run, tmp_path, "--steps", 7)
    assert "7 images" not in said
    code, sentence = run("encode", tmp_path, *PLACE)
    assert code == 0, sentence
    train(run, tmp_path, "--steps", 12)
    codes = encode(run, tmp_path, "--levels", 3)
    expected = Codes.read(folder / CODES)
    assert torch.equal(codes.z, expected.z)
    assert codes.inputs == expected.inputs
    assert codes.digest == expected.digest


def test_unfinished_training_is_not_encoded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = representation.Job._write

    def stop(job: Any, state: Any) -> None:
        write(job, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(representation.Job, "_write", stop)
    assert (
        run("train", "coloured-digits", *TINY, *PLACE, "--steps", 12, "--out", tmp_path)[0] == 130
    )
    code, sentence = run("encode", tmp_path, *PLACE)
    assert code == 2
    assert "has seen 128 of 384 images" in sentence


def test_encoding_that_is_stopped_goes_on(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PAIR).write_bytes((folder / PAIR).read_bytes())
    trajectory, calls = representation.trajectory, []

    def stopping(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return trajectory(*given)

    monkeypatch.setattr(representation, "trajectory", stopping)
    assert run("encode", tmp_path, *PLACE, "--levels", 3)[0] == 130
    assert not (tmp_path / CODES).exists()
    codes = encode(run, tmp_path, "--levels", 3)
    assert len(calls) == 4 + 7
    assert torch.equal(codes.z, Codes.read(folder / CODES).z)
    assert {path.name for path in tmp_path.iterdir()} == {PAIR, CODES}
    encode(run, tmp_path, "--levels", 3)
    assert len(calls) == 11


def test_untrained_codes_are_those_of_the_first_step(run: Any, tmp_path: Path) -> None:
    """The learning rate of the first step is 0."""
    train(run, tmp_path, "--steps", 1)
    encode(run, tmp_path, "--levels", 2)
    encode(run, tmp_path, "--levels", 2, "--untrained")
    trained, untrained = (Codes.read(tmp_path / f"codes{w}.npz") for w in ("", "-untrained"))
    torch.testing.assert_close(trained.z, untrained.z)
    assert untrained.inputs["weights"] == "initial"


def test_own_images_are_encoded_beside(run: Any, folder: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "mine.npy", images)
    out = tmp_path / "codes-of-mine.npz"
    words = ["--images", tmp_path / "mine.npy", "--sigmas", 5, 0.5, "--out", out]
    assert run("encode", folder, *PLACE, *words)[0] == 0
    codes = Codes.read(out)
    assert codes.z.shape == (4, 2, 2)
    assert codes.sigmas.tolist() == [5, 0.5]
    assert codes.labels == {}
    clean = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    expected = load_pair(folder).code(clean, torch.tensor(0.5))
    torch.testing.assert_close(codes.z[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_training_says_what_the_code_is_worth(run: Any, folder: Path, tmp_path: Path) -> None:
    words = ["--steps", 60, "--learning-rate", 0.01, "--ema-halflife", 64, "--snapshot", 10**6]
    said = train(run, tmp_path, *words)
    assert "with the code" in said
    assert "at z = 0 (never learnt)" in said
    low, high = said.rsplit("[", 1)[1].rstrip("]\n").split(", ")
    assert float(low) < float(high) < 0


@pytest.mark.parametrize("kind", ["drl", "vdrl"])
def test_images_of_32_pixels_are_learnt_by_a_unet(run: Any, tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", images=images, labels=np.arange(40) % 10)
    small = ["--model-channels", 4, "--encoder-channels", 4, "--num-blocks", 1]
    small += ["--encoder-blocks", 1, "--channel-mult", 1, 1, "--attn-resolutions"]
    small += ["--batch", 4, "--piece", 2, "--steps", 2]
    out = tmp_path / "pair"
    words = ["--dim", 128, "--kind", kind, "--out", out, *small, *PLACE]
    code, said = run("train", tmp_path / "small.npz", *words)
    assert code == 0, said
    codes = encode(run, out, "--levels", 2)
    assert codes.z.shape == (40, 2, 128)
    assert codes.labels["class"].tolist() == [number % 10 for number in range(40)]
    assert codes.part.bincount().tolist() == [32, 4, 4]
    assert load_pair(out).encoder.config["model_type"] == "SongUNet"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "coloured-letters", "--out", "x"], "coloured-digits, coloured-mnist"),
        (["train", "coloured-digits", "--dim", 0, "--out", "x"], "'dim' is 0"),
        (
            ["train", "coloured-digits", "--kind", "vdrl", "--seed", -1, "--out", "x"],
            "'seed' is -1",
        ),
        (["train", "digits", "--grey", "digits", "--out", "x"], "--grey is for coloured-digits"),
        (["encode", "nowhere"], "nowhere holds no pair.safetensors"),
        (["encode", "PAIR", "--levels", 0], "0 noise levels: expected 1 or more"),
        (["encode", "PAIR", "--levels", 10**8], "expected 1 or more, and 1000 at most"),
        (["encode", "PAIR", "--sigmas", 1, 3, 2], "noise levels 1 3 2: expected"),
        (["encode", "PAIR", "--sigmas", 1, 300], "was trained on 0.02 to 20"),
        (["encode", "PAIR", "--images", "digits"], "has images of 1 x 8 x 8 (channels x height x"),
        (["encode", "PAIR", "--images", "nothing.npz"], "neither a known dataset"),
        (
            ["encode", "PAIR", "--images", "x.npz", "--grey", "y"],
            "--grey would change nothing: the",
        ),
    ],
)
def test_misuse_is_one_sentence(run: Any, folder: Path, words: list[Any], said: str) -> None:
    code, sentence = run(*(folder if word == "PAIR" else word for word in words), *PLACE)
    assert code == 2
    assert sentence.startswith("error: ")
    assert said in sentence


def test_foreign_files_are_refused(run: Any, folder: Path, tmp_path: Path) -> None:
    checkpoint.save(tiny.network(), tmp_path / PAIR, {})
    assert "not a pair" in run("encode", tmp_path, *PLACE)[1]
    (tmp_path / PAIR).write_bytes((folder / PAIR).read_bytes())
    np.savez(tmp_path / CODES, z=np.zeros((3, 2, 1)))
    code, sentence = run("encode", tmp_path, *PLACE)
    assert code == 2
    assert "holds no codes" in sentence
    words = ["--out", folder, *TINY, *PLACE, "--steps", 12]
    code, sentence = run("train", "coloured-digits", *words, "--seed", 1)
    assert code == 2
    assert "belongs to another training, with other seed" in sentence


def test_codes_of_another_encoder_are_refused(run: Any, folder: Path, tmp_path: Path) -> None:
    train(run, tmp_path, "--steps", 1, "--seed", 1)
    (tmp_path / CODES).write_bytes((folder / CODES).read_bytes())
    with pytest.raises(errors.UsageError, match="another encoder"):
        load_codes(tmp_path)


def test_other_data_than_in_training_are_refused(run: Any, folder: Path, tmp_path: Path) -> None:
    pixels = np.zeros((1797, 8, 8), np.uint8)
    np.savez(tmp_path / "grey.npz", images=pixels, labels=np.arange(1797) % 10)
    out = ["--out", tmp_path / CODES]
    code, sentence = run("encode", folder, *PLACE, "--grey", tmp_path / "grey.npz", *out)
    assert code == 2
    assert "not the images that the pair was trained on" in sentence
