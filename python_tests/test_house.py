"""The rooms of the house, held against the code: a file imports only from rooms above its own, as docs/inside.md has
it; what `make check` needs is pinned."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import apem_fast

ROOT = Path(__file__).parents[1]
PACKAGE = Path(apem_fast.__file__).parent  # which may be installed somewhere else

# From the top down, as docs/inside.md has them: a room, or loose files, and those of the same line know each other.
FLOORS = (
    ("callers", "extras", "papers", "progress", "files", "results"),
    ("search", "importing", "seeding", "similarity", "ops", "cmake"),
    ("running", "validation", "relevance", "randomised", "options"),
    ("explain",),
    ("probing",),
    ("metric",),
    ("margin_curve", "filter", "measures", "adapters"),
    ("experiment", "siamese"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The rooms of this package that a file imports from, also within functions, and for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "apem_fast":
            found.update(f"apem_fast.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
    return {name.split(".")[1] for name in found if name.startswith("apem_fast.")} - {"__version__", "_C"}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py" and path.parent != PACKAGE]
LOOSE = [path for path in sorted(PACKAGE.glob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path in FILES + LOOSE}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_file_imports_only_from_the_rooms_above_its_own(room):
    for path in (path for path in FILES + LOOSE if room_of(path) == room):
        below = {other for other in imports_of(path) if other in FLOOR and FLOOR[other] > FLOOR[room]}
        assert not below, f"{path.relative_to(PACKAGE)} imports from {', '.join(sorted(below))}"


def test_siamese_and_experiment_do_not_know_each_other_and_nothing_imports_the_command_line():
    for path in FILES + LOOSE:
        imported, room = imports_of(path), room_of(path)
        assert not {room, *imported} >= {"siamese", "experiment"} or room == "cli", path
        assert "cli" not in imported or room == "cli", path


def calls_in(path: Path) -> set[str]:
    """The names of what a file calls, without what they belong to."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}


def test_one_file_runs_the_model_on_points_of_rays():
    """Whoever makes points of rays is named here; of these only the prober in batches runs a model."""
    searching = [path for path in FILES + LOOSE if FLOOR[room_of(path)] >= FLOOR["probing"]]
    makes = {"perturb_probes", "perturb_probes_into", "perturb"}
    making = {str(path.relative_to(PACKAGE)) for path in searching if makes & calls_in(path)}
    assert making == {"probing/rays.py"}
    asking = {str(path.relative_to(PACKAGE)) for path in searching if "inputs" in calls_in(path)}
    making, looking = {"probing/batch_prober.py", "probing/columns.py"}, {"margin_curve.py", "metric/evaluator.py"}
    assert asking - {"measures/removal.py"} == making | looking  # the first's inputs are others; the last hand them out
    runs_a_model = {"model", "_model", "logits_of", "checked_logits"}
    for path in [PACKAGE / "margin_curve.py", *(path for path in searching if room_of(path) == "probing")]:
        assert path.name == "batch_prober.py" or not runs_a_model & calls_in(path), path
    shows = [path for path in (PACKAGE / "experiment").rglob("*.py") if path.parent.name != "inputs"]
    assert not [path for path in shows if {"logits_of", "checked_logits"} & calls_in(path) or "model" in calls_in(path)]


def test_search_knows_numbers_and_no_models():
    for path in (PACKAGE / "search").glob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8").replace("torchrun", ""), path


def test_what_make_check_runs_is_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert all("==" in requirement for requirement in extras["check"])


def test_contributing_names_only_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:apem_fast|bench|csrc|python_tests)/[^`\s]*)`", text)
    assert len(named) > 20
    missing = [name for name in named if not (ROOT / name).exists() and not (PACKAGE.parent / name).exists()]
    assert not missing
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()}
    assert set(re.findall(r"`?make ([a-z-]+)", text)) <= targets


def test_what_several_build_systems_have_to_say_is_the_same_in_all():
    """Which torch the operators are compiled for, that no multiplication is contracted, and the version."""

    def read(path: str) -> str:
        return (ROOT / path).read_text(encoding="utf-8")

    target = re.search(r'^TORCH_TARGET = "(0x\w+)"', read("setup.py"), re.MULTILINE)[1]
    for path in ("CMakeLists.txt", "examples/cpp/CMakeLists.txt", "python_tests/emulated.py"):
        assert set(re.findall(r"TORCH_TARGET_VERSION=(0x\w+)", read(path))) == {target}, path
    for path in ("setup.py", "CMakeLists.txt", "csrc/emulator/tests/CMakeLists.txt", "python_tests/emulated.py"):
        assert "-ffp-contract=off" in read(path), path
    version = apem_fast.__version__
    assert f"version: {version}\n" in read("CITATION.cff")
    assert f"apem_fast-{version}-" in read("docs/install.md")


def test_the_percentile_of_the_papers_is_written_once():
    for path in PACKAGE.rglob("*.py"):
        assert path.name == "papers.py" or not re.search(r"\b99\.0\b", path.read_text(encoding="utf-8")), path


def test_files_are_renamed_into_their_place_by_one_room():
    for path in PACKAGE.rglob("*.py"):
        renames = re.search(r"(part|partial|neighbour)\.replace\(", path.read_text(encoding="utf-8"))
        assert path.parts[-2:] == ("files", "whole.py") or not renames, path
