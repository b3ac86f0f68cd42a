"""The Python examples of README and docs run: those of a page one after the other, as a reader would.

A page says "your model" and "your images"; the names it takes for granted stand in `yours`, small enough for a test. A
block marked ```python no-run needs what a test cannot have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What python_tests/test_readme.py and test_siamese_pair.py run, and hold to what the text says of it.
RUN_ELSEWHERE = {("README.md", 0), ("siamese.md", 0)}


def blocks(page: Path) -> list[tuple[int, str]]:
    """The examples of a page that run here, with their numbers."""
    found = enumerate(FENCE.findall(page.read_text("utf-8")))
    return [(i, code) for i, (info, code) in found if info != " no-run" and (page.name, i) not in RUN_ELSEWHERE]


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
    monkeypatch.chdir(tmp_path)
    names = yours()
    for number, code in blocks(page):
        exec(compile(code, f"{page.name}, example {number + 1}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
