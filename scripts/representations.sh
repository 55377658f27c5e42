#!/usr/bin/env bash
# bash scripts/representations.sh [--seeds N]: codes of coloured digits at d = 1, 2 and 8, what heads
# read of them, and pictures. At most 10 CPU minutes a seed (5 seeds by default), on one core; it can
# be stopped at any moment, and given again it continues. It installs first,
# into the active environment or .venv.
set -euo pipefail
source "$(dirname "$0")/help.sh"
seeds=5
if [ "${1:-}" = --seeds ] && [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] && [ $# -eq 2 ]; then
    seeds=$2
elif [ $# -gt 0 ]; then
    echo "error: expected nothing, or --seeds and a number of 1 or more" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
source scripts/install.sh
out=representations

pair() {  # numbers in a code, seed
    local folder=$out/d$1-s$2
    "$PYTHON" scripts/represent.py train coloured-digits --dim "$1" --seed "$2" --out "$folder" --threads 1
    "$PYTHON" scripts/represent.py encode "$folder" --threads 1
}

of_seeds() {  # numbers in a code
    for ((seed = 0; seed < seeds; seed++)); do echo "$out/d$1-s$seed"; done
}

probe() {  # numbers in a code, number of all levels together, factor, rows: all, if none is named
    local dim=$1 wide=$2 task=$3
    shift 3
    "$PYTHON" scripts/represent.py probe $(of_seeds "$dim") --wide "$out/d$wide-s0" --tasks "$task" --threads 1 "$@"
}

analyse() {  # numbers in a code, factors
    local dim=$1
    shift
    "$PYTHON" scripts/represent.py analyse $(of_seeds "$dim") --tasks "$@" --threads 1
}

echo "1/4  $seeds pairs at d = 1, 2 and 8, and one each with 11 times the numbers; about 1 CPU minute each"
for dim in 1 2 8; do
    for ((seed = 0; seed < seeds; seed++)); do pair "$dim" "$seed"; done
    pair $((11 * dim)) 0
done
echo "2/4  d = 1: the foreground"
probe 1 11 foreground --heads "one level" concatenated "concatenated, one level repeated" \
    "neighbours, one level" "neighbours, all levels" "principal components, d" "principal components, K d"
echo "3/4  d = 2: the foreground"
probe 2 22 foreground
analyse 2 foreground background
echo "4/4  d = 8: the digit"
probe 8 88 digit
analyse 8 digit foreground
cat <<DONE

Done. Tables, verdicts and pictures are in $out/d1, $out/d2 and $out/d8.
DONE
