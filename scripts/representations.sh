#!/usr/bin/env bash
# bash scripts/representations.sh [--seeds N]: codes of coloured digits at d = 2 and 8, what heads
# read of them, and pictures. About 10 CPU minutes a seed (5 seeds by default), on one core; it can
# be stopped at any moment, and given again it continues. It installs first, into the active
# environment or .venv.
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

read_codes() {  # numbers in a code, number of all levels together, factor, another for the pictures
    local folders=()
    for ((seed = 0; seed < seeds; seed++)); do folders+=("$out/d$1-s$seed"); done
    "$PYTHON" scripts/represent.py probe "${folders[@]}" --wide "$out/d$2-s0" --tasks "$3" --threads 1
    "$PYTHON" scripts/represent.py analyse "${folders[@]}" --tasks "$3" "$4" --threads 1
}

echo "1/3  $seeds pairs at d = 2, as many at d = 8, and one each with 11 times the numbers; about 1 CPU minute each"
for ((seed = 0; seed < seeds; seed++)); do
    pair 2 "$seed"
    pair 8 "$seed"
done
pair 22 0
pair 88 0
echo "2/3  d = 2: the foreground; about 4 CPU minutes a seed"
read_codes 2 22 foreground background
echo "3/3  d = 8: the digit; about 4 CPU minutes a seed"
read_codes 8 88 digit foreground
cat <<DONE

Done. Tables, verdicts and pictures are in $out/d2 and $out/d8.
DONE
