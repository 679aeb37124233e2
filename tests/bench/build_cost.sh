#!/usr/bin/env bash
# What the product costs to build and to start: build times, sizes of the programs, start of a device to its first label.
#   build_cost.sh          warm builds, sizes, start
#   build_cost.sh --sizes  sizes and start of what is built already
#   build_cost.sh --ship   the device's program as it is shipped: link-time optimisation, many minutes and gigabytes
#   build_cost.sh --cold   also a build from nothing, in a folder of its own: takes all cores for many minutes
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-1} PATH="$PATH:/usr/sbin"
# The edge's stripped program is to stay below this.
limit_mb=30

timed() { # timed WHAT COMMAND...
    local what=$1 start
    shift
    start=$(date +%s.%N)
    "$@"
    printf '%-44s %8.1f s\n' "$what" "$(echo "$(date +%s.%N) - $start" | bc)"
}

if [ "${1:-}" = --cold ]; then
    cold=$(mktemp -d)
    trap 'rm -rf "$cold"' EXIT
    timed "cold build, the device alone" cargo build --quiet --release --package omnilabel-edge --target-dir "$cold"
    rm -rf "$cold"
    timed "cold build, the workspace" cargo build --quiet --release --workspace --target-dir "$cold"
fi
if [ "${1:-}" = --ship ]; then
    # Link-time optimisation and incremental builds exclude each other.
    # On x86-64 rustc's own linker (LLVM's) can fold functions that are the same; Rust promises nothing of their addresses.
    fold=()
    [ "$(uname -m)" != x86_64 ] || fold=(-C link-arg=-Wl,--icf=all)
    CARGO_INCREMENTAL=0 timed "build as shipped" cargo rustc --quiet --profile ship --package omnilabel-edge --bin omnilabel-edge \
        --target-dir target-ship -- "${fold[@]}"
elif [ "${1:-}" != --sizes ]; then
    cargo build --quiet --release --workspace
    timed "warm build, nothing changed" cargo build --quiet --release --workspace
    # Cargo goes by the time of a file.
    touch firmware-app/src/lib.rs
    timed "warm build, the device's crate changed" cargo build --quiet --release --workspace
    touch models/keypoints/src/lib.rs
    timed "warm build, the domain changed" cargo build --quiet --release --workspace
fi

stripped=$(mktemp)
programs=(target/release/omnilabel-edge target/release/omnilabel-trainer target/release/omnilabel)
# What is shipped is held against the target, where it has just been built.
held=
[ "${1:-}" != --ship ] || { held=target-ship/ship/omnilabel-edge && programs+=("$held"); }
for program in "${programs[@]}"; do
    strip -o "$stripped" "$program"
    mb() { echo "scale=1; $(stat -c %s "$1") / 1000000" | bc; }
    printf '%-44s %8s MB, stripped %s MB\n' "$program" "$(mb "$program")" "$(mb "$stripped")"
    if [ "$program" = "$held" ] && [ "$(stat -c %s "$stripped")" -gt $((limit_mb * 1000000)) ]; then
        echo "  over the target of $limit_mb MB"
        over=1
    fi
done
rm -f "$stripped"
printf '%-44s %s\n' "a device that starts" "$(target/release/omnilabel-bench startup)"
exit ${over:-0}
