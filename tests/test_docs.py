"""README, the pages of docs and the examples: their code runs as it stands, and prints what it
says; the options of their commands are options; what they link is there."""

import ast
import csv
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

from experiments import presets
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


def skip_without(code: str) -> None:
    """Skip what is of the extra `diffusers` where that is not installed."""
    if re.search(r"^(from|import) diffusers\b", code, re.M):
        pytest.importorskip("diffusers")
        pytest.importorskip("transformers")


def code_of(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.strip()]


def named(paths: list[Path]) -> dict[str, list]:
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


@pytest.fixture
def apart(tmp_path, monkeypatch, one_thread):
    """What code leaves behind, undone: files, threads, the default type, rows of the table."""
    rows = dict(SAMPLERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [""])
    with torch.random.fork_rng([]):
        yield
    torch.set_default_dtype(torch.float32)
    SAMPLERS.clear()
    SAMPLERS.update(rows)


@pytest.mark.parametrize("page", **named([p for p in PAGES if blocks(p, "python")]))
def test_code_prints_what_it_says(page, apart):
    code, printed = "\n".join(blocks(page, "python")), StringIO()
    skip_without(code)
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
    skip_without(source)
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


def test_the_example_of_a_pipeline_takes_a_folder_of_one(apart, tmp_path, monkeypatch):
    """Of another size: only its own scheduler and network fit each other."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    size = {"block_out_channels": (8,), "norm_num_groups": 4, "cross_attention_dim": 6}
    unet, nothing = diffusers.UNet2DConditionModel(4, **blocks, **size), [None] * 3
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample", steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(*nothing, unet, scheduler, *nothing, False)
    pipe.save_pretrained(tmp_path / "mine")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "mine")])
    with redirect_stdout(StringIO()) as printed:
        found = runpy.run_path(str(ROOT / "examples/diffusers_pipeline.py"))["pipe"]
    assert re.fullmatch(r"skip \d+ of 20, \d\.\d{3}\n", printed.getvalue())
    assert type(found.scheduler) is diffusers.EulerDiscreteScheduler
    assert torch.equal(found.unet.conv_in.weight, unet.conv_in.weight)


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
    steps = re.findall(r"^(\w+)\(\) \{$", body, re.M)
    assert inner or set(options) <= {"--help", *steps}, f"{script} takes no options"
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


def test_the_steps_of_a_card_fit_into_its_half_hour():
    """With two minutes to spare; a training is ended by a clock, before its minutes are over."""
    page, script = ROOT / "docs" / "gpu.md", ROOT / "benchmarks" / "card.sh"
    _, rows = row_table(page, "## Steps", "step")
    assert sum(int(minutes) for _, minutes, _ in rows) == 28
    (minutes,) = {int(minutes) for step, minutes, _ in rows if step == "`train`"}
    (limit,) = re.findall(r"LIMIT:=(\d+)", script.read_text(encoding="utf-8"))
    said = re.findall(r"LIMIT(?:=|` seconds \()(\d+)", page.read_text(encoding="utf-8"))
    assert said == [limit] * 2 and int(limit) < 60 * minutes


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


def row_table(page: Path, start: str, top: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the first table below the line `start` whose head begins with `top`."""
    below = page.read_text(encoding="utf-8").split(f"\n{start}\n", 1)[1]
    lines = below[below.index(f"| {top}") :].split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return head, rows


@pytest.mark.parametrize("page", **named(PAGES))
def test_every_row_of_a_table_has_the_cells_of_its_head(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [line.count("|") - line.count("\\|") if line.startswith("|") else 0 for line in lines]
    wrong = [
        lines[i] for i in range(1, len(rows)) if rows[i - 1] and rows[i] not in (0, rows[i - 1])
    ]
    assert not wrong


def read_csv(path: str) -> list[dict[str, str]]:
    with (ROOT / "results" / path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def agrees(cell: str, *values: float) -> bool:
    """Whether the numbers of a cell are these, to the digits that it shows."""
    told = NUMBER.findall(cell)
    places = [len(number.partition(".")[2]) for number in told]
    return len(told) == len(values) and all(
        abs(float(number) - value) <= 0.5001 * 10**-place
        for number, value, place in zip(told, values, places, strict=True)
    )


def of_files(preset: str) -> dict[int, dict[str, float]]:
    """By skipped steps, what the two files of a sweep say, the ranges by their seeds."""
    columns = ROOT / "results" / preset / "experiments_with_skip_results.txt"
    head, *lines = (line.split() for line in columns.read_text(encoding="utf-8").splitlines())
    found = {int(line[0]): dict(zip(head, map(float, line), strict=True)) for line in lines}
    each = read_csv(f"{preset}/experiments_with_skip_results.csv")
    full = max(float(row["nfe"]) for row in each)
    for row in (row for row in each if int(row["n_skip"]) in found):
        nfe, seeds = float(row["nfe"]), f"{row['first_seed']}-{row['last_seed']}"
        said = {"sigma": float(row["sigma_skip"]), "NFE": nfe, "saved": 100 * (1 - nfe / full)}
        found[int(row["n_skip"])] |= {**said, seeds: float(row["distance"])}
    return found


def changes_of(row: dict[str, float]) -> tuple[float, ...]:
    """Change and ends of its interval; none of skip 0."""
    return (row["change"], row["low"], row["high"]) if row["n_skip"] else ()


def test_a_page_cannot_contradict_the_result_files():
    """Each number of the skip tables, to the digits printed; every skip that was measured."""
    measured = {preset: of_files(preset) for preset in ("digits", "fashion", "cifar10-small")}
    for preset, rows in measured.items():
        head, table = row_table(RESULTS, f"## `{preset}`", "skipped steps")
        assert [int(cells[0]) for cells in table] == [*rows]
        assert len(head) == 11
        for cells, row in zip(table, rows.values(), strict=True):
            plain = [row["sigma"], row["NFE"], row["saved"], row["pooled"], row["unbiased"]]
            pairs = [*zip(cells[1:6], plain, strict=True)]
            pairs += zip(cells[8:], (row[seeds] for seeds in head[8:]), strict=True)
            assert all(agrees(cell, value) for cell, value in pairs), cells
            assert agrees(" ".join(cells[6:8]), *changes_of(row)), cells
    published = presets.find("cifar10").published
    (_, *skips), ((_, *fids),) = row_table(RESULTS, "## CIFAR-10, published", "skipped steps")
    assert dict(zip(map(int, skips), map(float, fids), strict=True)) == published
    for skip, sigma, nfe, saved, *cells, fid in row_table(README, "## Results", "skipped")[1]:
        row = measured["digits"][int(skip)]
        assert agrees(sigma, row["sigma"]) and agrees(nfe, row["NFE"])
        assert agrees(saved, *[row["saved"]] * (skip != "0"))
        assert agrees(fid, *[published[k] for k in published if k == int(skip)])
        for cell, rows in zip(cells, measured.values(), strict=True):
            own = rows.get(int(skip))
            told = () if own is None else changes_of(own) or (own["pooled"],)
            assert agrees(cell, *told), (skip, cell)


def curves(network: str, *names: str) -> list[tuple[str, str]]:
    return [(network, name) for name in names]


GAUSSIAN = "Heun, Gaussian"
COMPARED = {
    "### Other models in the Gaussian's place": curves(
        "digits-denoiser", "Heun, isotropic", GAUSSIAN, "Heun, mixture of 10"
    ),
    "### Other solvers": curves(
        "digits-denoiser", GAUSSIAN, "DPM-Solver++(2M), Gaussian", "UniPC-2, Gaussian"
    ),
    "### By class": curves("digits-conditional", GAUSSIAN, "Heun, Gaussian of each class"),
    "A mixture in the Gaussian's place keeps these images longer as well. "
    "FD-fashion and its change, 500 images:": curves(
        "fashion-denoiser", "Heun, isotropic", GAUSSIAN, "Heun, mixture of 10"
    ),
}


@pytest.mark.parametrize(("start", "columns"), COMPARED.items())
def test_tables_of_changes_are_those_of_their_file(start, columns):
    """Columns are a distance, its change, and half the width of its interval."""
    found = {}
    for row in [*read_csv("digits/changes.csv"), *read_csv("fashion/changes.csv")]:
        values = [float(row[name]) for name in ("distance", "change", "low", "high") if row[name]]
        told = [*values[:2], (values[3] - values[2]) / 2] if len(values) == 4 else values
        if row["images"] != "3000":
            found[row["network"], row["sampler_and_teleport"], row["skipped_steps"]] = told
    for skip, *cells in row_table(RESULTS, start, "skipped steps")[1]:
        for column, cell in zip(columns, cells, strict=True):
            assert agrees(cell.replace("±", ""), *found[(*column, skip)]), (skip, cell)


def test_the_authors_table_and_ours_are_those_of_their_file():
    """Columns are noise levels; ours has half of its interval beside it."""
    found = {
        (row["model"], float(row["sigma"])): row for row in read_csv("cifar10-small/published.csv")
    }
    (_, *sigmas), rows = row_table(RESULTS, "## The paper's claims", "model, network")
    assert {name.partition(", ")[0] for name, *_ in rows} <= {model for model, _ in found}
    for name, *cells in rows:
        model, whose = name.rsplit(", ", 1)
        columns = ("published",) if whose == "published" else ("ours", "half_interval")
        for sigma, cell in zip(sigmas, cells, strict=True):
            values = [float(found[model, float(sigma)][column]) for column in columns]
            assert agrees(cell.replace("±", ""), *values), (name, sigma)


def test_which_score_is_nearer_is_what_the_scores_say():
    """Pairs of median errors, of the Gaussian and of the point cloud, at a level of the grid."""
    head, rows = row_table(RESULTS, "## The paper's claims", "claim of the paper")
    (cells,) = (row for row in rows if row[0].startswith("below, the network is nearer"))
    for preset, nearer_below in (("digits", 0.3), ("fashion", 1.1), ("cifar10-small", 80)):
        column = f"`{preset}`"
        errors = {
            (row["model"], float(row["sigma"])): float(row["median"])
            for row in read_csv(f"{preset}/scores.csv")
        }
        levels = [sigma for model, sigma in errors if model == "Gaussian"]
        told = re.findall(r"([\d.]+, [\d.]+) at ([\d.]+)", cells[head.index(column)])
        assert len(told) == 4
        for pair, level in told:
            sigma = min(levels, key=lambda each: abs(each - float(level)))
            assert agrees(level, sigma)
            assert agrees(pair, errors["Gaussian", sigma], errors["point cloud", sigma]), pair
            below = errors["Gaussian", sigma] < errors["point cloud", sigma]
            assert below == (sigma < nearer_below)
