"""README, the pages of docs and the examples: their code runs as it stands, and prints what it
says; the options of their commands are options; what they link is there."""

import ast
import os
import re
import runpy
import subprocess
import sys
from argparse import ArgumentParser
from contextlib import redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from linear_structure.sampling.table import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS, EXTENDING = ROOT / "README.md", ROOT / "results/README.md", "extending.md"
PAGES = [README, RESULTS, *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "edm/weights").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAID = re.compile(r"^print\(.*\)  # (.*)$", re.M)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
STARTERS = ("bash", "python", "torchrun", "pip", "sbatch", "for")
RECORDING = """command_not_found_handle() { printf '%s\\0' "$@"; printf '\\n'; }
cd() { :; }
source() { :; }
PATH=/nowhere
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def code_of(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip()]


def named(paths: list[Path]) -> dict[str, list]:
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


@pytest.fixture
def apart(tmp_path, monkeypatch, one_thread):
    """What code leaves behind, undone: files, threads, the default type, rows of the table."""
    rows = dict(SAMPLERS)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng([]):
        yield
    torch.set_default_dtype(torch.float32)
    SAMPLERS.clear()
    SAMPLERS.update(rows)


@pytest.mark.parametrize("page", **named([p for p in PAGES if blocks(p, "python")]))
def test_code_prints_what_it_says(page, apart):
    code, printed = "\n".join(blocks(page, "python")), StringIO()
    with redirect_stdout(printed):
        exec(compile(code, page.name, "exec"), {})
    assert printed.getvalue().splitlines() == SAID.findall(code)


def test_pieces_of_ones_own_are_ten_lines_each():
    assert max(len(code_of(block)) for block in blocks(ROOT / "docs" / EXTENDING, "python")) <= 10


@pytest.mark.parametrize("beside", ["nothing", "edm", "experiments"])
def test_the_first_code_of_the_readme_runs_beside_folders_of_these_names(beside, tmp_path):
    """NVIDIA's clone `edm` has no `__init__.py`; many a project has a package `experiments`."""
    if beside != "nothing":
        (tmp_path / beside).mkdir()
    if beside == "experiments":
        (tmp_path / beside / "__init__.py").write_text("raise ImportError('of someone else')\n")
    block = blocks(README, "python")[0]
    (tmp_path / "mine.py").write_text(block)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == SAID.findall(block), done.stderr


def test_the_readme_is_short_and_its_first_code_shorter():
    lines = code_of(blocks(README, "python")[0])
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(imports) == 2 and len(lines) <= 12
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("example", **named(EXAMPLES))
def test_an_example_prints_what_it_says_on_top(example, apart):
    source, printed = example.read_text(encoding="utf-8"), StringIO()
    with redirect_stdout(printed):
        runpy.run_path(str(example))
    said = ast.get_docstring(ast.parse(source)).partition("Prints")[2]
    found = printed.getvalue().strip()
    assert found and len(source.splitlines()) <= 30
    for line in found.splitlines():
        assert " ".join(NUMBER.sub("#", line).split()) in " ".join(NUMBER.sub("#", said).split())
    numbers = [float(number) for number in NUMBER.findall(found)]
    there = [float(number) for number in NUMBER.findall(said)[-len(numbers) :]]
    assert there == pytest.approx(numbers, rel=0.1, abs=2e-4)


def calls(text: str) -> list[list[str]]:
    """What bash would run, each with its arguments as it expands them; nothing is run."""
    shell = subprocess.run(["bash", "-c", RECORDING + text], capture_output=True, text=True)
    assert not shell.stderr, shell.stderr
    return [line.split("\0")[:-1] for line in shell.stdout.splitlines()]


def commands(page: Path) -> list[list[str]]:
    """Of its shell blocks, of indented lines, and of what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    indented = re.findall(r"^    ((?:.*\\\n)*.*)$", outside, re.M)
    quoted = [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", outside)]
    started = [each for each in indented + quoted if each.split(" ")[0] in STARTERS and " " in each]
    return [call for part in blocks(page, "bash") + started for call in calls(part)]


class Parsed(Exception):
    """A command's options are what its parser takes."""


def scripts_of(program: str, *arguments: str) -> list[list[str]]:
    """The Python script that a call comes to, with its options; [] where it has no parser."""
    if program == "torchrun":
        told = get_args_parser().parse_args(arguments)
        return [[told.training_script, *told.training_script_args]]
    if program in ("pip", "sbatch"):
        files = [each for each in arguments if each.endswith((".txt", ".sbatch"))]
        assert files and all((ROOT / each).exists() for each in files)
        return []
    assert program in ("python", "bash"), f"{program} is no command of this project"
    if program == "python":
        return [[*arguments]]
    script, *options = arguments
    body = (ROOT / script).read_text(encoding="utf-8")
    inner = re.findall(r'clone/(\S+\.py)" "\$@"', body)
    assert inner or options in ([], ["--help"]), f"{script} takes no options"
    return [[each, *options] for each in inner]


@pytest.mark.parametrize("page", **named([*PAGES, *CARDS]))
def test_options_of_commands_are_options(page, monkeypatch):
    """Each command reads its options, and does no more."""
    parse, found = ArgumentParser.parse_args, [scripts_of(*call) for call in commands(page)]

    def parse_only(self, *given):
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_only)
    for script, *options in chain(*found):
        monkeypatch.setattr(sys, "argv", [script, *options])
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script))["main"]()


def headings(page: Path) -> set[str]:
    """As links name them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


@pytest.mark.parametrize("page", **named(PAGES))
def test_every_picture_page_and_heading_that_is_linked_is_there(page):
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    for path, heading in ((path, heading) for path, heading in links if "://" not in path):
        target = page.parent / path if path else page
        assert target.exists() and (not heading or heading in headings(target)), (path, heading)
