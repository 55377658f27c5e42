#!/usr/bin/env bash
# bash benchmarks/card.sh STEP: one card, half an hour, a step at a time
#   look      the device and its rates, the tests that want one
#   keep      copy pieces of a zip of images from the folder DATA
#   join      make the zip of them all, and decode it once
#   train     by the recipe `gpu`, for LIMIT seconds; once more continues
#   sweep     distance against skipped steps by that network, for SEEDS
#   features  hand out what the sweep measured on, the parts that match PARTS
#   measure   every benchmark
#   rehearse  all of this at tiny size, on a CPU, too
# WORK keeps what later steps need. Results go to OUT: copy them from the machine before it is given
# back. Files larger than PIECE are cut into FILE.00, FILE.01, ...; `cat FILE.[0-9]* >FILE` joins them.
set -euo pipefail
source "$(dirname "$0")/../scripts/help.sh"
source "$(dirname "$0")/../scripts/environment.sh"
: "${WORK:=$HOME/one-card}" "${DATA:=pieces}" "${LIMIT:=400}" "${SNAPSHOT:=500000}" "${PIECE:=15M}"
: "${OUT:=$WORK/out}" "${SEEDS:=0-4999 5000-9999 10000-14999}" "${BLOCK:=500}" "${DTYPE:=bfloat16}"
: "${PARTS:=*}" "${TRAIN:=}" "${SKIPS:=0,1,2,3,4,5,6,7,8,10,12}" "${QUICK:=}"
mkdir -p "$WORK" "$OUT"
export PYTHONPATH=$clone${PYTHONPATH:+:$PYTHONPATH}

look() {
    nvidia-smi || echo "no driver of NVIDIA: this is a CPU"
    ONLY=peaks bash "$clone/benchmarks/all.sh" "$OUT/numbers.json" $QUICK
    cd "$clone"
    "$PYTHON" -m pytest -m cuda --timeout 60 tests/test_cuda.py 2>&1 | tee "$OUT/tests.txt"
}

keep() {
    mkdir -p "$WORK/pieces"
    cp "$DATA"/* "$WORK/pieces/"
}

join() {
    cat "$WORK"/pieces/* >"$WORK/images.zip"
    "$PYTHON" - "$WORK/images.zip" "$WORK/images.npy" <<'PYTHON'
import sys
from pathlib import Path
from linear_structure.data import datasets
from linear_structure.system.files import write_array

write_array(Path(sys.argv[2]), datasets.load(sys.argv[1]).images().numpy())
PYTHON
}

train() {
    local run=$WORK/training network=$WORK/network.safetensors last pictures
    timeout --foreground "$LIMIT" "$PYTHON" "$clone/scripts/train.py" "$WORK/images.npy" \
        --recipe gpu --out "$run" --snapshot "$SNAPSHOT" $TRAIN || stopped $?
    last=$(newest "$run"/network-*.safetensors)
    pictures=$(newest "$run"/samples-*.png)
    "$PYTHON" "$clone/scripts/convert_checkpoint.py" "$last" "$network" --dtype float16
    hand_out "$network" "$run"/loss.* "$pictures"
}

sweep() {
    local here=$WORK/sweep network=$WORK/network.safetensors seeds
    mkdir -p "$here"
    cd "$here"
    rm -f features.tar.gz
    for seeds in $SEEDS; do
        "$PYTHON" "$clone/scripts/run_experiments_with_skips.py" cifar10-small --network "$network" \
            --seeds "$seeds" --block "$BLOCK" --skips "$SKIPS" --dtype "$DTYPE"
    done
    "$PYTHON" "$clone/process_experiments_with_skips.py" cifar10-small
    tar -czf results.tar.gz --exclude features images_with_skips
    hand_out results.tar.gz experiments_with_skip_*
}

features() {
    cd "$WORK/sweep"
    if [ ! -e features.tar.gz ]; then
        tar -czf features.tar.gz.unfinished images_with_skips/*/features
        mv features.tar.gz.unfinished features.tar.gz
    fi
    hand_out features.tar.gz
}

measure() {
    bash "$clone/benchmarks/all.sh" "$OUT/numbers.json" $QUICK
}

# After a training that ended with an error, unless the clock ended it: it kept its state.
stopped() {
    [ "$1" = 124 ] || exit "$1"
}

newest() {
    [ -e "${!#}" ] || { echo "no snapshot is there yet: expected a longer LIMIT" >&2; exit 1; }
    echo "${!#}"
}

# Copies files to OUT in place of earlier ones of their names, large ones in parts.
hand_out() {
    local file name parts
    parts=$(mktemp -d "$WORK/parts.XXXX")
    for file; do
        name=$(basename "$file")
        rm -f "$OUT/$name" "$OUT/$name".[0-9]*
        if [ "$(wc -c <"$file")" -le "$(numfmt --from=iec "$PIECE")" ]; then
            cp "$file" "$OUT"
        else
            split -b "$PIECE" -d "$file" "$parts/$name."
            cp "$parts/$name".$PARTS "$OUT"
        fi
    done
    rm -r "$parts"
}

rehearsed() {
    SECONDS=0
    bash "$0" "$1"
    echo "=== $1: $SECONDS s"
}

rehearse() {
    local here step
    here=$(mktemp -d)
    trap "rm -r '$here'" EXIT
    export WORK=$here/work OUT=$here/out DATA=$here/pieces QUICK=--quick PIECE=30K SNAPSHOT=8
    export LIMIT=120 SEEDS="0-7 8-15" BLOCK=4 SKIPS=0,8
    export TRAIN="--model-channels 8 --channel-mult 1 1 --num-blocks 1 --batch 8 --duration 16"
    if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
        export DTYPE=float32 TRAIN="$TRAIN --no-compile"
    fi
    mkdir "$DATA"
    "$PYTHON" - "$here" <<'PYTHON'
import sys
from pathlib import Path
import torch
from linear_structure.images import save_png

for number, image in enumerate(torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8)):
    save_png(Path(sys.argv[1], "images", f"{number:02d}.png"), image)
PYTHON
    "$PYTHON" -m zipfile -c "$here/images.zip" "$here/images"
    split -n 3 "$here/images.zip" "$DATA/"
    for step in look keep join; do rehearsed "$step"; done
    TRAIN="$TRAIN --duration 8" rehearsed train
    for step in train sweep features measure; do rehearsed "$step"; done
    ls -l "$OUT"
}

case ${1:-} in
    look | keep | join | train | sweep | features | measure | rehearse) "$1" ;;
    *) echo "step '${1:-}': expected one that --help names" >&2; exit 2 ;;
esac
