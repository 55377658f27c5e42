"""The pages of docs: their code runs as it stands, and prints what it says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
CODED = [page for page in PAGES if "```python" in page.read_text()]


@pytest.fixture(autouse=True)
def _the_default_type_stays():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("page", CODED, ids=lambda page: page.name)
def test_code_prints_what_it_says(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    code = "\n".join(blocks)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, page.name, "exec"), {})
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
    assert blocks and printed.getvalue().splitlines() == said


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "results/README.md"])
def test_every_picture_and_page_that_is_named_is_there(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [each for each in links if "://" not in each and not (page.parent / each).exists()]
    assert not missing
