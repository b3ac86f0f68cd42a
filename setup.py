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
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020b000000000000"  # 2.11: one binary serves this torch and every later one
# One for each major version: its machine code also runs on the later GPUs of that version (8.0: A10, L4, RTX 40 ...).
# CMakeLists.txt reads this line.
CUDA_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")


OLDEST_SETUPTOOLS = 77  # the first that reads pyproject.toml's license; an older one answers with a page of text
# Without metadata beside it, as `python -m bench.gpu_first --build` has it, an older one builds the operators too.
if (ROOT / "pyproject.toml").exists() and int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"apem_fast: setuptools must be {OLDEST_SETUPTOOLS} or newer (got {setuptools.__version__}): "
        f"pip install 'setuptools>={OLDEST_SETUPTOOLS}', then again"
    )


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
    if sys.platform != "linux":
        return "Linux"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "").split() or ["g++", "c++", "clang++"])[:3]):
        return "a C++ compiler"
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


def smallest_binary() -> list[str]:
    """What makes nvcc pack its machine code tightly, half as large, where it can (CUDA 12.8 and later)."""
    nvcc = Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"
    known = subprocess.run([nvcc, "--help"], check=False, capture_output=True, text=True).stdout
    return ["--compress-mode=size"] if "--compress-mode" in known else []


def compile_options(cuda: bool) -> dict[str, list[str]]:
    debug = [] if flag("DEBUG") else ["-g0"]
    # No contraction and no fast-math: every backend rounds alike. No errno: square roots in vectors.
    shared = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *(["-DUSE_CUDA"] if cuda else [])]
    vectors = os.environ.get("APEM_FAST_VECTORS")  # csrc/compat.h
    shared += [f"-DAPEM_FAST_VECTORS={vectors}"] if vectors else []
    host = [*shared, *debug, "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
    device = [*shared, "--fmad=false", "-Xcompiler=-ffp-contract=off,-fvisibility=hidden", "--expt-relaxed-constexpr"]
    return {"cxx": host, "nvcc": [*device, *smallest_binary()]} if cuda else {"cxx": host}


def libraries(cuda_home: str | None) -> list:
    """The operators for the CPU, which every torch can load, and those for CUDA in a library of their own.

    Neither knows Python: they are loaded by torch.ops.load_library, or linked to by a C++ program.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("MAX_JOBS", str(cores))
    import torch
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    def found(*patterns: str) -> list[str]:
        return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]

    def options(name: str, cuda: bool) -> dict:
        link = ["-Wl,--wrap=dlsym", f"-Wl,-soname,{name}.so", *([] if flag("DEBUG") else ["-Wl,--strip-all"])]
        return {
            "extra_compile_args": compile_options(cuda),
            "extra_link_args": link,
            "py_limited_api": True,
            "depends": found("csrc/**/*.*h"),
        }

    cuda = wants_cuda(cuda_home)
    if cuda and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(Path(cuda_home) / "bin" / "nvcc")
    sources = found("csrc/*.cpp", "csrc/cpu/*.cpp")
    built = [CppExtension("apem_fast.lib.libapem_fast", sources, **options("libapem_fast", False))]
    if cuda:
        name = f"libapem_fast_cuda{torch.version.cuda.split('.')[0]}"
        sources = found("csrc/glibc.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu")
        built.append(CUDAExtension(f"apem_fast.lib.{name}", sources, **options(name, True)))
    return built


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

    built_here = libraries(cuda_home)
    where = f" and CUDA ({os.environ['TORCH_CUDA_ARCH_LIST']})" if len(built_here) > 1 else ""

    class BuildLibraries(BuildExtension):
        """Plain shared libraries, not modules of Python; says what for and how large they are."""

        def get_ext_filename(self, fullname: str) -> str:
            return fullname.replace(".", os.sep) + ".so"

        def run(self) -> None:
            print(f"apem_fast: building the operators for the CPU{where}", file=sys.stderr)
            if self.inplace:
                for stale in ROOT.glob("apem_fast/lib/libapem_fast*.so"):
                    stale.unlink()  # an earlier build may have left one that is not built now
            super().run()

        def build_extension(self, ext) -> None:
            super().build_extension(ext)
            built = Path(self.get_ext_fullpath(ext.name))
            print(f"apem_fast: {built.name} has {built.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)

    return {
        "ext_modules": built_here,
        "cmdclass": {"build_ext": BuildLibraries, **wheel_command()},
    }


def wheel_command() -> dict:
    """A wheel for every Python, but for one platform. Before 70.1 setuptools has none, but builds in place."""
    try:
        from setuptools.command.bdist_wheel import bdist_wheel
    except ImportError:
        return {}

    class PlatformWheel(bdist_wheel):
        def get_tag(self) -> tuple[str, str, str]:
            return ("py3", "none", super().get_tag()[2])

    return {"bdist_wheel": PlatformWheel}


setuptools.setup(**build_options())
