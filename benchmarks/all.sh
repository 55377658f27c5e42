#!/usr/bin/env bash
# bash benchmarks/all.sh FILE.json [OPTIONS]: every benchmark, and its numbers in one file
# --device cpu or cuda (default: a GPU, if any); --quick for a rehearsal. ONLY="forward fid": these.
# Numbers are in the file as soon as they are known. Where one benchmark fails, the others follow.
set -euo pipefail
source "$(dirname "$0")/../scripts/help.sh"
source "$(dirname "$0")/../scripts/environment.sh"
json=${1:--}
devices=(peaks forward training analytic spectral fid)
cpu=(moments load)
failed=()
case $json in
    -*) echo "expected a file for the numbers first, such as benchmarks.json" >&2; exit 2 ;;
esac
shift
for name in ${ONLY:-}; do
    [[ " ${devices[*]} ${cpu[*]} " == *" $name "* ]] || {
        echo "ONLY: no benchmark is called $name: expected some of ${devices[*]} ${cpu[*]}" >&2
        exit 2
    }
done
export PYTHONPATH=$clone${PYTHONPATH:+:$PYTHONPATH}
for name in ${ONLY:-"${devices[@]}" "${cpu[@]}"}; do
    options=("$@")
    [[ " ${cpu[*]} " != *" $name "* ]] || options+=(--device cpu)
    "$PYTHON" "$clone/benchmarks/$name.py" --json "$json" "${options[@]}" || failed+=("$name")
done
[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
