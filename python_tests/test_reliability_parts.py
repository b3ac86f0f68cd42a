"""Every part of `make test-reliability`, briefly: no flipped bit is another number, no killed command loses a row."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from hypothesis import strategies as st

from reliability import changes, counting, mutants
from reliability.__main__ import write_page
from reliability.equivalent import EQUIVALENT
from reliability.mutated import Unchanged
from reliability.tables import Part

ROOT = Path(__file__).parents[1]

# In a process of its own that has computed nothing yet: what it forks can then compute gradients.
BRIEFLY = """
import sys
from pathlib import Path
import torch
from reliability import flips, kills, models
from reliability.commands import COMMANDS, preload
torch.set_num_threads(1)
folder = Path(sys.argv[1])
preload(folder)
training = COMMANDS[2:]
parts = [
    flips.run(folder / "flips", 1e9, seed=1, positions=280),
    kills.run(folder / "kills", 1e9, seed=1, most=3, commands=training),
    kills.run_faults(folder / "disks", 1e9, seed=1, most=2, commands=training),
    models.run(1e9, seed=1, most=1),
]
for part in parts:
    print(part.markdown())
sys.exit(any(part.bad for part in parts))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_every_part_briefly(tmp_path):
    command = [sys.executable, "-c", BRIEFLY, str(tmp_path)]
    came = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert came.returncode == 0, came.stdout + came.stderr
    assert "| all |" in came.stdout and "| siamese train | a file operation |" in came.stdout


def test_examples_are_counted(monkeypatch):
    monkeypatch.setattr(counting, "ran", 0)
    seen = []

    @hypothesis.settings(max_examples=7, database=None, derandomize=True)
    @hypothesis.given(st.integers())
    def drawn(number):
        seen.append(number)

    counting.pytest_collection_modifyitems(
        [SimpleNamespace(obj=drawn), SimpleNamespace(obj=drawn), SimpleNamespace(obj=len)]
    )
    drawn()
    assert counting.ran == len(seen) == 7


# -- mutants ---------------------------------------------------------------------------------------------------------

SOURCE = """
def nearest(steps: list[int], most: int = 3) -> int:
    'a < b'
    if not steps:
        raise ValueError(1 + 1)
    best = min(steps) - 1
    steps.sort()
    return best if best < most else -best
"""
CHANGED = [
    "3 -> 4",
    "if not steps: -> if not not steps:",
    "not steps -> steps",
    "min(steps) - 1 -> min(steps) + 1",
    "min -> max",
    "1 -> 2",
    "steps.sort() -> pass",
    "best if best < most else -best -> best if not best < most else -best",
    "best < most -> best <= most",
    "best < most -> best >= most",
    "-best -> best",
]


def test_each_change_is_made_alone():
    found = [change.text for change in changes.changes(ast.parse(SOURCE))]
    assert [text.replace("  ->  ", " -> ") for text in found] == CHANGED
    programs = set()
    for number in range(len(found)):
        tree = ast.parse(SOURCE)
        changes.changes(tree)[number].apply()
        programs.add(ast.unparse(tree))
        compile(ast.fix_missing_locations(tree), "mutant", "exec")
    assert len(programs) == len(found) and ast.unparse(ast.parse(SOURCE)) not in programs


@pytest.mark.skipif(not (ROOT / "apem_fast").exists(), reason="missing: the package's folder, which is changed")
def test_every_file_that_is_changed_is_there_and_so_are_its_tests():
    for module in mutants.MODULES:
        assert len(mutants.sample(module, 0)) > 100
        assert all((ROOT / "python_tests" / test).exists() for test in module.tests)
    for mutant in mutants.PLANTED:
        assert mutants.planted(mutant)
    names = set()
    for file in {file for module in mutants.MODULES for file in module.files}:
        tree = ast.parse((ROOT / "apem_fast" / file).read_text("utf-8"))
        names.update(mutants.names_of(file, changes.changes(tree)))
    assert set(EQUIVALENT) <= names  # none is of a line that is no more


def test_a_mutant_needs_the_tests_that_enter_its_function_and_none_else():
    entered = {"": {("a.py", 1)}, "long": {("a.py", 5), ("b.py", 5)}, "short": {("a.py", 5)}, "other": {("b.py", 9)}}
    known = Unchanged({"long": 9.0, "short": 1.0, "other": 2.0}, {}, entered, [])
    assert known.tests_of(("a.py", 5)) == ["short", "long"] and known.tests_of(("b.py", 9)) == ["other"]
    assert known.tests_of(("a.py", 1)) == known.tests_of(("a.py", 0)) == ["short", "other", "long"]
    assert not known.tests_of(("c.py", 5))
    known.kills["long"] += 1  # what noticed another mutant comes first
    assert known.tests_of(("a.py", 5)) == ["long", "short"]


def test_what_changes_nothing_is_no_survivor_and_a_test_that_notices_it_is_an_error(monkeypatch):
    monkeypatch.setattr("reliability.mutants.EQUIVALENT", {"same": "because", "not the same": "it was said"})
    row = {"module": "search", "line": 1, "by": "", "tests": 1, "seconds": 1.0}
    came = {"same": "survived", "not the same": "killed", "a.py f: 1 -> 2": "survived"}
    came |= {str(number): "killed" for number in range(19)}
    part = mutants.table_of([row | {"name": name, "outcome": outcome} for name, outcome in came.items()], 0)
    search = next(one for one in part.rows if one[0] == "search")
    assert search[2:8] == (22, 19, 0, 1, 2, "5.0%") and part.bad == 1
    assert "a.py:1 `1 -> 2`" in part.text


def test_the_page_keeps_the_figures_of_other_parts(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("Head.\n\n<!-- figures: made by python -m reliability -->\n\n<!-- end of figures -->\nTail.\n")
    monkeypatch.setattr("reliability.__main__.PAGE", page)
    for title, number in (("A", 1), ("B", 2), ("A", 3000)):
        write_page([(Part(title, "Text.", ("n",), [(number,)], 0), 60.0)], seed=7)
    text = page.read_text()
    assert text.startswith("Head.\n") and text.endswith("<!-- end of figures -->\nTail.\n")
    assert text.count("### ") == 2 and text.index("| 3,000 |") < text.index("| 2 |") and "| 1 |" not in text
    assert text.count("seed 7, in 1.0 minutes") == 2
