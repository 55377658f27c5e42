#!/usr/bin/env bash
# bash scripts/reproduce_figures.sh [PRESET] [OPTIONS]: the paper's figures and findings (--help)
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec "$PYTHON" "$clone/scripts/reproduce_figures.py" "$@"
