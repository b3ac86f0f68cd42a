#!/usr/bin/env bash
# The operators' tests on a GPU under compute-sanitizer: accesses out of bounds or misaligned, races in shared memory,
# barriers that not all threads reach.
#
#   bench/cuda_checks.sh [pytest arguments; default: python_tests/test_cuda.py]
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-.venv/bin/python}"
sanitizer="${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")}"
[ -x "$sanitizer" ] || { echo "cuda_checks: no compute-sanitizer (got '$sanitizer'); it comes with the CUDA toolkit"; exit 1; }
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "cuda_checks: no NVIDIA GPU"; exit 1; }

[ $# -gt 0 ] || set -- python_tests/test_cuda.py

# Without torch's cache every tensor is an allocation of its own, whose end the sanitizer knows; graphs need the cache.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck synccheck; do
  echo "== $tool"
  "$sanitizer" --tool "$tool" --kernel-name kernel_substring=apem_fast --error-exitcode 86 --target-processes all \
    "$python" -m pytest -q -p no:cacheprovider -m cuda -k "not graph" "$@"
done
