"""The batches that the loop runs, probe by probe, and whom they are counted to: on scripted margins, so that a change
of what is asked together, in which order or how often shows here.

`python python_tests/test_engine_steps.py` prints the tables anew.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_engine import Scripted

from apem_fast.probing.engine import _whole_rows, find_flips
from apem_fast.probing.siblings import find_least_flips
from apem_fast.search import Exhaustive, Isolate

POLICIES = {"isolate": Isolate(), "exhaustive": Exhaustive()}
LAST = 6
FLIPS = [3, 6, 1, 9, 2]

# Policy, size of a batch, lanes, rays that are refuted: batches of ray.step, and the probes counted to each ray.
RUNS = """
isolate    | 1 | 1 |     | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 = 2 2 1 1 2
isolate    | 1 | 1 | 1 4 | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 1.5 / 1.6 4.1 / 4.2 = 2 5 1 1 5
isolate    | 1 | 1 | 3   | 0.2 1.5 2.1 3.8 / 0.3 1.6 3.8 4.1 / 4.2 = 2 2 1 3 2
isolate    | 1 | 2 |     | 0.2 1.5 / 2.1 3.8 / 0.3 1.6 / 4.1 / 4.2 = 2 2 1 1 2
isolate    | 1 | 2 | 1 4 | 0.2 1.5 / 2.1 3.8 / 0.3 1.6 / 4.1 / 4.2 / 1.5 / 1.6 / 4.1 / 4.2 = 2 5 1 1 5
isolate    | 1 | 2 | 3   | 0.2 1.5 / 2.1 3.8 / 0.3 1.6 / 4.1 / 3.8 / 4.2 = 2 2 1 3 2
isolate    | 2 | 1 |     | 0.2 1.5 2.1 3.8 / 0.3 1.6 / 4.1 / 4.2 = 2 2 1 1 2
isolate    | 2 | 1 | 1 4 | 0.2 1.5 2.1 3.8 / 0.3 1.6 / 4.1 1.5 / 4.2 1.6 / 4.1 / 4.2 = 2 5 1 1 5
isolate    | 2 | 1 | 3   | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 3.8 / 4.2 = 2 2 1 3 2
isolate    | 2 | 2 |     | 0.2 1.5 2.1 3.8 / 4.1 / 0.3 1.6 / 4.2 = 2 2 1 1 2
isolate    | 2 | 2 | 1 4 | 0.2 1.5 2.1 3.8 / 4.1 / 0.3 1.6 / 4.2 / 1.5 / 1.6 / 4.1 / 4.2 = 2 5 1 1 5
isolate    | 2 | 2 | 3   | 0.2 1.5 2.1 3.8 / 4.1 / 4.2 / 0.3 1.6 / 3.8 = 2 2 1 3 2
isolate    | 4 | 1 |     | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 = 2 2 1 1 2
isolate    | 4 | 1 | 1 4 | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 1.5 / 1.6 / 4.1 / 4.2 = 2 5 1 1 5
isolate    | 4 | 1 | 3   | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 3.8 = 2 2 1 3 2
isolate    | 4 | 2 |     | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 = 2 2 1 1 2
isolate    | 4 | 2 | 1 4 | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 1.5 / 1.6 / 4.1 / 4.2 = 2 5 1 1 5
isolate    | 4 | 2 | 3   | 0.2 1.5 2.1 3.8 / 0.3 1.6 4.1 / 4.2 3.8 = 2 2 1 3 2
exhaustive | 1 | 1 |     | 0.1 1.1 2.1 3.1 / 0.2 1.2 3.2 4.1 / 0.3 1.3 3.3 4.2 / 1.4 3.4 / 1.5 3.5 / 1.6 3.6 = 3 6 1 6 2
exhaustive | 2 | 1 |     | 0.1 1.1 2.1 3.1 / 0.2 1.2 3.2 4.1 / 0.3 1.3 3.3 4.2 / 1.4 3.4 / 1.5 3.5 / 1.6 3.6 = 3 6 1 6 2
exhaustive | 4 | 1 |     | 0.1 1.1 2.1 3.1 / 0.2 1.2 3.2 4.1 / 0.3 1.3 3.3 4.2 / 1.4 1.5 3.4 3.5 / 1.6 3.6 = 3 6 1 6 2
exhaustive | 4 | 2 |     | 0.1 1.1 2.1 3.1 / 0.2 1.2 3.2 4.1 / 0.3 1.3 3.3 4.2 / 1.4 1.5 3.4 3.5 / 1.6 3.6 = 3 6 1 6 2
"""

# Policy, size of a batch, family of each ray: batches of ray.step, then the families' least steps and probes.
FAMILIES = """
isolate    | 1 | 0 0 0 0 0 | 2.1 = 1
isolate    | 1 | 0 0 1 1 2 | 0.2 2.1 4.1 / 0.3 4.2 / 1.2 = 3 1 2
isolate    | 1 | 0 1 0 1 0 | 1.5 2.1 / 1.6 / 3.5 = 1 3
isolate    | 1 | 0 1 2 3 4 | 0.2 1.5 2.1 3.6 4.1 / 0.3 1.6 4.2 = 2 2 1 1 2
isolate    | 2 | 0 0 0 0 0 | 2.1 4.1 = 2
isolate    | 2 | 0 0 1 1 2 | 0.2 1.5 2.1 4.1 / 0.3 4.2 = 3 1 2
isolate    | 2 | 0 1 0 1 0 | 1.5 2.1 / 1.6 3.6 = 1 3
isolate    | 2 | 0 1 2 3 4 | 0.2 1.5 2.1 3.6 4.1 / 0.3 1.6 4.2 = 2 2 1 1 2
isolate    | 4 | 0 0 0 0 0 | 0.2 1.5 2.1 4.1 = 4
isolate    | 4 | 0 0 1 1 2 | 0.2 1.5 2.1 4.1 / 0.3 1.6 4.2 = 4 1 2
isolate    | 4 | 0 1 0 1 0 | 0.2 1.5 2.1 4.1 / 1.6 3.6 = 3 3
isolate    | 4 | 0 1 2 3 4 | 0.2 1.5 2.1 3.6 4.1 / 0.3 1.6 4.2 = 2 2 1 1 2
exhaustive | 1 | 0 0 0 0 0 | 2.1 = 1
exhaustive | 1 | 0 0 1 1 2 | 0.1 2.1 4.1 / 0.2 4.2 / 0.3 / 1.1 / 1.2 = 5 1 2
exhaustive | 1 | 0 1 0 1 0 | 1.1 2.1 / 1.2 / 1.3 / 1.4 / 1.5 / 1.6 / 3.1 / 3.2 / 3.3 / 3.4 / 3.5 = 1 11
exhaustive | 2 | 0 0 0 0 0 | 2.1 4.1 = 2
exhaustive | 2 | 0 0 1 1 2 | 0.1 1.1 2.1 4.1 / 0.2 4.2 / 0.3 1.2 = 5 1 2
exhaustive | 2 | 0 1 0 1 0 | 1.1 2.1 / 1.2 3.1 / 1.3 3.2 / 1.4 3.3 / 1.5 3.4 / 1.6 3.5 = 1 11
exhaustive | 4 | 0 0 0 0 0 | 0.1 1.1 2.1 4.1 = 4
exhaustive | 4 | 0 0 1 1 2 | 0.1 1.1 2.1 4.1 / 0.2 1.2 4.2 / 0.3 0.4 1.3 1.4 = 8 1 2
exhaustive | 4 | 0 1 0 1 0 | 0.1 1.1 2.1 4.1 / 1.2 1.3 3.1 3.2 / 1.4 1.5 3.3 3.4 / 1.6 3.5 3.6 = 3 12
exhaustive | 4 | 0 1 2 3 4 | 0.1 1.1 2.1 3.1 4.1 / 0.2 1.2 3.2 4.2 / 0.3 1.3 3.3 / 1.4 1.5 3.4 3.5 / 1.6 3.6 = 3 6 1 6 2
"""


def rows_of(table: str) -> list[tuple[str, ...]]:
    return [tuple(part.strip() for part in row.split("|")) for row in table.strip().splitlines()]


class Logging(Scripted):
    """Writes every batch down."""

    def answers(self, ray, epsilon):
        self.batches.append(" ".join(f"{r}.{e:g}" for r, e in zip(ray, epsilon)))
        return (yield from super().answers(ray, epsilon))

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batches: list[str] = []


def run(policy: str, size: str, lanes: str, refuted: str) -> str:
    prober = Logging(FLIPS, int(size), int(lanes), map(int, refuted.split()))
    flips = find_flips(prober, POLICIES[policy], step=1.0, last_step=LAST)
    assert flips.step.tolist() == np.minimum(FLIPS, LAST).tolist()
    assert flips.flipped.tolist() == [flip <= LAST for flip in FLIPS]
    return " / ".join(prober.batches) + " = " + " ".join(map(str, flips.probes.tolist()))


def run_families(policy: str, size: str, families: str) -> str:
    prober, family = Logging(FLIPS, int(size), 1), np.array(list(map(int, families.split())))
    said: list[tuple[int, int, int]] = []
    found = find_least_flips(
        prober, family, POLICIES[policy], step=1.0, last_step=LAST, progress=lambda *now: said.append(now)
    )
    least = [min(flip for flip, f in zip(FLIPS, family) if f == one) for one in range(family.max() + 1)]
    assert found.step.tolist() == np.minimum(least, LAST).tolist()
    assert found.flipped.tolist() == [step <= LAST for step in least]
    assert said[-1] == (len(FLIPS), len(FLIPS), int(found.probes.sum()))
    return " / ".join(prober.batches) + " = " + " ".join(map(str, found.probes.tolist()))


@pytest.mark.parametrize("policy, size, lanes, refuted, expected", rows_of(RUNS), ids=lambda value: value[:12])
def test_batches(policy, size, lanes, refuted, expected):
    assert run(policy, size, lanes, refuted) == expected


@pytest.mark.parametrize("policy, size, families, expected", rows_of(FAMILIES), ids=lambda value: value[:12])
def test_batches_of_families(policy, size, families, expected):
    assert run_families(policy, size, families) == expected


@pytest.mark.parametrize(
    "rows, count, kept",
    [
        ([0, 0, 1, 1, 2], 5, 5),
        ([0, 0, 1, 1, 2], 4, 4),
        ([0, 0, 1, 1, 2], 3, 2),  # not one of row 1's two
        ([0, 0, 1, 1, 2], 1, 2),  # at least a row
        ([3, 3, 3], 2, 3),
        ([0, 1, 2], 1, 1),
        ([0, 1, 2], 0, 1),
    ],
)
def test_no_row_is_answered_in_part(rows, count, kept):
    row, step = np.array(rows), np.arange(10, 10 + len(rows))
    some, at = _whole_rows(row, step, count)
    assert some.tolist() == rows[:kept] and at.tolist() == step[:kept].tolist()


def tables() -> tuple[list[str], list[str]]:
    """As far as a line holds them."""
    runs = [(p, s, n, r) for p in POLICIES for s in "124" for n in "12" for r in ("", "1 4", "3")]
    of = [" | ".join([p.ljust(10), s, n, r.ljust(3), run(p, s, n, r)]) for p, s, n, r in runs]
    families = ("0 0 0 0 0", "0 0 1 1 2", "0 1 0 1 0", "0 1 2 3 4")
    groups = [(p, s, f) for p in POLICIES for s in "124" for f in families]
    others = [" | ".join([p.ljust(10), s, f, run_families(p, s, f)]) for p, s, f in groups]
    return tuple([line for line in lines if len(line) <= 120] for lines in (of, others))


if __name__ == "__main__":
    print("\n\n".join("\n".join(lines) for lines in tables()))
