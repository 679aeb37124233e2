#!/usr/bin/env bash
# Makes the shipped model anew: make.sh [WORK_DIR]. Half an hour on two cores. Every seed is written here; on the same kind of CPU the same
# weights come out.
#
#   init.safetensors   what every arm of the demo starts from: a backbone that was pre-trained on 400 rendered studio scenes which no arm sees
#                      (seed 101); heads are fresh (seed 1)
#   nano-scenes/       the teacher: from there, on the demo's 60 manual labels (seed 1); the lower bound trains in the same way
#   nano-scenes.json   the record that the demo reads: these commands, and the upper bound for its default arguments
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-target/zoo} zoo=models/zoo
omnilabel() { cargo run --quiet --release -- "$@"; }

omnilabel scenes --look studio --seed 101 --count 400 --out "$work/pretrain"
omnilabel trainer train --data "$work/pretrain" --steps 1500 --batch 16 --name nano-init --out "$work/first"
omnilabel trainer train --data "$work/pretrain" --config $zoo/pretrain.toml --init "$work/first/bundle/weights.safetensors" \
    --name nano-init --out "$work/init"
cargo run --quiet --release -p omnilabel-rcnn --example backbone_of -- "$work/init/bundle/weights.safetensors" $zoo/init.safetensors

omnilabel scenes --look studio --seed 1 --count 60 --out "$work/manual"
omnilabel scenes --look mixed --seed 2 --count 160 --out "$work/heldout"
omnilabel trainer train --data "$work/manual" --config $zoo/teacher.toml --init $zoo/init.safetensors --eval "$work/heldout" \
    --name nano-scenes --out "$work/teacher"
rm -rf $zoo/nano-scenes
cp -r "$work/teacher/bundle" $zoo/nano-scenes

# The upper bound is the third row of this run's table; it goes into nano-scenes.json by hand.
omnilabel demo --fresh --dir "$work/demo" --with-upper-bound
