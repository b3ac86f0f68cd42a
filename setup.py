"""Builds the operators on libtorch's stable ABI: always for the CPU, and for CUDA where torch and a toolkit have it.

NO_CUDA=1 leaves CUDA out; FORCE_CUDA=1 makes its absence an error. TORCH_CUDA_ARCH_LIST is honoured; where it is not
set, the build is for the GPUs of this machine or, without one, for all from T4 to Blackwell. Without a C++ compiler the
install still succeeds and the reference backend serves; with one, a build that fails is an error and not a silent fall
back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020b000000000000"  # 2.11: one binary serves this torch and every later one
# One for each major version: its machine code also runs on the later GPUs of that version (8.0: A10, L4, RTX 40 ...).
CUDA_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "off", "no")


def find_cuda_home() -> str | None:
    """The toolkit's real root; `nvcc` on PATH may be a wrapper script that lives elsewhere."""
    for candidate in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if candidate and (Path(candidate) / "bin" / "nvcc").exists():
            return str(Path(candidate).resolve())
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", said.stderr + said.stdout, re.MULTILINE)
    return str(Path(top.group(1)).resolve()) if top else None


def architectures(nvcc: Path) -> str:
    """What to compile for, as TORCH_CUDA_ARCH_LIST: the GPUs that are present, else every one that this nvcc knows.
    Later ones compile the PTX of the last when they first run it."""
    import torch

    if torch.cuda.is_available():
        here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return ";".join(f"{major}.{minor}" for major, minor in sorted(here))
    known = subprocess.run([nvcc, "--list-gpu-code"], check=False, capture_output=True, text=True).stdout.split()
    some = [name for name in CUDA_ARCHITECTURES if f"sm_{name.replace('.', '')}" in known]
    return ";".join(some or CUDA_ARCHITECTURES[:3]) + "+PTX"


def missing_for_compiling() -> str | None:
    """What is not here and without which nothing is compiled; None where all is."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "").split() or ["g++", "c++", "clang++"])[:3]):
        return "a C++ compiler"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's headers (Python.h)"
    return None


def wants_cuda(cuda_home: str | None) -> bool:
    import torch

    if flag("NO_CUDA"):
        return False
    missing = []
    if torch.version.cuda is None:
        missing.append("this torch was built without CUDA")
    if cuda_home is None:
        missing.append("no CUDA toolkit was found (set CUDA_HOME)")
    if missing and flag("FORCE_CUDA"):
        raise SystemExit(f"apem_fast: FORCE_CUDA=1, but {' and '.join(missing)}")
    return not missing


def extension(cuda_home: str | None):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("MAX_JOBS", str(cores))
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    cuda = wants_cuda(cuda_home)
    if cuda and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(Path(cuda_home) / "bin" / "nvcc")
    sources = [
        "csrc/ops.cpp",
        "csrc/python.cpp",
        *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp")),
    ]
    # No contraction and no fast-math: every backend rounds alike. No errno: square roots in vectors.
    host = [
        "-O3",
        "-std=c++17",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fvisibility=hidden",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
    ]
    flags = {"cxx": host}
    if cuda:
        sources += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu"))
        flags["nvcc"] = [
            "-O3",
            "-std=c++17",
            "--fmad=false",
            "-Xcompiler=-ffp-contract=off",
            "--expt-relaxed-constexpr",
            "-DUSE_CUDA",
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        ]
        flags["cxx"] = [*host, "-DUSE_CUDA"]
    headers = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/**/*.*h"))]
    kind = CUDAExtension if cuda else CppExtension
    where = f" and CUDA ({os.environ['TORCH_CUDA_ARCH_LIST']})" if cuda else ""
    print(f"apem_fast: building the operators for the CPU{where}", file=sys.stderr)
    return kind("apem_fast._C", sources, extra_compile_args=flags, py_limited_api=True, depends=headers)


def build_options() -> dict:
    try:
        import torch  # noqa: F401
    except ImportError:
        print("apem_fast: torch is not installed here, so nothing is compiled", file=sys.stderr)
        return {}
    missing = missing_for_compiling()
    if missing:
        if flag("FORCE_CUDA"):
            raise SystemExit(f"apem_fast: FORCE_CUDA=1, but {missing} was not found")
        print(f"apem_fast: {missing} was not found, so the slower reference backend will serve", file=sys.stderr)
        return {}
    cuda_home = find_cuda_home()
    if cuda_home:
        os.environ["CUDA_HOME"] = cuda_home  # torch looks for itself when cpp_extension is first imported
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """Says how large the binary is."""

        def build_extension(self, ext) -> None:
            super().build_extension(ext)
            built = Path(self.get_ext_fullpath(ext.name))
            print(f"apem_fast: {built.name} has {built.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)

    return {
        "ext_modules": [extension(cuda_home)],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(**build_options())
