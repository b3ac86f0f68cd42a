#!/usr/bin/env bash
# Every operator on small inputs under compute-sanitizer: accesses out of bounds or misaligned, races in shared memory,
# barriers that not all threads reach. A few minutes.
#
#   bench/cuda_checks.sh [pytest arguments; default: the small inputs of python_tests/test_cuda.py]
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-.venv/bin/python}"
sanitizer="${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")}"
[ -x "$sanitizer" ] || { echo "cuda_checks: no compute-sanitizer (got '$sanitizer'); it comes with the CUDA toolkit"; exit 1; }
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "cuda_checks: no NVIDIA GPU"; exit 1; }

[ $# -gt 0 ] || set -- python_tests/test_cuda.py -k "small_inputs or out_of_range"

# Without torch's cache every tensor is an allocation of its own, whose end the sanitizer knows.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
failed=0
for tool in memcheck racecheck synccheck; do
  echo "== $tool"
  # torch probes for what a driver lacks, so failing API calls mean nothing; the bindings check every launch themselves.
  "$sanitizer" --tool "$tool" --kernel-name kernel_substring=apem_fast --error-exitcode 86 --report-api-errors no \
    --require-cuda-init no "$python" -m pytest -q -p no:cacheprovider -m cuda "$@" || failed=1
done
exit $failed
