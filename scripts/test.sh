#!/usr/bin/env bash
# bash scripts/test.sh [PYTEST OPTIONS]: install with the test packages, check style, types and
# which way imports go, run all tests, in as many processes as there are cores. It installs into the
# active environment, or makes .venv; the first time this fetches PyTorch, some gigabytes.
set -euo pipefail
source "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
EXTRA=test
source scripts/install.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest --numprocesses auto --dist worksteal "$@"
