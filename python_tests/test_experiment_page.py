"""The page's controls, in a browser where there is one: filters, order, what the address keeps, and accessibility."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_networks

from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for number in range(5):
        tiny_networks.save_photograph(folder / "photos" / f"photo{number}.png", number)
    options = RunOptions(
        network="tiny_networks:tiny",
        images=str(folder / "photos"),
        explainers=("gradient", "edge", "random"),
        stages=("3-channel", "1-channel"),
        max_epsilon=32,
    )
    return write_page(evaluate(options, folder / "run"))


def dom(page: Path, fragment: str = "", script: str = "") -> str:
    """What the page has become after its script and another one have run."""
    if script:
        changed = page.with_name("changed.html")
        changed.write_text(page.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        page = changed
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{page}{fragment}"], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_the_page_holds_all_pictures_and_says_what_tables_and_figures_are(page):
    text = page.read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["images"]) == data["image_count"] == 5
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert tables and all("<caption" in table for table in tables)
    assert all('scope="' in head for head in re.findall(r"<th[ >][^>]*>?", text))
    assert all(
        'role="img" aria-label="' in figure
        for figure in re.findall(r'<figure class="plots" data.*?<svg', text, re.DOTALL)
    )


@pytest.mark.slow
@in_a_browser
def test_filters_and_order_come_from_the_address(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])
    score = {name: data["maps"][name]["gradient"]["1-channel"]["score"] for name in data["maps"]}
    shown = dom(page, "#stage=1-channel&method=gradient&order=best")
    gallery = shown[shown.index('id="gallery"') : shown.index("</main>")]
    names = re.findall(r"<figcaption><b>(photo\d)</b>", gallery)
    assert [score[name] for name in names] == sorted(score.values(), reverse=True)
    assert "Edge of" not in gallery and "Gradient of" in gallery
    one = dom(page, "#text=photo3")
    assert "1 to 1 of 1 that suit, of 5 photographs" in one


@pytest.mark.slow
@in_a_browser
def test_the_view_is_saved_as_it_is_shown(page):
    script = (
        "const p = document.createElement('pre'); p.id = 'out'; p.textContent = SAVED['view.csv']()[0];"
        "document.body.append(p);"
    )
    saved = html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom(page, "#text=photo3", script), re.DOTALL)[1])
    lines = saved.strip().splitlines()
    assert lines[0].startswith("image,prediction,correct,explainer,stage,epsilon_minus") and len(lines) == 1 + 3 * 2
    assert all(line.startswith("photo3,") for line in lines[1:])


@pytest.mark.slow
@in_a_browser
@pytest.mark.skipif(not Path(AXE).exists(), reason="no axe-core: npm install axe-core, or AXE_CORE=axe.min.js")
def test_axe_finds_nothing_serious(page):
    assert serious_faults(page) == []


def serious_faults(page: Path) -> list[list[str]]:
    """What axe-core finds of impact "serious" or "critical": impact, rule and element."""
    script = Path(AXE).read_text("utf-8") + (
        ";axe.run(document, {resultTypes: ['violations']}).then((found) => { const p = document.createElement('pre');"
        "p.id = 'axe'; p.textContent = JSON.stringify(found.violations.map((v) => [v.impact, v.id, v.nodes[0].html]));"
        "document.body.append(p); });"
    )
    found = json.loads(html.unescape(re.search(r'<pre id="axe">(.*?)</pre>', dom(page, "", script), re.DOTALL)[1]))
    return [one for one in found if one[0] in ("serious", "critical")]
