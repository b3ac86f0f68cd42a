"""Mutants: one small change in the search, the engine, the screen, the filter or the store, which a test must notice.

A runner of our own, for what mutmut and cosmic-ray do not do. cosmic-ray starts Python, and so imports torch, anew for
every mutant, which takes longer than most of these tests; mutmut forks, but turns every function of a copy of the tree
into a switch, and what is said here of dataclasses, protocols and signatures no longer holds then; neither draws a
sample by a seed. Here a process that has imported torch, but nothing of ours, forks a child for each mutant
(`mutated.py`).

`python -m reliability.mutants` is that process; `run` starts it and makes the table. Planted mutants, of several
changes at once, come first; the others are drawn. One is killed where a test fails or a file no longer imports, or
where it takes far longer than without the change. Those that were looked at and change no answer, no cost and no
message are listed in `equivalent.py`; they are tried all the same, and it is an error where a test notices one.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.changes import Change, changes
from reliability.equivalent import EQUIVALENT
from reliability.mutated import KILLED, ROOT, SURVIVED, TIMED_OUT, Unchanged, tried, unchanged
from reliability.tables import Part

IMPORTED = "hypothesis numpy pandas pyarrow.parquet pytest scipy.stats torch torchvision".split()


@dataclass(frozen=True)
class Module:
    """Files that are changed, as they lie in apem_fast/, and the files of python_tests/ among whose tests those are
    that enter what is changed."""

    name: str
    files: Sequence[str]
    tests: Sequence[str]
    wanted: float | None = None  # survival that is wanted below


def _files(*patterns: str, but: str = "") -> tuple[str, ...]:
    """Of apem_fast/; `but` some, by their names, which only a GPU runs."""
    found = sorted(path for pattern in patterns for path in (ROOT / "apem_fast").glob(pattern))
    return tuple(
        path.relative_to(ROOT / "apem_fast").as_posix() for path in found if path.stem not in ("__init__", *but.split())
    )


def _tests(names: str) -> tuple[str, ...]:
    return tuple(f"test_{name}.py" for name in names.split())


SCREENING = "screening screen_errors trial"
MODULES = (
    Module(
        "search",
        _files("search/*.py"),
        _tests("search_steps any_curve search engine engine_steps certified abilities"),
        wanted=0.1,
    ),
    Module(
        "engine",
        _files("probing/*.py", but=SCREENING),
        _tests(
            "engine_steps engine normalised metric record screening outputs target filtering certified "
            "directed_relevance dense_targets reliability undisturbed mutants_left low_precision devices"
        ),
        wanted=0.1,
    ),
    Module(
        "running",
        _files("running/*.py", "running/segments/*.py", but="beside capture transfer"),
        _tests(
            "batching clean runners record low_precision outputs target undisturbed metric reliability certified "
            "screening engine strange_models_and_tensors mutants_left"
        ),
        wanted=0.1,
    ),
    Module(
        "screening",
        tuple(f"probing/{name}.py" for name in SCREENING.split()),
        _tests("screen_errors screening low_precision mutants_left"),
    ),
    Module("filter", _files("filter/*.py"), _tests("filtering abilities any_curve zero_levels results mutants_left")),
    Module(
        "store",
        ("experiment/run/store.py", *_files("files/*.py")),
        _tests("reliability_run experiment reliability experiment_reading experiment_selection mutants_left"),
    ),
)


@dataclass(frozen=True)
class Planted:
    """A mutant with a name: in each file of apem_fast/, one text instead of another."""

    name: str
    changes: Sequence[tuple[str, str, str]]
    tests: Sequence[str]


# An int step once made every epsilon a denormal, and so every ray censored, without a word. Three places prevent it.
_OPTIONS = (
    ("options.py", "        validation.make_numbers_plain(self)\n", ""),
    ("options.py", "validation.positive(name, getattr(self, name))", "getattr(self, name)"),
)
_BITS = ("probing/columns.py", "if column.dtype != np.float64:", "if False:")
_PRODUCT = ("probing/engine.py", "self.step * grid_step.astype(np.float64)", "self.step * grid_step")
_ANY_KIND = "test_metric.py::test_a_number_of_any_kind_means_what_a_float_means"
PLANTED = (
    Planted("an int step is read as bits", (*_OPTIONS, _BITS, _PRODUCT), (_ANY_KIND,)),
    Planted("options keep an int step", _OPTIONS, (_ANY_KIND,)),
    Planted(
        "bits of anything are float64", (_BITS,), ("test_metric.py::test_bits_of_anything_but_float64_are_refused",)
    ),
)


def mutant_of(path: str, number: int) -> tuple[ast.AST, Change, str]:
    """The tree of a file of apem_fast/ with the change of that number, what that is, and its name."""
    tree = ast.parse((ROOT / "apem_fast" / path).read_text("utf-8"))
    found = changes(tree)
    name = names_of(path, found)[number]
    found[number].apply()
    return ast.fix_missing_locations(tree), found[number], name


def planted(mutant: Planted) -> dict[str, ast.AST]:
    """The trees of the files that it changes."""
    texts: dict[str, str] = {}
    for path, before, after in mutant.changes:
        text = texts.get(path) or (ROOT / "apem_fast" / path).read_text("utf-8")
        if before not in text:
            raise RuntimeError(f"the mutant {mutant.name!r} has no place any more: {path} lacks {before!r}")
        texts[path] = text.replace(before, after)
    return {path: ast.parse(text) for path, text in texts.items()}


def names_of(path: str, found: Sequence[Change]) -> list[str]:
    """How the mutants of a file are named, here and in `equivalent.py`: lines move, so they are not in it."""
    names, seen = [], Counter[str]()
    for change in found:
        name = f"{path} {change.function or 'outside'}: {change.text.replace('  ->  ', ' -> ')}"
        seen[name] += 1
        names.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return names


def sample(module: Module, seed: int) -> list[tuple[str, int]]:
    """All mutants of a module in an order drawn by a seed: (file, number of the change)."""
    every = []
    for path in module.files:
        tree = ast.parse((ROOT / "apem_fast" / path).read_text("utf-8"))
        every += [(path, number) for number in range(len(changes(tree)))]
    random.Random(f"{seed} {module.name}").shuffle(every)
    return every


def _serve(seconds: float, seed: int, most: int, only: Sequence[str]) -> None:
    """Writes a line of JSON for each mutant that was tried."""
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    deadline, known = time.monotonic() + seconds, dict[tuple[str, ...], Unchanged]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def of(tests: Sequence[str]) -> Unchanged:
            if tuple(tests) not in known:
                known[tuple(tests)] = unchanged(tests, folder)
            return known[tuple(tests)]

        def report(module: str, name: str, line: int, came: tuple[str, str, float, int]) -> None:
            outcome, by, took, tests = came
            row = {"module": module, "name": name, "line": line, "outcome": outcome, "by": by, "tests": tests}
            print(json.dumps(row | {"seconds": round(took, 1)}), flush=True)

        for mutant in PLANTED if not only or "planted" in only else ():
            report("planted", mutant.name, 0, tried(planted(mutant), ("", 0), of(mutant.tests), folder))
        chosen = [one for one in MODULES if not only or one.name in only]
        waiting = {one.name: sample(one, seed)[:most] for one in chosen}
        while any(waiting.values()) and time.monotonic() < deadline:
            for module in chosen:
                if waiting[module.name] and time.monotonic() < deadline:
                    path, number = waiting[module.name].pop(0)
                    tree, change, name = mutant_of(path, number)
                    came = tried({path: tree}, (path, change.first_line), of(module.tests), folder)
                    report(module.name, name, change.line, came)
        # Every mutant would seem to be killed after somebody has broken the tree, or rebuilt what it loads.
        for tests in known:
            unchanged(tests, folder)


def run(seconds: float, seed: int, most: int = 100) -> Part:
    """At most so many mutants of each module, in turns, as far as the time allows."""
    command = [sys.executable, "-m", "reliability.mutants", "--seconds", str(seconds), "--seed", str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--most", str(most)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    results = []
    for line in process.stdout:
        results.append(json.loads(line))
        print(line, end="", file=sys.stderr, flush=True)
    if process.wait() != 0:
        raise RuntimeError("the mutants could not be tried")
    return table_of(results, seed)


def table_of(results: Sequence[Mapping[str, Any]], seed: int) -> Part:
    """What was found, as a table."""
    from scipy.stats import binomtest

    rows: list[tuple[Any, ...]] = []
    bad = 0
    wanted = {"planted": 0.0} | {module.name: module.wanted for module in MODULES}
    every = {"planted": len(PLANTED)} | {module.name: len(sample(module, seed)) for module in MODULES}
    together = [name for name, most in wanted.items() if most]
    groups = [*((name, [name]) for name in wanted), (f"{', '.join(together)} together", together)]
    for title, names in groups:
        of = [one for one in results if one["module"] in names]
        same = [one for one in of if one["name"] in EQUIVALENT]
        wrong = sum(one["outcome"] != SURVIVED for one in same)  # a test noticed what was said to change nothing
        outcomes = [one["outcome"] for one in of if one not in same]
        survived, count = outcomes.count(SURVIVED), len(outcomes)
        share = between = ""
        if count:
            interval = binomtest(survived, count).proportion_ci(method="exact")
            share, between = f"{survived / count:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"
        if title in wanted:
            most = wanted[title]
            bad += wrong + (survived if most is not None and survived > most * count else 0)
        total = sum(every[name] for name in names)
        numbers = outcomes.count(KILLED), outcomes.count(TIMED_OUT), survived, len(same)
        rows.append((title, total, len(of), *numbers, share, between))
    left = [one for one in results if one["outcome"] == SURVIVED and one["name"] not in EQUIVALENT]
    which = "; ".join(
        "{}:{} `{}`".format(one["name"].split()[0], one["line"], one["name"].split(": ", 1)[1]) for one in left
    )
    return Part(
        "Mutants",
        "One change at a time, drawn by the seed, and the tests that enter the function it is in, among those of "
        "the files that concern it (`reliability/mutants.py`). What survives and was found to change no answer, no "
        "cost and no message is listed in `reliability/equivalent.py` with the reason, and left out of the share "
        "that survives. The interval is that of Clopper and Pearson, 95 %. Wanted: none that was planted survives, "
        "and fewer than 10 % in the search, the engine and what runs models."
        + (f" Survived: {which}." if which else ""),
        (
            "module",
            "mutants in all",
            "tried",
            "killed",
            "timed out",
            "survived",
            "change nothing",
            "survival",
            "between",
        ),
        rows,
        bad,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reliability.mutants")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=100, help="of each module")
    parser.add_argument("--only", nargs="+", default=(), help="modules; planted: those with a name")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    _serve(chosen.seconds, chosen.seed, chosen.most, chosen.only)
