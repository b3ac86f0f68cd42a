"""The examples of README and docs run: those of a page one after the other, as a reader would; the notebook's too.

A page says "your model" and "your images"; the names it takes for granted stand in `yours`, small enough for a test.
Commands are parsed as `apem-fast` would; the reference has every public name; each page can be reached."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_EVERYWHERE = ("timm", "torchvision", "transformers")  # libraries that the package does not ask for
# What python_tests/test_readme.py and test_siamese_pair.py run, and hold to what the text says of it. The site's first
# page has README's first example.
RUN_ELSEWHERE = {("README.md", 0), ("siamese.md", 0), ("index.md", 0)}


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python examples of a page that run here, with their numbers."""
    python = [code for language, code in FENCE.findall(page.read_text("utf-8")) if language == "python"]
    return [(i, code) for i, code in enumerate(python) if (page.name, i) not in RUN_ELSEWHERE]


def commands(page: Path) -> list[list[str]]:
    """The arguments of each `apem-fast`, or `-m apem_fast`, in a page's blocks."""
    found = []
    for _, code in FENCE.findall(page.read_text("utf-8")):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "apem" in line else []
            if words[:1] == ["apem-fast"]:
                found.append(words[1:])
            elif "apem_fast" in words and words[words.index("apem_fast") - 1] == "-m":
                found.append(words[words.index("apem_fast") + 1 :])
    return found


class Segmenter(torch.nn.Module):
    """Twenty-one classes for each pixel, in a dictionary, as torchvision's segmentation networks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 21, 15, padding=7)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.layer(images)}


def yours() -> dict[str, object]:
    import torchvision

    import apem_fast as af

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(num_classes=300).eval()
        permuted = torchvision.models.resnet18(num_classes=300).eval()
        segmenter = Segmenter().eval()
        face_network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8)).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=generator)
    images, others = 2 * pixels - 1, 2 * torch.rand(2, 3, 32, 32, generator=generator) - 1
    relevance = af.relevance_map(af.explain.Gradient()(model, images))
    return {
        "af": af,
        "torch": torch,
        "model": model,
        "trained_on_permuted_labels": permuted,
        "segmenter": segmenter,
        "face_network": face_network,
        "reference": torch.rand(1, 8, generator=generator),
        "pixels": pixels,
        "images": images,
        "relevance": relevance,
        "other_images": others,
        "relevance_of_others": af.relevance_map(af.explain.Gradient()(model, others)),
        "x": 16,
        "y": 16,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")  # whose networks stand for the reader's
    monkeypatch.chdir(tmp_path)
    names = yours()
    for number, code in blocks(page):
        missing = [name for name in NOT_EVERYWHERE if importlib.util.find_spec(name) is None]
        if any(f"from {name} import" in code or f"import {name}\n" in code for name in missing):
            continue
        exec(compile(code, f"{page.name}, example {number + 1}", "exec"), names)


def test_every_block_says_in_which_language_it_is():
    """A block of Python that is not called so would never be run."""
    for page in PAGES:
        for language, code in FENCE.findall(page.read_text("utf-8")):
            assert language in {"", "python", "bash", "cmake", "bibtex"}, (page.name, language)
            assert language == "python" or "import apem_fast as" not in code, page.name


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_have_the_options_that_it_says(page):
    from typer.main import get_command

    from apem_fast.cli.main import app

    for words in commands(page):
        command, path = get_command(app), []
        while hasattr(command, "commands"):
            path.append(words[len(path)])
            command = command.commands[path[-1]]
        # Numbers and files are looked at too late for this: "..." stands for more of the same.
        given = [word for word in words[len(path) :] if word != "..."]
        known = {option for parameter in command.params for option in getattr(parameter, "opts", ())}
        for word in given:
            assert not word.startswith("-") or word in known, (path, word)


def test_the_sites_first_example_is_readmes():
    first = [
        re.search(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)[1]
        for page in (ROOT / "README.md", DOCS / "index.md")
    ]
    assert first[0] == first[1]


def test_the_notebook_runs(monkeypatch, tmp_path):
    """Its cells, in their order and in one namespace; what they draw goes nowhere."""
    import matplotlib

    pytest.importorskip("efficientnet_lite_pytorch")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "quickstart.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, object] = {}
    for number, code in enumerate(cells):
        exec(compile(code, f"quickstart.ipynb, cell {number + 1}", "exec"), names)
    assert names["results"]["Gradient"].score[0] == 4  # what the README says of the cat
    assert bool((names["filtered"].score_after >= names["filtered"].score_before).all())


# Where public names stand, and the module that each is called by in the reference.
PUBLIC = (
    "apem_fast",
    "apem_fast.explain",
    "apem_fast.measures",
    "apem_fast.ops",
    "apem_fast.search",
    "apem_fast.siamese",
    "apem_fast.siamese.examples",
    "apem_fast.siamese.faces",
    "apem_fast.experiment.networks",
)


def test_the_reference_has_every_public_name_and_no_other():
    pages = "\n".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    described = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(described) == len(set(described))

    def of(path: str) -> object:
        module, _, name = path.rpartition(".")
        return importlib.import_module(path) if path in PUBLIC else getattr(importlib.import_module(module), name)

    there = [of(path) for path in described]  # raises where there is none of this name
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            if f"{module}.{name}" in PUBLIC:
                continue
            value = getattr(importlib.import_module(module), name)
            assert any(value is one for one in there), f"{module}.{name} is not in the reference"


def test_the_map_from_the_papers_to_the_code_names_what_exists():
    """Every function and every test in the tables of docs/papers.md; every equation and algorithm has a row."""
    text = (DOCS / "papers.md").read_text("utf-8").split("## From the text to the code")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    rows = [row for row in rows if row[1] != "function"]
    for passage, functions, tests in rows:
        for path in re.findall(r"`([^`]+)`", functions):
            value, left = importlib.import_module("apem_fast"), path.split(".")
            while left:
                name = left.pop(0)
                if not hasattr(value, name):
                    importlib.import_module(f"{value.__name__}.{name}")
                value = getattr(value, name)
        named = re.findall(r"`([^`]+)::(\w+)`", tests)
        assert named and path, passage
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / "python_tests" / file).read_text("utf-8"), re.MULTILINE), test
    said = " ".join(row[0] for row in rows)
    for one in ("equation 1)", "equation 2)", "Algorithm 1:", "Algorithm 2:", "Algorithms 2 and 3", "Algorithm 4"):
        assert one in said, one
    numbers = {int(one) for one in re.findall(r"\b(\d+)\b", " ".join(re.findall(r"equations? ([\d, and to]+)", said)))}
    assert {7, 10, 13, 15, 18, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 36, 37, 38} <= numbers


def test_the_rays_of_the_census_are_those_of_its_file():
    """README and pages count rays, the photographs' among them, and say bounds: rounded up."""
    found = json.loads((ROOT / "bench/results/census.json").read_text("utf-8"))["results"]
    photographs = found["networks"][-1]["rays"]
    rays, misses = found["total"]["rays"], found["total"]["misses"]
    assert sum(one["rays"] for one in found["networks"]) == rays and misses == len(found["wrong"]) == 0
    for page, said in {
        "README.md": (f"On {rays:,} of {rays:,} rays", f"({photographs} of them)"),
        "docs/exactness.md": (f"of {rays:,} rays", f"({photographs} of them) 0 differed"),
        "docs/python.md": (f"0 of {rays:,} rays",),
        "docs/measured.md": (f"0 of {rays:,} |",),
    }.items():
        assert all(one in (ROOT / page).read_text("utf-8") for one in said), page
    bounds = [100 * (1 - 0.05 ** (1 / count)) for count in (rays, photographs)]  # without a miss, in closed form
    assert [math.ceil(100 * bounds[0]), math.ceil(bounds[1])] == [6, 1]
    text = " ".join((DOCS / "exactness.md").read_text("utf-8").split())
    assert "by .06 % (95 % confidence, Clopper and Pearson), the 308 alone by 1 %" in text


def test_the_list_for_language_models_has_every_page():
    listed = set(re.findall(r"\]\(([^)]+)\)", (DOCS / "llms.txt").read_text("utf-8")))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_pictures_stay_small():
    pictures = [*DOCS.rglob("*.png"), *DOCS.rglob("*.svg")]
    assert sum(picture.stat().st_size for picture in pictures) < 1.5e6


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    import subprocess
    import sys

    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "llms.txt").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
