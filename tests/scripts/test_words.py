"""What every command makes of words that mean nothing: an empty one is never taken for another."""

import argparse
import sys
from pathlib import Path

import builders
import pytest

from linear_structure.system.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    path
    for path in (
        *sorted((ROOT / "scripts").glob("*.py")),
        ROOT / "process_experiments_with_skips.py",
        ROOT / "linear_structure" / "get_parameters.py",
    )
    if path.stem != "start"
]


class Stop(Exception):
    """The command line is known."""


def parser_of(command, monkeypatch):
    """The parser of a command, before it reads a word."""
    found = []

    def stop(parser, *_):
        found.append(parser)
        raise Stop

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Stop):
        builders.module(command).main()
    return found[0]


def actions_of(parser):
    """All that can be typed, of the commands within a command too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions_of(inner)
        elif action.nargs != 0:
            yield action


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.stem)
def test_no_command_takes_an_empty_word(command, monkeypatch):
    """As `--network "$NET"` gives where NET is not set: neither for no word, nor for a folder."""
    actions = list(actions_of(parser_of(command, monkeypatch)))
    assert actions
    for action in actions:
        if not action.choices and action.dest != "name":  # of that, what may stand there is told
            read = action.type or str
            with pytest.raises((argparse.ArgumentTypeError, UsageError, ValueError)):
                read("")
                pytest.fail(f"{command.stem} takes {action.option_strings or action.dest} ''")


@pytest.mark.parametrize(
    "command, words",
    [
        ("train", ("digits", "--out", "run", "--transfer", "")),
        ("plane", ("moons", "--network", "")),
        ("prepare_images", ("", "packed.zip")),
        ("run_experiments_with_skips", ("digits", "--dataset", "")),
        ("classify", ("digits", "--features", "")),
        ("represent", ("encode", "pair", "--images", "")),
    ],
)
def test_an_empty_word_is_one_sentence_that_names_the_option(
    command, words, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, *words])
    with pytest.raises(SystemExit) as misuse:
        builders.module(ROOT / "scripts" / f"{command}.py").main()
    option = next((word for word in words if word.startswith("--") and word != "--out"), "IN")
    said = capsys.readouterr().err
    assert misuse.value.code == 2
    assert f"argument {option}: it is empty, as a variable is that nobody set" in said
    assert not any(tmp_path.iterdir())
