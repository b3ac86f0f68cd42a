#!/usr/bin/env bash
# One call of each operator at benchmark size under Nsight Compute: a line for each kernel. The GPU's clocks are left alone.
#
#   bench/cuda_profile.sh [--only perturb_probes]
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-.venv/bin/python}"
ncu="${NCU:-$(command -v ncu || echo "${CUDA_HOME:-/usr/local/cuda}/bin/ncu")}"
[ -x "$ncu" ] || { echo "cuda_profile: no Nsight Compute (got '$ncu')"; exit 1; }

said="$(mktemp)"
trap 'rm -f "$said"' EXIT
metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes_read.sum,dram__bytes_write.sum
metrics+=,lts__t_sector_hit_rate.pct,smsp__issue_active.avg.pct_of_peak_sustained_active
metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
"$ncu" --profile-from-start off --clock-control none --csv --page raw --print-units base --metrics "$metrics" \
  --log-file "$said" "$python" -m bench.operators --device cuda --once "$@" || failed=1
if grep -q ERR_NVGPUCTRPERM "$said"; then
  echo "cuda_profile: this user may not read the GPU's counters (ERR_NVGPUCTRPERM); an administrator can allow it"
  exit 1
fi
"$python" -m bench.profiled "$said" || { echo "cuda_profile: Nsight Compute said:"; tail -20 "$said"; exit 1; }
exit "${failed:-0}"
