"""The first minutes on a GPU, as far as they can be tried without one: the steps' limits, and what they run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from both_devices import made_on_cpu
from networks import images_and_maps, small_network
from pretended import PretendedGPU

pytest.importorskip("torchvision")  # whose networks it measures

from apem_fast.running.runners import PlainRunner
from bench import gpu_first, throughput, timing
from bench.gpu_first import Step
from bench.networks import Workload

ROOT = Path(__file__).resolve().parents[1]


def python(name: str, code: str, seconds: float = 30.0) -> Step:
    return Step(name, [sys.executable, "-c", code], seconds)


def test_a_step_that_fails_or_takes_too_long_stops_none_after_it(tmp_path: Path) -> None:
    sleeps = "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', '{}'])"
    some = [
        python("fails", "print('why'); raise SystemExit(3)"),
        Step("missing", ["no-such-program"], 30.0),
        python("sleeps", sleeps.format("import time; time.sleep(600)"), 2.0),
        python("passes", "import os; print(os.environ['BENCH_RESULTS'])"),
    ]
    begin = time.monotonic()
    outcomes = gpu_first.run_all(some, tmp_path / "out", 300)
    assert time.monotonic() - begin < 300
    results = {one.name: one.result for one in outcomes}
    assert results["missing"].startswith("failed") and results["sleeps"] == "stopped after 2 s"
    assert (results["fails"], results["passes"]) == ("failed (3)", "passed")
    logs = {step.name: (tmp_path / "out" / f"{step.name}.log").read_text().strip() for step in some}
    assert (logs["fails"], logs["sleeps"], logs["passes"]) == ("why", "begun", str(tmp_path / "out"))
    recorded = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {one["name"]: one["result"] for one in recorded} == results
    assert "| passes | passed |" in (tmp_path / "out" / "summary.md").read_text()


def test_steps_that_no_time_is_left_for_are_left_out(tmp_path: Path) -> None:
    outcomes = gpu_first.run_all([python("first", "print()")], tmp_path, 0.0)
    assert [one.result for one in outcomes] == ["left out"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_step_is_there_to_be_run(device: str, tmp_path: Path) -> None:
    some = gpu_first.steps(device, tmp_path)
    assert len({step.name for step in some}) == len(some)
    built = next(step for step in some if step.name == "build").environment
    assert ("FORCE_CUDA" in built, "NO_CUDA" in built) == (device == "cuda", device == "cpu")
    for step in some:
        files = [part for part in step.command if part.endswith((".py", ".sh"))]
        modules = [f"{part.replace('.', '/')}.py" for part in step.command if part.startswith("bench.")]
        assert all((ROOT / path).exists() for path in files + modules), step


@pytest.mark.parametrize("metadata", [False, True])
def test_an_older_setuptools_builds_where_it_sees_no_metadata(metadata: bool, tmp_path: Path) -> None:
    """As bare machines have it, and `gpu_first.build` calls it; an installation needs a newer one."""
    older = tmp_path / "setuptools"
    older.mkdir()
    (older / "__init__.py").write_text("__version__ = '70.0.0'\ndef setup(**options): print('built')\n")
    shutil.copy(ROOT / "setup.py", tmp_path)
    if metadata:
        (tmp_path / "pyproject.toml").touch()
    asked = [sys.executable, "-c", "import setup; print(setup.wheel_command())"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if metadata:
        assert done.returncode and "setuptools must be 77 or newer (got 70.0.0)" in done.stderr
    else:
        assert done.stdout.split() == ["built", "{}"], done.stderr


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_engine_is_measured_on_a_pretended_gpu(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "workload", small_workload)
    monkeypatch.setattr(throughput, "SIZES", {"cuda": (2, 4)})
    monkeypatch.setattr(throughput, "MAX_EPSILON", 40.0)
    monkeypatch.setattr(PlainRunner, "noise", 0.1)  # so that some inputs are run again alone
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    precisions = ["float32"] if precision == "float32" else ["float32", precision]
    with PretendedGPU():
        rows = list(throughput.rows_of("small", 6, precisions, [4, None], "cuda"))
    assert [row["batch"] for row in rows] == [4, "auto"] * len(precisions)
    for row in rows:
        assert row["rays that differ"] == 0
        assert row["inputs"] > 0 and 0 < row["places used"] <= 1 and row["captures"] > 0
        assert row["single"] > 0 or row["precision"] != "float32"
        assert (row["screened"] > 0) == (row["precision"] != "float32")
        assert row["plan"].startswith("4") or row["batch"] == "auto"


def small_workload(name: str, count: int, device: str) -> Workload:
    images, maps = made_on_cpu(images_and_maps, count)
    model = made_on_cpu(small_network).to(device)
    return Workload(model, images.to(device), images.to(device), {"maps": maps.to(device)}, ["made up"] * count)


def test_made_up_images_differ_and_lie_between_black_and_white() -> None:
    from bench.networks import _made_up

    before = torch.get_rng_state()
    model, images, pixels, names = _made_up("squeezenet1_1", 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert images.shape == pixels.shape == (3, 3, 224, 224) and len(set(names)) == 3
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    assert not torch.equal(pixels[0], pixels[1])
    assert not model.training
