"""The tests that a processor, a library or a torch could change, in every setting: `make test-matrix`.

    python -m bench.matrix [--only "oneDNN: SSE4.1"] [--pythons /path/to/python ...] [--tests test_x.py]

Settings are those of bench.settings; then the operators built with one version of their vector loops (bench.vectors),
as far as this processor can run them; then other interpreters, each with a torch and the packages of the tests of its
own, which load the operators of this build. Each row runs in a copy of the tree, so nothing here is changed. Prints a
table in Markdown, as docs/same-answers.md has it; ends with an error where a row has failures.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench import vectors
from bench.settings import ROOT, SETTINGS

OPERATORS = "directed_relevance perturb perturb_probes label_margin first_flip relevance_map attack_penalty attack_step"
TESTS = [
    *(f"python_tests/test_{name}.py" for name in f"{OPERATORS} zero_levels saliency_map".split()),
    *(f"python_tests/test_{name}.py" for name in ("metric", "record", "screening", "search", "engine", "same_answers")),
]
"""What differs by machine: the operators' loops, and what is decided near 0. Reports, options and files do not."""
COPIED = ("apem_fast", "bench", "csrc", "python_tests", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@dataclass(frozen=True)
class Row:
    name: str
    python: str = sys.executable
    variables: dict[str, str] = field(default_factory=dict)
    loops: str | None = None  # one of vectors.VERSIONS


def rows(pythons: list[str]) -> list[Row]:
    settings = [
        Row(s.name, variables=s.variables | {"OMP_NUM_THREADS": str(s.threads)}) for s in SETTINGS if not s.options
    ]
    loops = [Row(f"our loops: {version}", loops=version) for version in vectors.versions_here()]
    return [*settings, *loops, *(Row(_described(python), python) for python in pythons)]


def _described(python: str) -> str:
    says = "import sys, torch; print('Python', sys.version.split()[0] + ', torch', torch.__version__)"
    return subprocess.run([python, "-c", says], check=True, capture_output=True, text=True).stdout.strip()


def run(row: Row, tests: list[str], folder: Path) -> tuple[str, bool]:
    """The last line of what pytest says, and whether all is well."""
    tree = folder / re.sub(r"\W+", "-", row.name)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        tree.mkdir(exist_ok=True)
        copy(ROOT / name, tree / name)
    if row.loops:
        vectors.built(row.loops, tree)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **row.variables, "PYTHONPATH": str(tree)}
    command = [row.python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    shutil.rmtree(tree)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
    summary = re.sub(r" in [\d.:]+s.*", "", (done.stdout.strip().splitlines() or ["nothing"])[-1]).strip("= ")
    return summary, done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="rows by name")
    parser.add_argument("--pythons", nargs="*", default=[], help="other interpreters")
    parser.add_argument("--tests", nargs="+", default=TESTS)
    arguments = parser.parse_args()
    chosen = [row for row in rows(arguments.pythons) if not arguments.only or row.name in arguments.only]
    all_well = True
    print(f"| {'setting':<30} | tests |\n| --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in chosen:
            summary, well = run(row, arguments.tests, Path(folder))
            all_well &= well
            print(f"| {row.name:<30} | {summary} |", flush=True)
    sys.exit(not all_well)


if __name__ == "__main__":
    main()
