"""How a command ends: exit code and one sentence."""

import errno
import io
import sys

import pytest

from linear_structure.system.errors import UsageError, WorkError, run_command


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
    ],
)
def test_a_failure_is_an_exit_code_and_one_sentence(capsys, error, code, sentence):
    assert run_command(raising(error)) == code
    assert capsys.readouterr() == ("", sentence)


def test_an_interrupted_command_says_that_it_continues(capsys):
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert "the same command continues" in capsys.readouterr().err


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
