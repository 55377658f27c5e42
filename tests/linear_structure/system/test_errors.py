"""How a command ends: exit code and one sentence."""

import errno
import io
import signal
import sys

import pytest

from linear_structure.system.errors import UsageError, WorkError, run_command, stoppable


def raising(error):
    def main() -> None:
        raise error

    return main


def test_a_command_that_ends_well_says_nothing(capsys):
    assert run_command(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("no such preset"), 2, "error: no such preset\n"),
        (WorkError("the mirror is down"), 1, "error: the mirror is down\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/k.json"),
            1,
            "error: No space left on device (out/k.json)\n",
        ),
        (OSError("connection lost"), 1, "error: connection lost\n"),
        (UsageError("no image\nin \x1b[2Ja\x85é"), 2, "error: no image\\nin \\x1b[2Ja\\x85é\n"),
        (OSError(errno.ENOENT, "No such file", "a\rb"), 1, "error: No such file (a\\rb)\n"),
    ],
)
def test_a_failure_is_an_exit_code_and_one_sentence(capsys, error, code, sentence):
    assert run_command(raising(error)) == code
    assert capsys.readouterr() == ("", sentence)


def test_an_interrupted_command_says_that_it_continues(capsys):
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_and_a_second_one_does_not(capfd, monkeypatch, number):
    done, now = [], [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def main() -> None:
        with stoppable() as stopped:
            for now[0] in (0.0, 0.5, 2.0):  # the second is the first, handed on by a launcher
                signal.raise_signal(number)
                done.append(stopped())

    assert run_command(main) == 128 + number
    assert done == [True, True]
    said, last = capfd.readouterr().err.strip().splitlines()
    assert said.startswith("stopping after this step") and last.startswith("interrupted")


def test_an_error_after_a_signal_is_an_error_and_the_signal_was_said(capfd):
    def main() -> None:
        with stoppable():
            signal.raise_signal(signal.SIGTERM)
            raise WorkError("the disk is full")

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(main) == 1 and signal.getsignal(signal.SIGTERM) is before
    said, last = capfd.readouterr().err.strip().splitlines()
    assert said.startswith("stopping") and last == "error: the disk is full"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["images-\udcff", "\u6a23\u672c"])
def test_a_name_that_the_terminal_cannot_encode_is_escaped(monkeypatch, encoding, name):
    written = {each: io.BytesIO() for each in ("stdout", "stderr")}
    for each, file in written.items():
        monkeypatch.setattr(sys, each, io.TextIOWrapper(file, encoding))

    def main() -> None:
        print(f"everything is in {name}")
        raise UsageError(f"{name} is a folder")

    assert run_command(main) == 2
    sys.stdout.flush()
    escaped = name.encode(encoding, "backslashreplace")
    assert written["stdout"].getvalue() == b"everything is in " + escaped + b"\n"
    sys.stderr.flush()
    assert written["stderr"].getvalue() == b"error: " + escaped + b" is a folder\n"
