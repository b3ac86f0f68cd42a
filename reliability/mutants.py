"""Mutants: one small change in the search, the engine, the screen, the filter or the store, which a test must notice.

A runner of our own, for what mutmut and cosmic-ray do not do. cosmic-ray starts Python, and so imports torch, anew for
every mutant, which takes longer than most of these tests; mutmut forks, but turns every function of a copy of the tree
into a switch, and what is said here of dataclasses, protocols and signatures no longer holds then; neither draws a
sample by a seed. Here a process that has imported torch, but nothing of ours, forks a child for each mutant. It takes
the changed file from memory, so no file is changed, and runs the few tests that concern it.

`python -m reliability.mutants` is that process; `run` starts it and makes the table. Planted mutants, of several
changes at once, come first; the others are drawn. One is killed where a test fails or a file no longer imports, or
where it takes far longer than without the change.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.changes import Change, changes
from reliability.tables import Part

ROOT = Path(__file__).parents[1]
MORE_MEMORY = 4 * 2**30  # bytes that a mutant may take beyond what its parent has
SLOWER, SLACK = 4.0, 5.0  # a mutant may take so many times as long as its tests do unchanged, and some seconds more
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


@dataclass(frozen=True)
class Module:
    """Files that are changed, as they lie in apem_fast/, each with the tests that concern it: files of python_tests/,
    or some of their tests, in the order in which they run."""

    name: str
    tests: Mapping[str, Sequence[str]]
    wanted: float | None = None  # survival that is wanted below


SEARCH_TESTS = ("test_search_steps.py", "test_any_curve.py", "test_search.py", "test_engine.py")
ENGINE_TESTS = ("test_engine_steps.py", "test_engine.py", "test_normalised.py")
PROBER_TESTS = ("test_metric.py", "test_record.py", "test_screening.py")
SCREEN_TESTS = ("test_screen_errors.py", "test_screening.py", "test_low_precision.py")
FILTER_TESTS = ("test_filtering.py",)
STORE_TESTS = ("test_reliability_run.py", "test_experiment.py")

MODULES = (
    Module(
        "search",
        {
            "search/isolate.py": SEARCH_TESTS,
            "search/exhaustive.py": SEARCH_TESTS,
            "search/policy.py": SEARCH_TESTS,
            "search/names.py": SEARCH_TESTS,
            "search/certified.py": ("test_certified.py",),
        },
        wanted=0.1,
    ),
    Module(
        "engine",
        {
            "probing/engine.py": ENGINE_TESTS,
            "probing/siblings.py": ("test_engine_steps.py", "test_normalised.py"),
            "probing/rays.py": (*PROBER_TESTS, "test_normalised.py", "test_outputs.py"),
            "probing/batch_prober.py": (*PROBER_TESTS, "test_filtering.py", "test_target.py"),
            "probing/level_prober.py": ("test_filtering.py",),
        },
        wanted=0.1,
    ),
    Module(
        "screening",
        {
            "probing/screening.py": ("test_screening.py", "test_low_precision.py"),
            "probing/screen_errors.py": SCREEN_TESTS,
            "probing/trial.py": ("test_low_precision.py", "test_screening.py"),
        },
    ),
    Module(
        "filter",
        {
            "filter/filtering.py": FILTER_TESTS,
            "filter/level_ray.py": FILTER_TESTS,
            "filter/level_search.py": FILTER_TESTS,
            "filter/levels.py": FILTER_TESTS,
            "filter/stopping.py": FILTER_TESTS,
        },
    ),
    Module(
        "store",
        {
            "experiment/run/store.py": STORE_TESTS,
            "files/checksums.py": STORE_TESTS,
            "files/whole.py": STORE_TESTS,
        },
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
_BITS = ("probing/batch_prober.py", "if column.dtype != np.float64:", "if False:")
_PRODUCT = ("probing/engine.py", "self.step * grid_step.astype(np.float64)", "self.step * grid_step")
_ANY_KIND = "test_metric.py::test_a_number_of_any_kind_means_what_a_float_means"
PLANTED = (
    Planted("an int step is read as bits", (*_OPTIONS, _BITS, _PRODUCT), (_ANY_KIND,)),
    Planted("options keep an int step", _OPTIONS, (_ANY_KIND,)),
    Planted(
        "bits of anything are float64", (_BITS,), ("test_metric.py::test_bits_of_anything_but_float64_are_refused",)
    ),
)


# -- a mutant and its tests, in a child ------------------------------------------------------------------------------


def mutant_of(path: str, number: int) -> tuple[ast.AST, Change]:
    """The tree of a file of apem_fast/ with the change of that number, and what that is."""
    tree = ast.parse((ROOT / "apem_fast" / path).read_text("utf-8"))
    change = changes(tree)[number]
    change.apply()
    return ast.fix_missing_locations(tree), change


def planted(mutant: Planted) -> dict[str, ast.AST]:
    """The trees of the files that it changes."""
    texts: dict[str, str] = {}
    for path, before, after in mutant.changes:
        text = texts.get(path) or (ROOT / "apem_fast" / path).read_text("utf-8")
        if before not in text:
            raise RuntimeError(f"the mutant {mutant.name!r} has no place any more: {path} lacks {before!r}")
        texts[path] = text.replace(before, after)
    return {path: ast.parse(text) for path, text in texts.items()}


class _Changed(importlib.abc.MetaPathFinder):
    """Finds the files that are changed before anything else does, and gives their changed trees."""

    def __init__(self, trees: Mapping[str, ast.AST]):
        self.trees = {"apem_fast." + path.removesuffix(".py").replace("/", "."): tree for path, tree in trees.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.trees:
            return None
        file, tree = str(ROOT / f"{name.replace('.', '/')}.py"), self.trees[name]

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return compile(tree, file, "exec")  # type: ignore[arg-type]

        return importlib.util.spec_from_file_location(name, file, loader=Loader(name, file))


class _FirstFailure:
    """A plugin of pytest that says which test failed first, and lets Hypothesis leave failing examples as they are."""

    def __init__(self, said: Path):
        self.said = said

    def pytest_sessionstart(self) -> None:
        import hypothesis

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", hypothesis.settings(), phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.said.exists():
            self.said.write_text(report.nodeid, "utf-8")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.said.exists():
            self.said.write_text(f"{report.nodeid}, which does not import", "utf-8")


def _child(trees: Mapping[str, ast.AST], tests: Sequence[str], said: Path) -> None:
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with suppress(ValueError, OSError):
        taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MORE_MEMORY,) * 2)
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Changed(trees))
    import pytest

    chosen = [str(ROOT / "python_tests" / test) for test in tests]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not cuda"]
    code = pytest.main([*options, f"--basetemp={said.parent / 'tmp'}", *chosen], plugins=[_FirstFailure(said)])
    os._exit(int(code))


def tried(trees: Mapping[str, ast.AST], tests: Sequence[str], limit: float, folder: Path) -> tuple[str, str, float]:
    """What becomes of a mutant: an outcome, the test that noticed it, and seconds."""
    said, begin = folder / "said", time.monotonic()
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _child(trees, tests, said)
        finally:
            os._exit(70)
    ended, status = 0, 0
    while not ended and time.monotonic() - begin < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also whatever it started
    seconds = time.monotonic() - begin
    if not ended:
        os.waitpid(child, 0)
        return TIMED_OUT, "", seconds
    by = said.read_text("utf-8").removeprefix("python_tests/") if said.exists() else "a crash"
    return (SURVIVED, "", seconds) if os.waitstatus_to_exitcode(status) == 0 else (KILLED, by, seconds)


# -- all of them -----------------------------------------------------------------------------------------------------


def sample(module: Module, seed: int) -> list[tuple[str, int]]:
    """All mutants of a module in an order drawn by a seed: (file, number of the change)."""
    every = []
    for path in module.tests:
        tree = ast.parse((ROOT / "apem_fast" / path).read_text("utf-8"))
        every += [(path, number) for number in range(len(changes(tree)))]
    random.Random(f"{seed} {module.name}").shuffle(every)
    return every


def _serve(seconds: float, seed: int, most: int, only: Sequence[str]) -> None:
    """Writes a line of JSON for each mutant that was tried."""
    import hypothesis
    import numpy
    import pandas
    import pyarrow
    import pytest
    import scipy.stats
    import torch

    del hypothesis, numpy, pandas, pyarrow, pytest, scipy
    torch.set_num_threads(1)
    deadline, usual = time.monotonic() + seconds, dict[tuple[str, ...], float]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def limit(tests: tuple[str, ...]) -> float:
            if tests not in usual:
                outcome, by, took = tried({}, tests, 600, folder)
                if outcome != SURVIVED:
                    raise RuntimeError(f"without any change, {by or 'a test'} fails")
                usual[tests] = took
            return usual[tests] * SLOWER + SLACK

        def report(module: str, name: str, outcome: str, by: str, took: float) -> None:
            row = {"module": module, "name": name, "outcome": outcome, "by": by, "seconds": round(took, 1)}
            print(json.dumps(row), flush=True)

        for mutant in PLANTED if not only or "planted" in only else ():
            tests = tuple(mutant.tests)
            report("planted", mutant.name, *tried(planted(mutant), tests, limit(tests), folder))
        waiting = {one.name: sample(one, seed)[:most] for one in MODULES if not only or one.name in only}
        turn = 0
        while any(waiting.values()) and time.monotonic() < deadline:
            module = MODULES[turn % len(MODULES)]
            turn += 1
            if not waiting.get(module.name):
                continue
            path, number = waiting[module.name].pop(0)
            tests = tuple(module.tests[path])
            tree, change = mutant_of(path, number)
            report(
                module.name,
                f"{path}:{change.line} #{number}  {change.text}",
                *tried({path: tree}, tests, limit(tests), folder),
            )
        # Every mutant would seem to be killed after somebody has broken the tree, or rebuilt what it loads.
        if usual and tried({}, min(usual, key=usual.__getitem__), 600, folder)[0] != SURVIVED:
            raise RuntimeError("the tree was changed meanwhile: without any change a test fails now")


def run(seconds: float, seed: int, most: int = 40) -> Part:
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
        if results[-1]["outcome"] != KILLED:
            print(results[-1]["outcome"], results[-1]["module"], results[-1]["name"], file=sys.stderr, flush=True)
    if process.wait() != 0:
        raise RuntimeError("the mutants could not be tried")
    return table_of(results, seed)


def table_of(results: Sequence[Mapping[str, Any]], seed: int) -> Part:
    """What was found, as a table."""
    from scipy.stats import binomtest

    rows: list[tuple[Any, ...]] = []
    bad = 0
    for name, wanted, every in [
        ("planted", 0.0, len(PLANTED)),
        *((m.name, m.wanted, len(sample(m, seed))) for m in MODULES),
    ]:
        outcomes = [one["outcome"] for one in results if one["module"] == name]
        survived, tried_ = outcomes.count(SURVIVED), len(outcomes)
        share = between = ""
        if tried_:
            interval = binomtest(survived, tried_).proportion_ci(method="exact")
            share, between = f"{survived / tried_:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"
        bad += survived if wanted is not None and tried_ and survived > wanted * tried_ else 0
        rows.append((name, every, tried_, outcomes.count(KILLED), outcomes.count(TIMED_OUT), survived, share, between))
    names = [one["name"].split("  ") for one in results if one["outcome"] == SURVIVED]
    which = "; ".join(f"{name[0].split(' #')[0]} `{' '.join(name[1:])}`" for name in names)
    return Part(
        "Mutants",
        "One change at a time, drawn by the seed, and the few tests that concern the file (`reliability/mutants.py`). "
        "The interval of survival is that of Clopper and Pearson, 95 %. Wanted: none that was planted survives, and "
        "fewer than 10 % in the search and the engine. Some changes are none (a bound that is never met exactly, a "
        "number that only says how a batch is filled), and are counted all the same."
        + (f" Survived: {which}." if which else ""),
        ("module", "mutants in all", "tried", "killed", "timed out", "survived", "survival", "between"),
        rows,
        bad,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reliability.mutants")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=40, help="of each module")
    parser.add_argument("--only", nargs="+", default=(), help="modules; planted: those with a name")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    _serve(chosen.seconds, chosen.seed, chosen.most, chosen.only)
