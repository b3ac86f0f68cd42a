"""The tests that Hypothesis draws, with as many examples as there is time for, by a seed: in `make test` they draw the
same few every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reliability import children
from reliability.tables import Part

ROOT = Path(__file__).parents[1]
FILES = ("test_any_operator.py", "test_any_curve.py", "test_any_arguments.py", "test_search.py", "test_engine.py")
FIRST, MOST = 60, 100_000  # examples of a usual test


def run(folder: Path, seconds: float, seed: int, most: int = MOST) -> Part:
    """Each file with a number of examples that grows until its share of the time is used."""
    rows: list[tuple[Any, ...]] = []
    bad, deadline = 0, time.monotonic() + seconds
    for number, file in enumerate(FILES):
        until = time.monotonic() + (deadline - time.monotonic()) / (len(FILES) - number)
        examples, round_, drawn, tests, failed = min(FIRST, most), 0, 0, 0, 0
        while not failed and (round_ == 0 or time.monotonic() < until):
            begin = time.monotonic()
            tests, failed, count = _with_examples(file, examples, seed + round_, folder)
            drawn, round_ = drawn + count, round_ + 1
            took, left = time.monotonic() - begin, until - time.monotonic()
            examples = int(min(most, max(FIRST, 0.7 * examples * left / took)))
            if left < 0.3 * took or most <= FIRST:
                break
        bad += failed
        rows.append((f"`{file}`", tests, drawn, failed))
    return Part(
        "Examples drawn by Hypothesis",
        "Every operator on tensors of any shape, strides, dtype and values, on each backend that is here, against its "
        "definition and against exact arithmetic; public functions with arguments of any kind; searches on any "
        "margins, and the filter against Algorithm 2. Wanted: no example that fails.",
        ("file", "tests", "examples", "failed"),
        rows,
        bad,
    )


def _with_examples(file: str, examples: int, seed: int, folder: Path) -> tuple[int, int, int]:
    """Tests, those that failed, and examples that were drawn."""
    count = folder / "count"
    count.unlink(missing_ok=True)
    environment = os.environ | {"APEM_FAST_EXAMPLES": str(examples), "APEM_FAST_COUNT": str(count)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = ["-q", "-p", "no:cacheprovider", "-p", "reliability.counting", f"--hypothesis-seed={seed}"]
    command = [sys.executable, "-m", "pytest", *options, "-m", "not slow", f"--basetemp={folder / 'pytest'}"]
    command.append(str(ROOT / "python_tests" / file))
    came = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", came.stdout)}
    drawn = int(count.read_text("utf-8")) if count.exists() else 0
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if came.returncode != 0 or not drawn:
        children.show(came.stdout[-6000:] + came.stderr[-2000:])
        failed = max(failed, 1)
    return counts.get("passed", 0) + failed, failed, drawn
