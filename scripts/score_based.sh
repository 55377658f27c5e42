#!/usr/bin/env bash
# bash scripts/score_based.sh: pictures and numbers of score-based sampling, for the plane and digits.
# It installs first, into the active environment or .venv; docs/score_based.md walks through it.
set -euo pipefail
source "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
source scripts/install.sh

echo "1/5  the plane: densities, scores, and what each sampler makes of them"
"$PYTHON" scripts/plane.py mixture
echo "2/5  noise scales of digits"
"$PYTHON" scripts/noise_scales.py digits
echo "3/5  loss against noise level"
"$PYTHON" scripts/losses.py digits
echo "4/5  bits per dimension"
"$PYTHON" scripts/likelihood.py digits --count 32 --probes 1
echo "5/5  annealed Langevin dynamics and other chains, whole and teleported; one range of 500 images"
"$PYTHON" scripts/annealed.py digits --steps 18 --sigma-max 9.63 --sigma-min 0.05 --skips 0,4
"$PYTHON" scripts/teleported_chains.py digits --seeds 0-499
cat <<DONE

Done. Everything is in score_based/; docs/score_based.md walks through it, and results/ has the
pictures of more images to compare with.
DONE
