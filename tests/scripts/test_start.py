"""How commands start: Ctrl-C while they import, and what they say before they install anything."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("process_experiments_with_skips.py", "scripts/generate.py")
SHELL = ("quickstart", "representations", "score_based", "test")


@pytest.mark.parametrize("moment", ["argparse", "numpy", "torch._C", "torch"])
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_while_it_imports(command, moment, tmp_path):
    """After this module, of which `-X importtime` tells: one sentence at most, nothing is made."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    imported = ""
    while process.poll() is None and imported.split("|")[-1].strip() != moment:
        imported = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and out == ""
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert not said or (len(said) == 1 and said[0].startswith("interrupted: "))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", SHELL)
def test_help_comes_before_an_installation(name, tmp_path):
    """Any word to a python of the environment would leave a file, and fail."""
    for python in ("python", "python3"):
        (tmp_path / python).write_text('#!/bin/sh\ntouch "$0.called"\nexit 1\n')
        (tmp_path / python).chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
    script = os.path.relpath(ROOT / "scripts" / f"{name}.sh", tmp_path)
    done = subprocess.run(
        ["bash", script, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith(f"bash scripts/{name}.sh")
    assert "install" in done.stdout and "set -e" not in done.stdout
    assert not list(tmp_path.glob("*.called"))
