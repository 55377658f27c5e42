"""Installed as users install it: which packages win, what a wheel holds, what mypy sees.

Each environment is new, with the packages of the running one beside it, and no network.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    *("edm", "linear_structure", "experiments", "scripts", "tests"),
    *("pyproject.toml", "requirements.txt", "MANIFEST.in", "README.md", "LICENSE"),
    "process_experiments_with_skips.py",
)
WHERE = (
    "import edm, linear_structure, importlib.metadata as m; "
    "print(edm.__file__, linear_structure.__file__, edm.__version__, m.version('linear-structure'))"
)
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")


def run(*words, cwd, **variables):
    """A command without the clone on its path: what it did."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, words)], cwd=cwd, env=env | variables, capture_output=True, text=True
    )


def pip(python, command, *words, cwd):
    done = run(python, "-m", "pip", command, *OFFLINE, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone that may be built in."""
    folder = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        if (source := ROOT / name).is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--wheel-dir", folder, clone, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where users may stand: nothing there, a clone of NVIDIA's, a package of their own."""
    root = tmp_path_factory.mktemp("folders")
    (root / "empty").mkdir()
    (root / "bare" / "edm").mkdir(parents=True)
    (root / "bare" / "edm" / "generate.py").touch()
    (root / "package" / "experiments").mkdir(parents=True)
    (root / "package" / "experiments" / "__init__.py").touch()
    return sorted(root.iterdir())


def environment(folder):
    """The python of a new environment that has the packages of the running one."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.mark.parametrize("how", ["-e .", "-r requirements.txt", "wheel"])
def test_ours_are_found_from_everywhere(clone, folders, tmp_path, request, how):
    python, home = environment(tmp_path), clone
    if how == "wheel":
        pip(python, "install", request.getfixturevalue("wheel"), cwd=tmp_path)
        home = next(tmp_path.glob("lib/*/site-packages"))
    else:
        pip(python, "install", *how.split(), cwd=clone)
    version = "0.1.0"
    paths = (str(home / package / "__init__.py") for package in ("edm", "linear_structure"))
    expected = " ".join((*paths, version, version))
    assert [run(python, "-c", WHERE, cwd=each).stdout.strip() for each in folders] == [expected] * 3


def test_a_wheel_holds_types_and_weights_and_no_experiments(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    roots = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert roots == {"edm", "linear_structure"}
    assert {"edm/py.typed", "linear_structure/py.typed"} <= names
    weights = [path for path in (ROOT / "edm" / "weights").rglob("*") if path.is_file()]
    assert weights and {str(path.relative_to(ROOT)) for path in weights} <= names


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("process_experiments_with_skips.py", "error: no result in images_with_skips: run"),
        (
            "process_experiments_with_skips.py digits",
            "error: no result in images_with_skips/digits: ",
        ),
        (
            "process_experiments_with_skips.py mine",
            "error: no result in images_with_skips/mine, and no",
        ),
        ("scripts/suggest_skip.py nonsense", "error: unknown preset 'nonsense'"),
    ],
)
def test_commands_of_a_clone_take_its_packages(clone, tmp_path, command, said):
    """With nothing installed, even where a path of the user's names others first."""
    for name in ("edm", "experiments", "linear_structure"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')")
    script, *words = command.split()
    done = run(sys.executable, clone / script, *words, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.stderr.startswith(said) and done.returncode == 2


def test_mypy_sees_the_types(clone, tmp_path):
    """Of an installed package, in a file outside; of torch, whose own take ten seconds, a stub."""
    python = environment(tmp_path / "environment")
    pip(python, "install", "-e", clone, cwd=tmp_path)
    (tmp_path / "torch").mkdir()
    stub = "from typing import Any\nclass Tensor: ...\ndef __getattr__(name: str) -> Any: ...\n"
    (tmp_path / "torch" / "__init__.pyi").write_text(stub)
    others = "torch.*.*,numpy.*,filelock.*,requests.*"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{others}]\nfollow_imports = skip\n")
    (tmp_path / "users.py").write_text(
        "from edm import heun\nfrom linear_structure import Gaussian\n"
        "reveal_type(Gaussian.flow)\nreveal_type(heun)\n"
        "import edm\nedm.nothing\n"
    )
    words = ("--cache-dir", os.devnull, "--python-executable", python, "users.py")
    said = run(sys.executable, "-m", "mypy", *words, cwd=tmp_path).stdout.splitlines()
    level = "torch.Tensor | float"
    position = f"{level} | tuple[{level}, {level}, fallback=linear_structure.denoise.Position]"
    assert (
        f"x: torch.Tensor, start: {position}, stop: {position}) -> torch.Tensor" in said[0]
        and "self: linear_structure.gaussian.EigenGaussian" in said[0]
    )
    assert "denoise: def (torch.Tensor, torch.Tensor) -> torch.Tensor" in said[1]
    assert "Iterator[" in said[1] and "linear_structure.sampling.samplers.Step]" in said[1]
    assert 'Module has no attribute "nothing"' in said[2]
