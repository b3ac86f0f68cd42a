"""Builds the CPU operators with one version of their vector loops, as an older or a newer processor runs them.

In the library as it is installed a loop exists three times, and the processor decides which of them runs before any
code of ours does. So another version is only seen in a build of its own: bench.matrix runs the tests on each, and
python_tests/test_vectors.py compares what they give to the bit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = {"SSE2": "sse2", "AVX2": "avx2", "AVX-512": "arch=x86-64-v4"}
"""What GCC is told: the names of APEM_FAST_VECTOR_VERSIONS in csrc/compat.h, where SSE2 is the default of x86-64."""
NEEDED = {"SSE2": ("sse2",), "AVX2": ("avx2",), "AVX-512": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")}
SOURCES = ("apem_fast", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def versions_here() -> list[str]:
    """The versions that this processor can run: none where it is no x86-64 under Linux."""
    information = Path("/proc/cpuinfo")
    features = information.read_text().split() if information.exists() else []
    return [name for name, needed in NEEDED.items() if all(feature in features for feature in needed)]


def built(version: str, tree: Path) -> Path:
    """Copies the sources into `tree` and builds the operators there, in place, with that version of the loops.

    Raises:
        RuntimeError: they do not compile; it says what the compiler said.
    """
    tree.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, tree / name)
    environment = {**os.environ, "APEM_FAST_VECTORS": VERSIONS[version], "NO_CUDA": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])  # ninja lies there
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=tree, env=environment | {"PATH": path}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the operators do not compile with {version}:\n{(done.stdout + done.stderr)[-4000:]}")
    return tree
