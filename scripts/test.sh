#!/usr/bin/env bash
# bash scripts/test.sh [PYTEST OPTIONS]: install with the test packages, check style, run all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRA=test
source scripts/install.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest "$@"
