#!/usr/bin/env bash
# Compares a CUDA build of Thicket with PyTorch and transformers on the GPU of this machine: first the vectors, tokens and
# probabilities, then the times, all shapes in full. See README.md.
#
# Usage: tests/peers/gpu.sh BINARIES [OUT]
#   BINARIES  holds thicket, thicket-answer and examples/embedding, built with --features cuda
#   OUT       folder of the results (target/peers)
# Needs a python3 with torch (CUDA), transformers, numpy, pillow, grpcio and grpcio-tools, 6 GB of disk.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: tests/peers/gpu.sh BINARIES [OUT]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binaries=$(cd "$1" && pwd)
out=${2:-$here/../../target/peers}
mkdir -p "$out"

# A GPU that is not there is an error of one line, not a crash and not the CPU.
status=0
"$binaries/thicket" embed --model "$here" --text nobody --device cuda:99 --json >"$out/absent.txt" 2>&1 || status=$?
echo "a GPU that is not there: exit status $status, $(head -c 300 "$out/absent.txt")"
[ "$status" -eq 2 ]

python3 "$here/embedding.py" --binaries "$binaries" --out "$out" --device cuda:0 --rounds "${ROUNDS:-5}"
python3 "$here/answers.py" --binaries "$binaries" --out "$out" --device cuda:0 --rounds "${ROUNDS:-5}" \
    --layers 28 --blocks 32 --without-llama
