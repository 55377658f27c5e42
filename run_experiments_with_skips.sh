#!/usr/bin/env bash
# bash run_experiments_with_skips.sh [PRESET] [OPTIONS]: the sweep over skipped steps (--help)
set -euo pipefail
source "$(dirname "$0")/scripts/environment.sh"
exec "$PYTHON" "$clone/scripts/run_experiments_with_skips.py" "$@"
