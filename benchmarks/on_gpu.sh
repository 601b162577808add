#!/usr/bin/env bash
# What needs a GPU: the tests that other machines skip, then the benchmarks that compute on it.
#
#   benchmarks/on_gpu.sh [tiny|short|full]        results: benchmarks/results/<name of the GPU>/
#
# PYTHON names the interpreter. Packages that were carried to a machine without a network, as .gpu/part-*, pieces of one
# .tar.xz, are unpacked into .gpu/site and found before the interpreter's own.
set -euo pipefail
cd "$(dirname "$0")/.."
size="${1:-short}"
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

parts=(.gpu/part-*)
if [ -e "${parts[0]}" ]; then
  if [ ! -d .gpu/site ]; then
    rm -rf .gpu/unpacking
    mkdir .gpu/unpacking
    cat "${parts[@]}" | tar -xJ -C .gpu/unpacking
    mv .gpu/unpacking .gpu/site
  fi
  PYTHONPATH="$PWD/.gpu/site:$PYTHONPATH"
fi

"$python" - <<'PROGRAM'
import sys
import torch

if not torch.cuda.is_available():
    print(f"distrec: needs a CUDA device, and torch {torch.__version__} sees none; `distrec doctor` says why", file=sys.stderr)
    sys.exit(2)
PROGRAM
"$python" -m distrec doctor --ranks 1 || true # for the record: what is missing and not needed here is a fault too
"$python" -m pytest -q -rs -m gpu tests
for name in embedding; do
  "$python" -m "benchmarks.$name" --size "$size"
done
