"""The CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer, fed with bytes, the code that they reach as
the guide: csrc/fuzz/. Built by CMake into build/fuzz, which takes some minutes the first time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from reliability import children
from reliability.tables import Part

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "fuzz"
PROGRAM = BUILD / "csrc" / "fuzz" / "fuzz_operators"
CRASH = "crash.input"


def why_not() -> str | None:
    """The reason why it cannot be built here, if there is one."""
    missing = [tool for tool in ("cmake", os.environ.get("CXX", "g++").split()[0]) if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def build() -> None:
    torch_root = f"-DTORCH_ROOT={Path(torch.__file__).parent}"
    options = ("-DAPEM_FAST_CUDA=OFF", "-DAPEM_FAST_SANITIZERS=OFF", "-DAPEM_FAST_FUZZ=ON")
    for command in (
        ["cmake", "-S", ROOT, "-B", BUILD, torch_root, *options],
        ["cmake", "--build", BUILD, "--target", "fuzz_operators", "--parallel", str(min(4, os.cpu_count() or 1))],
    ):
        done = subprocess.run([str(a) for a in command], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the fuzzer does not build:\n{(done.stdout + done.stderr)[-4000:]}")


def run(folder: Path, seconds: float, seed: int, most: int = 10**9) -> Part:
    """At most so many inputs, as far as the time allows; building it is not counted."""
    reason = why_not()
    rows: list[tuple[Any, ...]] = []
    bad = 0
    if reason is None:
        build()
        begin = time.monotonic()
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            # torch itself is not watched, and keeps what it has until the end.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:log_path=stderr",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        done = subprocess.run(
            [str(PROGRAM), str(most), str(seed), str(seconds)],
            cwd=folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode == 0:
            inputs, answered, refused, edges, kept = map(int, done.stdout.split())
            rows.append((inputs, answered, refused, edges, kept, 0, f"{time.monotonic() - begin:.0f}"))
        else:
            bad = 1
            children.show(done.stderr[-6000:])
            if (folder / CRASH).exists():
                shutil.copy(folder / CRASH, BUILD / CRASH)
                children.show(f"{PROGRAM} {BUILD / CRASH}  runs that input again")
            rows.append(("", "", "", "", "", 1, f"{time.monotonic() - begin:.0f}"))
    else:
        print(f"nothing is fuzzed: {reason}", file=sys.stderr)
    return Part(
        "Fuzzing",
        "The CPU operators, compiled with AddressSanitizer and UndefinedBehaviorSanitizer, called with what bytes say: "
        "shapes, strides, dtypes, values and options right for the most part and wrong in any way for the rest. Inputs "
        "that reach new code are kept and changed further. Wanted: an answer, or one sentence that begins with the "
        "operator's name; no report of a sanitizer.",
        ("inputs", "answered", "refused", "edges reached", "inputs kept", "crashes", "seconds"),
        rows,
        bad,
    )
