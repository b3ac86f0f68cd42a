"""One mutant and the tests that can notice it, in a child that was forked with everything imported but what is ours.

The child takes changed files from memory, so no file is changed. A first child runs a list of tests unchanged and notes
which functions each enters, and for how long it works: a mutant of a function then needs only the tests that enter it,
those that noticed others before, and short ones, first.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OURS = str(ROOT / "apem_fast")
MORE_MEMORY = 4 * 2**30  # bytes that a mutant may take beyond what its parent has
SLOWER, SLACK = 4.0, 5.0  # a test may work so many times as long as it does unchanged, and some seconds more
WAITING = 60.0  # seconds that all tests of a mutant may take beyond a multiple of their work, on a busy machine
KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"

Function = tuple[str, int]
"""A file of apem_fast/ and the first line of the function there; nothing, 0: whatever is not in a function."""


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


@dataclass
class Unchanged:
    """What tests do without any change.

    Args:
        seconds: by test, that it takes.
        worked: by test, seconds of this process alone.
        entered: by test, the functions that it enters; of the test "", those entered when tests are collected.
        modules: what is imported on the way and is not ours.
    """

    seconds: dict[str, float]
    worked: dict[str, float]
    entered: dict[str, set[Function]]
    modules: list[str]
    kills: Counter[str] = field(default_factory=Counter)

    def tests_of(self, function: Function) -> list[str]:
        """The tests that enter a function, in the order in which they are worth running."""
        everything = not function[1] or function in self.entered.get("", ())
        chosen = [test for test in self.seconds if everything or function in self.entered[test]]
        return sorted(chosen, key=lambda test: (-self.kills[test], self.seconds[test]))


class _Plugin:
    """What pytest is told in a child: which tests in which order, how long each may work, and what came of them."""

    def __init__(self, said: Path, tests: Sequence[str], worked: Mapping[str, float]):
        self.said, self.worked = said, dict(worked)
        self.rank = {test: number for number, test in enumerate(tests)}

    def pytest_sessionstart(self) -> None:
        """Hypothesis leaves failing examples as they are."""
        import hypothesis

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", hypothesis.settings(), phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_PROF, self.worked[item.nodeid] * SLOWER + SLACK)  # it ends the process
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.said.exists():
            self.said.write_text(report.nodeid, "utf-8")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.said.exists():
            self.said.write_text(f"{report.nodeid}, which does not import", "utf-8")


class _Watching(_Plugin):
    """The same without any change: notes what each test enters, and how long it works."""

    def __init__(self, said: Path):
        super().__init__(said, (), {})
        self.entered: dict[str, set[tuple[str, int]]] = {"": set()}
        self.seconds: dict[str, float] = {}
        self.now = self.entered[""]
        sys.settrace(self.trace)
        threading.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            self.now.add((code.co_filename, code.co_firstlineno))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        pass

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.now = self.entered[item.nodeid] = set()
        begin, working = time.monotonic(), time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.monotonic() - begin
            self.worked[item.nodeid] = time.process_time() - working

    def write(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        found = {
            "seconds": self.seconds,
            "worked": self.worked,
            "entered": {test: sorted(functions) for test, functions in self.entered.items()},
            "modules": [name for name, module in list(sys.modules.items()) if not _is_ours(module)],
        }
        self.said.with_suffix(".json").write_text(json.dumps(found), "utf-8")


def _is_ours(module: Any) -> bool:
    """Whether a module lies in this tree, beside the environments that may lie there too."""
    file = getattr(module, "__file__", None)
    return file is None or (file.startswith(str(ROOT)) and "site-packages" not in file)


def _child(trees: Mapping[str, ast.AST], files: Sequence[str], plugin: _Plugin) -> None:
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with suppress(ValueError, OSError):
        taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MORE_MEMORY,) * 2)
    sys.meta_path.insert(0, _Changed(trees))
    chosen = [str(ROOT / "python_tests" / file) for file in files]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not cuda"]
    code = pytest.main([*options, f"--basetemp={plugin.said.parent / 'tmp'}", *chosen], plugins=[plugin])
    if isinstance(plugin, _Watching):
        plugin.write()
    os._exit(int(code))


def _came_of(
    trees: Mapping[str, ast.AST], files: Sequence[str], plugin: _Plugin, limit: float
) -> tuple[str, str, float]:
    """What comes of a child: an outcome, the test that noticed something, and seconds."""
    said, begin = plugin.said, time.monotonic()
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _child(trees, files, plugin)
        finally:
            os._exit(70)
    ended, status = 0, 0
    while not ended and time.monotonic() - begin < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also whatever it started
    seconds = time.monotonic() - begin
    if not ended:
        os.waitpid(child, 0)
        return TIMED_OUT, "", seconds
    code = os.waitstatus_to_exitcode(status)
    by = said.read_text("utf-8").removeprefix("python_tests/") if said.exists() else "a crash"
    if code == -signal.SIGPROF:
        return TIMED_OUT, "", seconds
    return (SURVIVED, "", seconds) if code == 0 else (KILLED, by, seconds)


def unchanged(files: Sequence[str], folder: Path) -> Unchanged:
    """What these files of tests do without any change; all must pass."""
    said = folder / "said"
    outcome, by, _ = _came_of({}, files, _Watching(said), 1800)
    if outcome != SURVIVED:
        raise RuntimeError(f"without any change, {by or 'a test'} fails")
    found = json.loads(said.with_suffix(".json").read_text("utf-8"))
    for name in found["modules"]:  # no child has to import them again
        with suppress(Exception):
            importlib.import_module(name)
    entered = {
        test: {(file.removeprefix(f"{OURS}/"), line) for file, line in functions}
        for test, functions in found["entered"].items()
    }
    return Unchanged(found["seconds"], found["worked"], entered, found["modules"])


def tried(
    trees: Mapping[str, ast.AST], function: Function, known: Unchanged, folder: Path
) -> tuple[str, str, float, int]:
    """What becomes of a mutant of a function: an outcome, the test that noticed it, seconds, and how many tests there
    were to notice it."""
    tests = known.tests_of(function)
    if not tests:
        return SURVIVED, "", 0.0, 0
    files = list(dict.fromkeys(test.split("::")[0].removeprefix("python_tests/") for test in tests))
    limit = SLOWER * sum(known.seconds[test] for test in tests) + WAITING
    outcome, by, seconds = _came_of(trees, files, _Plugin(folder / "said", tests, known.worked), limit)
    if outcome == KILLED:
        known.kills[f"python_tests/{by}"] += 1
    return outcome, by, seconds, len(tests)
