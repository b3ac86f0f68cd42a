"""The CMake build: the operators as a library, and every CUDA kernel under sanitizers in the emulator.

Kept in build/cmake, so that a second run compiles only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "cmake"
MISSING = [
    tool for tool in ("cmake", "ctest", "make", os.environ.get("CXX", "g++").split()[0]) if not shutil.which(tool)
]

if not (ROOT / "apem_fast").exists():  # where an installed package is tested there are no sources to build
    MISSING.append("the package's folder")

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")


def run(*arguments: object) -> str:
    done = subprocess.run(
        [str(argument) for argument in arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_cmake_builds_and_its_tests_pass() -> None:
    jobs = min(4, os.cpu_count() or 1)
    # The CUDA kernels themselves are compiled by setup.py; twice would only take twice as long.
    run("cmake", "-S", ROOT, "-B", BUILD, f"-DTORCH_ROOT={Path(torch.__file__).parent}", "-DAPEM_FAST_CUDA=OFF")
    run("cmake", "--build", BUILD, "--parallel", jobs)
    ctest = ("ctest", "--test-dir", BUILD, "--parallel", jobs, "--output-on-failure", "--no-tests=error")
    assert "100% tests passed" in run(*ctest, "--exclude-regex", "^planted")
    # A planted race has to be met to be caught.
    assert "100% tests passed" in run(*ctest, "--tests-regex", "^planted", "--repeat", "until-pass:5")
