"""Shared by all benchmarks: interleaved timing, ratios within one run, and a record of the machine.

Candidates take turns, round after round, so that whatever else the machine does meets all of them alike. A speed-up is
the median over the rounds of the ratio within one round; absolute times are medians and only there for orientation.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

RESULTS = Path(os.environ.get("BENCH_RESULTS") or Path(__file__).parent / "results")


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate in each round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def speedup(self, name: str, over: str) -> float:
        """How many times faster `name` is than `over`."""
        return median(o / n for n, o in zip(self.seconds[name], self.seconds[over]))


AT_LEAST = 2e-3  # seconds between two events of a GPU: many times what starting one kernel takes


def _seconds(call: Callable[[], Any], device: str, calls: int = 1) -> float:
    """The seconds of one call; on a GPU the mean of several in a row, so that it never waits for the next."""
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    device: str = "cpu",
    seconds: float = 3.0,
    rounds: tuple[int, int] = (7, 300),
    warm_ups: int = 2,
) -> Timings:
    """Times the candidates in turns for about `seconds`, at least and at most so many rounds."""
    for call in candidates.values():  # compiles, allocates, warms the caches
        for _ in range(warm_ups):
            call()
    calls = {name: 1 if device == "cpu" else _calls(call, device) for name, call in candidates.items()}
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    until = time.perf_counter() + seconds
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() > until:
            break
        for name, call in candidates.items():
            measured[name].append(_seconds(call, device, calls[name]))
    return Timings(measured)


def _calls(call: Callable[[], Any], device: str) -> int:
    return min(100, 1 + int(AT_LEAST / _seconds(call, device, 3)))


def bytes_of(values: Iterable[Any]) -> int:
    """Every byte of every tensor among `values`, once."""
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


def copy_of(size: int, device: str) -> Callable[[], Any]:
    """A plain copy into an existing tensor that reads and writes `size` bytes altogether."""
    source = torch.ones(max(size // 8, 1), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _said_by(*command: str) -> str | None:
    """What a program prints; None where it is missing or fails."""
    try:
        said = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "driver": driver.splitlines()[0] if driver else None,
        "gpu_memory_GB": round(properties.total_memory / 1e9, 1),
        "gpu_cache_MB": round(properties.L2_cache_size / 1e6, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def circumstances(device: str) -> dict[str, Any]:
    """Machine, versions and device of this run. The commit is None outside a repository, as in a copy of its files."""
    import apem_fast.ops

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backend": apem_fast.ops.backend(),
        "commit": _said_by("git", "describe", "--always", "--dirty", "--exclude=*"),
        **(_gpu() if device == "cuda" else {}),
    }


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of named values; None is left out, a column of nothing but None too."""
    table = Table(title=title)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    for name in columns:
        numeric = all(isinstance(row.get(name), (int, float, type(None))) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_written(row.get(name)) for name in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def write_json(name: str, results: Any, device: str = "cpu", say_so: bool = True) -> Path:
    """Writes results, with the circumstances of the run, to bench/results/ or where $BENCH_RESULTS says."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / (f"{name}.json" if device == "cpu" else f"{name}-{device}.json")
    path.write_text(json.dumps({"circumstances": circumstances(device), "results": results}, indent=2) + "\n")
    if say_so:
        print(f"written to {path}")
    return path
