#!/usr/bin/env bash
# bash run_plot_scores.sh [PRESET] [OPTIONS]: analytic scores against the network's (--help)
set -euo pipefail
source "$(dirname "$0")/scripts/environment.sh"
exec "$PYTHON" "$clone/scripts/plot_scores.py" "$@"
