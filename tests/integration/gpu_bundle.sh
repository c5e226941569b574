#!/usr/bin/env bash
# ops/gpu_check makes its bundle, small enough to be carried, and the bundle runs elsewhere: without a GPU (69) what a CPU can.
#   gpu_bundle.sh BUILD_DIR PYTHON_WITH_TORCH
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
TESSERA_BUILD=$1 "$root/ops/gpu_check" bundle "$folder/bundle"
code=0
CUDA_VISIBLE_DEVICES= PATH=$(dirname "$2"):$PATH "$folder/bundle/run.sh" --out "$folder/result.json" --budget 120 || code=$?
[ "$code" = 69 ] || { echo "run.sh ended with $code; without a GPU it is 69"; exit 1; }
