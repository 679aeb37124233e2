#!/usr/bin/env bash
# yardstick.sh DATA STEPS WORK_DIR: the trainer's AP against PyTorch's with the same network, first weights, configuration and steps on the first
# 30 % of DATA/train. Fails below 90 % of PyTorch's AP. PYTHON names an interpreter with torch and torchvision.
set -euo pipefail
data=${1:?usage: yardstick.sh DATA STEPS WORK_DIR} steps=${2:?usage: yardstick.sh DATA STEPS WORK_DIR} work=${3:?usage: yardstick.sh DATA STEPS WORK_DIR}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv-torch/bin/python}
# The workspace's build: one package alone would be built anew, with other features of its dependencies.
cargo build --quiet --release --workspace --example train_folder
"${CARGO_TARGET_DIR:-$here/../../target}/release/examples/train_folder" "$data/train" --first 0.3 --steps "$steps" --val "$data/val" --out "$work/ours"
"$python" "$here/nano_torch.py" train "$work/ours" "$data/train" --first 0.3 --val "$data/val" --out "$work/torch"
ap() { "$python" "$here/nano_torch.py" score "$data/val" "$1" | sed 's/^AP \([0-9.]*\).*/\1/'; }
ours=$(ap "$work/ours/results.json") torch=$(ap "$work/torch/results.json")
echo "yardstick: $steps steps, AP ours $ours, PyTorch $torch"
awk -v a="$ours" -v b="$torch" 'BEGIN { exit !(b > 0 && a >= 0.9 * b) }' || { echo "yardstick: below 90 % of PyTorch" >&2; exit 1; }
