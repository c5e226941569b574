#!/usr/bin/env bash
# Runs the bundle (ops/gpu_check): finds torch's libraries by Python, then run.py does the rest. PYTHON=... chooses the Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))' 2>/dev/null) || {
  echo "run.sh: $python has no torch; install torch 2.11.0 (cu130), or name another Python with PYTHON=..." >&2
  exit 69
}
folders=$torch/lib
for folder in "$torch"/../nvidia/*/lib; do [ -d "$folder" ] && folders=$folders:$folder; done
export LD_LIBRARY_PATH=$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$python" "$here/run.py" "$@"
