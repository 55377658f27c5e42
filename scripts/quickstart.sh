#!/usr/bin/env bash
# bash scripts/quickstart.sh: install, then the whole experiment on embedded digits, on the CPU.
# It installs into the active environment, or makes .venv; the first time this fetches PyTorch, some
# gigabytes. Then two to three minutes; it can be stopped, and given again it continues.
set -euo pipefail
source "$(dirname "$0")/help.sh"
cd "$(dirname "$0")/.."
echo "0/4  installing; the first time this fetches PyTorch, some gigabytes"
source scripts/install.sh

echo "1/4  the Gaussian of the data: mean and covariance of 1,797 digits"
"$PYTHON" linear_structure/get_parameters.py digits gaussian gaussian_params_digits
echo "2/4  1,000 images for each number of skipped steps, and their distance: 2 minutes or so"
bash run_experiments_with_skips.sh digits
echo "3/4  table and graph"
"$PYTHON" process_experiments_with_skips.py digits
echo "4/4  analytic scores against the network's"
bash run_plot_scores.sh digits
cat <<DONE

Done. Look at:
  experiments_with_skip_results.txt   distance against skipped steps (everything: .csv)
  experiments_with_skip_graph.png     the same as a picture
  scores/scores.png                   how close the analytic scores are to the network's
results/digits has distances of three such ranges, and the same scores, to compare with.
DONE
[ "$PYTHON" != "$clone/.venv/bin/python" ] || echo "For python commands: source .venv/bin/activate"
