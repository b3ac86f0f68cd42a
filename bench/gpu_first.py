"""The first minutes on a GPU: builds, tests, measures and checks, one step after the other, each within a time limit.

    python -m bench.gpu_first OUT [--steps build tests ...] [--seconds 570] [--device cuda]

Nothing here needs more than Python; the steps need torch, torchvision, numpy, rich, pytest, hypothesis, pybind11 and
ninja, and no network. Each step writes OUT/NAME.log while it runs and its results into OUT, and OUT/summary.md and
OUT/summary.json are written anew after each. A step that fails or takes too long stops none after it. Where all of them
would take longer than --seconds, the last ones are left for another call with --steps; `--device cpu` is a dry run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bare"
LIBRARIES = Path("apem_fast") / "lib"
LEAST = 5.0  # seconds; with fewer left a step is not begun


@dataclass(frozen=True)
class Step:
    """A command, and how long it may take."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    name: str
    result: str  # "passed", "failed (3)", "stopped after 60 s" or "left out"
    seconds: float


def steps(device: str, out: Path) -> list[Step]:
    """In the order of what one wants to know first."""
    python, jobs = sys.executable, {"MAX_JOBS": str(len(os.sched_getaffinity(0)))}
    on_gpu = device == "cuda"
    few = [] if on_gpu else ["--images", "4"]
    kernels = "FORCE_CUDA" if on_gpu else "NO_CUDA"

    def tests(name: str, seconds: float, *arguments: str) -> Step:
        report = f"--junitxml={out / name}.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", report, "-m", "not slow", *arguments]
        return Step(name, command, seconds)

    def engine(network: str, seconds: float, *precisions: str) -> Step:
        name = f"{network}-{'-'.join(precisions)}"
        batches = ["64", "256", "auto"] if on_gpu else ["2", "auto"]
        arguments = ["--networks", network, "--precisions", *precisions, "--batches", *batches, "--name", name]
        return Step(name, [python, "-m", "bench.throughput", "--device", device, *arguments, *few], seconds)

    engine_tests = ["python_tests/test_cuda_engine.py"]
    if not on_gpu:
        engine_tests += ["python_tests/test_gpu_first.py", "python_tests/test_pretended.py"]
    operators = [] if on_gpu else ["--seconds", "0.05"]
    return [
        Step("machine", [python, "-c", MACHINE], 60),
        Step("build", [python, "-m", "bench.gpu_first", "--build"], 240, {**jobs, kernels: "1"}),
        tests("captures", 90, "python_tests/test_cuda_engine.py", "-k", "captured or dropped or side_by_side"),
        tests("kernels", 150, "python_tests/test_cuda.py"),
        Step("operators", [python, "-m", "bench.operators", "--device", device, "--no-compile", *operators], 120),
        engine("resnet50", 120, "float32"),
        engine("vgg16", 120, "float32"),
        engine("resnet50", 120, "float32", "bfloat16", "tf32") if on_gpu else engine("resnet50", 120, "bfloat16"),
        tests("engine", 150, *engine_tests),
        tests("operators-tests", 240, *_files_with_operators()),
        Step("agreement", [python, "-m", "bench.agreement", "--network", "resnet50", "--devices", "cpu", device], 120),
        Step("memcheck", ["bash", "bench/cuda_checks.sh"], 300, {"PYTHON": python}),
    ]


MACHINE = """
import json, shutil, subprocess, torch
import bench.timing
print(json.dumps(bench.timing.circumstances("cuda" if torch.cuda.is_available() else "cpu"), indent=2))
if shutil.which("nvidia-smi"):
    subprocess.run(["nvidia-smi"])
"""


def _files_with_operators() -> list[str]:
    """Tests that run on every backend, a GPU's kernels among them."""
    files = sorted((ROOT / "python_tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "\nfrom backends" in path.read_text()]


def build() -> None:
    """Compiles the operators beside the sources, with an older setuptools than an installation takes, too: it does not
    know how the project's metadata are written, so they stay out of its sight."""
    for name in ("setup.py", "csrc", "apem_fast/include"):
        _copy(ROOT / name, BUILD / name)
    for folder in (BUILD, ROOT):
        (folder / LIBRARIES).mkdir(exist_ok=True)
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=BUILD, check=True)
    for built in (BUILD / LIBRARIES).glob("*.so"):
        shutil.copy2(built, ROOT / LIBRARIES / built.name)


def _copy(source: Path, target: Path) -> None:
    """With times, so that what has not changed is not compiled again."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def run(step: Step, out: Path, most: float) -> Outcome:
    """Runs a step for at most so many seconds, its own limit included, and ends it with all that it has started."""
    limit = min(step.seconds, most)
    begin = time.monotonic()
    environment = {**os.environ, "BENCH_RESULTS": str(out), "PYTHONUNBUFFERED": "1", **step.environment}
    with (out / f"{step.name}.log").open("w") as log:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            log.write(f"{error}\n")
            return Outcome(step.name, f"failed ({error.strerror})", 0.0)
        try:
            code = process.wait(limit)
            result = "passed" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            result = f"stopped after {limit:.0f} s"
        finally:
            _end(process)
    return Outcome(step.name, result, time.monotonic() - begin)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever a step has started, so that nothing goes on beside the next one."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def write_summary(outcomes: list[Outcome], out: Path) -> None:
    records = [vars(outcome) for outcome in outcomes]
    (out / "summary.json").write_text(json.dumps(records, indent=2) + "\n")
    lines = ["| step | result | seconds |", "|---|---|---|"]
    lines += [f"| {one.name} | {one.result} | {one.seconds:.1f} |" for one in outcomes]
    (out / "summary.md").write_text("\n".join(lines) + "\n")


def run_all(some: Sequence[Step], out: Path, seconds: float) -> list[Outcome]:
    """Runs the steps one after the other, for so many seconds altogether."""
    out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for step in some:
        left = until - time.monotonic()
        outcome = run(step, out, left) if left > LEAST else Outcome(step.name, "left out", 0.0)
        outcomes.append(outcome)
        write_summary(outcomes, out)
        print(f"{outcome.name}: {outcome.result}, {outcome.seconds:.1f} s", flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="the folder for logs and results")
    parser.add_argument("--steps", nargs="*", help="some of them, by name (default: all)")
    parser.add_argument("--seconds", type=float, default=570.0, help="altogether (default: 570)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--build", action="store_true", help="only compile the operators beside the sources")
    options = parser.parse_args()
    if options.build:
        return build()
    if options.out is None:
        parser.error("the folder for logs and results is missing")
    out = options.out.resolve()
    known = {step.name: step for step in steps(options.device, out)}
    unknown = set(options.steps or ()) - set(known)
    if unknown:
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [step for name, step in known.items() if not options.steps or name in options.steps]
    outcomes = run_all(chosen, out, options.seconds)
    sys.exit(any(outcome.result != "passed" for outcome in outcomes))


if __name__ == "__main__":
    main()
