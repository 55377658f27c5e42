"""The classifier's training: it learns, stops and continues to the bit, and refuses mistakes."""

import dataclasses
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import builders
import numpy as np
import pytest
import torch

from edm.evaluation.classifier import Classifier, accuracy
from edm.training.features import RECIPES, Training, held_out
from linear_structure.data import datasets
from linear_structure.system.errors import UsageError, run_command

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
SHORT = dataclasses.replace(RECIPES["digits"], widths=(8, 16), epochs=4)


pytestmark = pytest.mark.usefixtures("one_thread")


def training(folder: Path, **changes: object) -> Training:
    digits = datasets.load("digits")
    recipe = dataclasses.replace(SHORT, **changes)
    known, _ = held_out(digits.count, recipe.held_out, recipe.seed)
    unfinished = folder / "unfinished.pt"
    return Training(recipe, digits.images()[known], digits.labels()[known], CPU, unfinished)


def test_training_learns_and_a_stopped_one_continues_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(tmp_path / "whole").run()
    part = training(tmp_path / "part")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_epoch", stopping(Training._epoch, 2))
        with pytest.raises(KeyboardInterrupt):
            part.run()
    continued = part.run().state_dict()
    assert all(torch.equal(value, continued[name]) for name, value in whole.state_dict().items())
    digits = datasets.load("digits")
    _, rest = held_out(digits.count, SHORT.held_out, SHORT.seed)
    assert accuracy(whole, digits.images()[rest], digits.labels()[rest]) > 0.8
    with pytest.raises(UsageError, match="another training"):
        training(tmp_path / "part", seed=1).run()
    with pytest.raises(UsageError, match="another training"):
        dataclasses.replace(part, labels=part.labels.flip(0)).run()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_an_epoch_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = training(tmp_path / "whole", epochs=2).run().state_dict()
    part, steps, logits = training(tmp_path / "part", epochs=2), [], Classifier.logits

    def interrupted(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) in (3, 30):  # of 44
            signal.raise_signal(number)
        return logits(self, images)

    monkeypatch.setattr(Classifier, "logits", interrupted)
    for _ in range(2):
        assert run_command(part.run) == 128 + number
    assert all(torch.equal(value, whole[name]) for name, value in part.run().state_dict().items())
    assert len(steps) == 44


def test_trainings_of_one_place_take_turns(
    tmp_path: Path, states_meet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without turns both would have read that nothing is there, and both would train."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(training(tmp_path, epochs=1, seed=n).run) for n in range(2)]
        (refused,) = [each for each in (run.exception() for run in runs) if each]
    assert isinstance(refused, UsageError) and "another training, with other" in str(refused)
    assert "waiting for another process that keeps its training in" in capsys.readouterr().err


def test_a_state_of_the_earlier_form_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """It held the schedule, no number of images, and a digest in place of the values."""
    digest = "1e5" + 61 * "0"
    saved = {"network": {}, "optimizer": {}, "cycle": {}, "epochs": 2, "identity": digest}
    torch.save(saved, tmp_path / "unfinished.pt")
    with pytest.raises(UsageError, match=r"unfinished\.pt is a state of another form: write else"):
        training(tmp_path).run()


def stopping(epoch, number: int):
    """An epoch that is interrupted when its number comes."""

    def run(self: Training, learner: object, current: int) -> float:
        if current == number:
            raise KeyboardInterrupt
        return epoch(self, learner, current)

    return run


@pytest.fixture
def script() -> ModuleType:
    return builders.module(ROOT / "scripts" / "train_features.py")


@pytest.mark.parametrize(
    "words, complaint",
    [
        (("--device", "abacus"), "--device abacus: there is no such device here"),
        (("--threads", "0"), "--threads 0: expected 1 to 1024"),
        (("--epochs", "0"), "'epochs' is 0: expected 1"),
        (("--seed", "-1"), "'seed' is -1: expected 0"),
        (("--seed", str(2**64)), "'seed' is 18446744073709551616: expected 0"),
        (("--out", "."), ". is a folder: expected the name of a file to write"),
        (
            ("--test", "large.npz", "--out", "./large.npz"),
            "large.npz is what is read, or a part of",
        ),
        (("--test", "colour.npz"), "colour has images of 3 x 8 x 8, and digits, which is learned"),
        (("--test", "large.npz"), "of 1 x 9 x 9"),
        (("--test", "unlabelled.npz"), "unlabelled has no labels"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(
    script: ModuleType,
    words: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.zeros(2, int)
    np.savez("colour.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=labels)
    np.savez("large.npz", images=np.zeros((2, 9, 9), np.uint8), labels=labels)
    np.savez("unlabelled.npz", images=np.zeros((2, 8, 8), np.uint8))
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("it began"))
    line = ["train_features.py", "digits", "--recipe", "digits", "--out", "f.safetensors"]
    monkeypatch.setattr(sys, "argv", [*line, *words])
    assert run_command(script.main) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_held_out_images_are_the_rest() -> None:
    known, rest = held_out(1797, 0.2, 0)
    assert len(rest) == 359
    assert torch.cat([known, rest]).sort().values.tolist() == list(range(1797))
