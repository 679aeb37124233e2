#!/usr/bin/env bash
# Omnilabel beside PyTorch, ONNX Runtime and the other tools that a user would pick instead, in one run: see docs/BENCHMARKS.md.
# Arguments go to `omnilabel-bench compare`, e.g. `--only train-nano`, `--quick`, `--json FILE`.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-1} PATH="$PATH:/usr/sbin"
tests/setup --torch
cargo build --release --workspace
exec target/release/omnilabel-bench compare "$@"
