"""The report of a run: close-ups, the page's sections in a browser, the papers' tables, the command."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas
import pytest
import torch
from browser import CHROMIUM, in_browser
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from apem_fast.cli.main import app
from apem_fast.experiment.inputs import networks
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.experiment.report import measure_sections
from apem_fast.experiment.report.closeups import closeup_picture, missing_closeups, read_closeup
from apem_fast.experiment.report.measure_reliability import agreements, ranks_by_measure, reliabilities
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.report import write_report
from apem_fast.experiment.report.sections import sections_of
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import explainer_from
from apem_fast.files.checksums import json_with_checksum


def tiny_network() -> networks.Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5))
    return networks.Network(
        "tiny", model, 24, (0.5,) * 3, (0.25,) * 3, ("tabby", "espresso", "missile", "moped", "<b>")
    )


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny_network)


OPTIONS = RunOptions(
    network="tiny",
    limit=5,
    max_epsilon=30,
    step=0.5,
    explainers=("gradient", "smooth-grad:samples=2", "smooth-grad:samples=3", "random"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny", tiny_network)
        store = evaluate(OPTIONS, tmp_path_factory.mktemp("run") / "new")
        write_report(store, images=2, paper=True)
    return store


@pytest.fixture
def without_sections(monkeypatch) -> None:
    """Figures take seconds; a test of something else need not draw them again."""
    monkeypatch.setattr("apem_fast.experiment.report.page.sections_of", lambda store, rows: [])


def page_of(store: RunStore) -> str:
    return (store.folder / "index.html").read_text("utf-8")


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


# -- close-ups -------------------------------------------------------------------------------------------------------


def test_closeups_are_of_the_maps_that_were_measured(finished):
    network, rows = tiny_network(), scored_rows(finished)[0]
    network.model.eval()
    photograph = bundled_photographs()[1]
    pixels = network.pixels(photograph.open())
    image = network.normalised(pixels[None])
    leaf = image.clone().requires_grad_()
    logits = network.model(leaf)
    label = int(logits.argmax())
    nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
    values = explainer_from("gradient")(network.model, image)[0].abs().numpy()
    summed = np.minimum(values, np.percentile(values, 99)).sum(0)
    relevance = torch.from_numpy((summed - summed.min()) / (summed.max() - summed.min()))
    (row,) = rows.query("image == @photograph.name and explainer == 'gradient' and stage == '1-channel'").to_dict(
        "records"
    )
    found = read_closeup(finished, "gradient", photograph.name)["1-channel"]
    for ray, map_ in (("minus", relevance), ("plus", 1 - relevance)):
        direction = map_ / (3 * map_.sum()) * leaf.grad[0].sign()
        assert found[ray]["epsilon"][0] == 0 and found[ray]["epsilon"][6] == pytest.approx(row[f"epsilon_{ray}"])
        for epsilon, margin in zip(found[ray]["epsilon"], found[ray]["margin"]):
            after = network.model((image + epsilon * direction).float())[0].detach()
            expected = after[label] - torch.cat([after[:label], after[label + 1 :]]).max()
            assert margin == pytest.approx(float(expected), abs=1e-4)
        seen = (image[0] + row[f"epsilon_{ray}"] * direction).float()
        assert found[ray]["prediction"] == network.categories[int(network.model(seen[None]).argmax())]
        assert (found[ray]["margin"][6] <= 0) == row[f"flipped_{ray}"] or abs(found[ray]["margin"][6]) < 1e-4
        with Image.open(closeup_picture(finished, "gradient", "1-channel", photograph.name, ray)) as saved:
            shown = np.asarray(saved).astype(int)
        expected = ((seen * 0.25 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(shown - expected).max() <= 1


def test_closeups_are_made_once(finished, tmp_path, monkeypatch, without_sections):
    rows, _ = scored_rows(finished)
    names = [photograph.name for photograph in bundled_photographs()[:3]]
    assert missing_closeups(finished, rows, names) == {names[2]: list(OPTIONS.explainers)}
    monkeypatch.setattr("apem_fast.experiment.report.report.load_network", None)  # a second report needs no network
    write_report(finished, images=2, output=tmp_path / "again.html")
    assert data_of((tmp_path / "again.html").read_text("utf-8")) == data_of(page_of(finished))


def test_a_report_that_was_stopped_keeps_what_is_done(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "copy")
    store, rows = RunStore(tmp_path / "copy"), scored_rows(finished)[0]
    names = [photograph.name for photograph in bundled_photographs()[:5]]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(store, images=5, progress=stop)
    assert list(missing_closeups(store, rows, names)) == names[4:]  # two were there, two were made


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_every_section(finished):
    page = page_of(finished)
    titles = re.findall(r'<h2 id="([\w-]+)">', page)
    assert titles[:6] == ["reading", "table-title", "spread", "pairs", "exceptions", "simplification"]
    assert {"flips", "trust", "maps-title", "papers"} <= set(titles) and "shuffled" not in titles
    for title in titles:
        if title != "reading":
            section = page[page.index(f'id="{title}"') :]
            assert re.search(r'<p class="reading-line">\s*\w', section[: section.index("</section>")])
    assert "SmoothGrad (samples=2)" in page and "SmoothGrad (samples=3)" in page  # told apart


def test_the_page_needs_no_other_file(finished):
    page = page_of(finished)
    links = re.findall(r'(?:src|href)="(.*?)"', page)
    assert all(link.startswith(("data:", "#")) or not link for link in links)
    addresses = set(re.findall(r"https?://[^\"' <)]*", page))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)  # names of namespaces


def test_names_are_escaped(finished):
    page = page_of(finished)
    raw = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in raw and "<b>" in {one["prediction"] for one in data_of(page)["images"]}
    assert "now “<b>" not in page


def test_flagged_maps_are_counted_and_shown_without_numbers(finished, tmp_path, without_sections):
    shutil.copytree(finished.folder, tmp_path / "copy")
    store = RunStore(tmp_path / "copy")
    rows = store.read(0, "gradient").to_dict("records")
    numbers = ("epsilon_minus", "epsilon_plus", "score")
    for row in rows[:3]:
        row |= dict.fromkeys(numbers, float("nan")) | {"flag": "the map is 0 throughout"}
    store.write(0, "gradient", rows)
    page = write_page(store).read_text("utf-8")
    assert "Gradient: 3 (the map is 0 throughout)" in page
    first = data_of(page)["maps"][rows[0]["image"]]["gradient"][rows[0]["stage"]]
    assert first["flag"] == "the map is 0 throughout" and "score" not in first
    for row in rows:
        row |= dict.fromkeys(numbers, float("nan")) | {"flag": "no"}
    store.write(0, "gradient", rows)
    page = write_page(store).read_text("utf-8")
    assert f"Gradient: {len(rows)} (no)" in page


def test_an_explainer_without_any_score_is_left_out(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "copy")
    store = RunStore(tmp_path / "copy")
    rows = store.read(0, "gradient").to_dict("records")
    store.write(0, "gradient", [row | {"score": float("nan"), "flag": "no ray"} for row in rows])
    shown = sections_of(store, scored_rows(store)[0])
    assert [one.key for one in shown][:4] == ["spread", "pairs", "exceptions", "simplification"]
    assert "Random" in shown[0].figures[0][1] and "Gradient" not in shown[0].figures[0][1]


def test_filtered_maps_are_shown(finished, tmp_path, without_sections):
    shutil.copytree(finished.folder, tmp_path / "copy")
    (tmp_path / "copy" / "filter").mkdir()
    Image.new("RGB", (40, 20), "red").save(tmp_path / "copy" / "filter" / "filtered.png")
    table = "image,score_after,stopped\ncat,12.5,<i>\nrocket,1234,x\n"
    (tmp_path / "copy" / "filter" / "filtered.json").write_bytes(json_with_checksum({"table": table}))
    page = write_page(RunStore(tmp_path / "copy")).read_text("utf-8")
    section = page[page.index('id="filter"') :]
    section = section[: section.index("</section>")]
    assert 'src="data:image/webp;base64,' in section and "&lt;i&gt;" in section
    assert 'data-value="12.5">12.5<' in section and ">1,234<" in section and "score after" in section
    assert 'id="filter"' not in page_of(finished)


def test_other_measures_have_a_table(finished):
    rows, _ = scored_rows(finished)
    with_measure = rows.assign(selectivity=np.where(rows["stage"] == "1-channel", 0.25, 0.5))
    section = next(one for one in sections_of(finished, with_measure) if one.key == "measures")
    (_, table), (_, means), (_, meanings) = section.tables
    assert table.columns == means.columns == ("stage", "explanation", "Selectivity")
    assert [cell.text for cell in table.rows[4]] == ["1-channel", "Gradient", "0.250"]
    assert [cell.text for cell in meanings.rows[0]][:2] == ["Selectivity", "lower"]


def made_up_rows(images: int = 12) -> pandas.DataFrame:
    """Three methods that one measure ranks alike on every image, another one backwards, and APEM at random."""
    generator = np.random.default_rng(0)
    keys = ("gradient", "lrp", "grad-cam")
    return pandas.DataFrame(
        {
            "image": f"{n:02d}",
            "stage": "1-channel",
            "explainer": key,
            "score": generator.random(),
            "deletion": k + 0.1 * generator.random(),
            "insertion": k + 0.1 * generator.random(),
        }
        for n in range(images)
        for k, key in enumerate(keys)
    )


def test_a_measure_that_ranks_alike_on_every_image_is_more_reliable_than_one_that_does_not():
    rows = made_up_rows()
    ranks = ranks_by_measure(rows, "1-channel", ["gradient", "lrp", "grad-cam"])
    first, second, last = reliabilities(ranks)
    assert {first.measure, second.measure} == {"deletion", "insertion"} and first.alpha == second.alpha == 1
    assert last.measure == "score" and last.alpha < 0.5 and first.surely_better and first.images == 12
    agreement = agreements(ranks)
    assert agreement["deletion", "insertion"] == pytest.approx(-1) and agreement["score", "score"] == pytest.approx(1)
    assert "chance does not explain it for Deletion and Insertion" in measure_sections._standing([first, second, last])
    lacking = rows.assign(deletion=rows["deletion"].where(rows["image"] > "02"))
    assert ranks_by_measure(lacking, "1-channel", ["gradient", "lrp"])["score"].shape == (9, 2)
    assert ranks_by_measure(lacking, "1-channel", ["gradient"]) == {}


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_every_table_can_be_sorted(finished, tmp_path):
    script = """
      const found = [];
      for (const table of document.querySelectorAll("table.sortable")) {
        [...table.tHead.rows[0].cells].forEach((head, i) => {
          for (const direction of [1, -1]) {
            head.querySelector("button").click();
            const text = (cell) => cell.dataset.value ?? cell.textContent.trim();
            const shown = [...table.tBodies[0].rows].map((row) => text(row.cells[i]));
            found.push([head.ariaSort, shown]);
          }
        });
      }
      return { found };"""
    came = in_browser(page_of(finished), script, tmp_path)
    assert came["errors"] == [] and len(came["found"]) > 50
    for direction, shown in came["found"]:
        try:
            values = [float("-inf") if value == "nan" else float(value) for value in shown]
        except ValueError:
            values = None  # words: the browser's own order, which knows more than code points
        if values is not None:
            assert values == sorted(values, reverse=direction == "descending"), (direction, shown)
    assert {direction for direction, _ in came["found"]} == {"ascending", "descending"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_choosing_an_image(finished, tmp_path):
    name = bundled_photographs()[1].name
    script = """
      const dialog = document.getElementById("detail");
      const state = () => ({
        open: dialog.open,
        title: document.getElementById("detail-title").textContent,
        closeups: document.querySelectorAll("#detail-rays .closeup").length,
        curves: [...document.querySelectorAll("#detail-rays polyline")]
          .map((line) => line.getAttribute("points").split(" ").length),
        captions: [...document.querySelectorAll("#detail-rays figcaption")].map((one) => one.textContent),
        markup: document.querySelectorAll("#detail b b, #detail-rays b").length,
      });
      const addressed = state();
      const images = [...document.querySelectorAll("#detail img")];
      const decoded = await Promise.all(images.map((image) => image.decode().then(() => true, () => false)));
      dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
      dialog.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
      const neighbour = location.hash;
      dialog.close();
      const maps = [...document.querySelectorAll("#gallery .map")];
      maps[maps.length - 1].click();
      const shown = decoded.every(Boolean);
      return { addressed, shown, pictures: images.length, neighbour, last: state(), address: location.hash };"""
    address = f"#image={name}&explainer=smooth-grad%3Asamples%3D3"
    came = in_browser(page_of(finished), script, tmp_path, address)
    assert came["errors"] == []
    first = came["addressed"]
    assert first["open"] and first["title"].startswith("SmoothGrad (samples=3): ") and first["closeups"] == 3
    assert first["curves"] == [9] * 6  # two rays at three stages, from 0 on
    assert came["shown"] and came["pictures"] == 4 + 3 + 3 * 4 and first["markup"] == 0
    assert all(("ε" in text) == (i % 2 == 0) for i, text in enumerate(first["captions"]))
    assert came["neighbour"] == f"#image={bundled_photographs()[0].name}&explainer=random"
    last = came["last"]  # the fifth photograph has no close-up
    assert last["open"] and last["title"].startswith("Random: ") and last["closeups"] == 0
    assert came["address"].startswith(f"#image={bundled_photographs()[4].name}")


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command(finished, tmp_path, without_sections):
    page = tmp_path / "report.html"
    came = CliRunner().invoke(app, ["report", str(finished.folder), "--paper", "--images", "2", "-o", str(page)])
    assert came.exit_code == 0 and str(page) in came.output.replace("\n", "")
    assert "P2 Table 4.3a" in page.read_text("utf-8")
    came = CliRunner().invoke(app, ["report", str(finished.folder), "--images", "0", "-o", str(page)])
    assert came.exit_code == 0 and "P2 Table 4.3a" not in page.read_text("utf-8")


@pytest.mark.parametrize("what", ["nothing", "no results", "only flags"])
def test_folders_without_anything_to_report(what, finished, tmp_path):
    words = {
        "nothing": "holds no run",
        "no results": "holds no finished results yet",
        "only flags": "all 15 are flagged",
    }
    if what != "nothing":
        shutil.copytree(finished.folder, tmp_path / "copy")
        for shard in (tmp_path / "copy" / "shards").glob("*.parquet"):
            if "images" not in shard.name and (what == "no results" or "gradient" not in shard.name):
                shard.unlink()
    if what == "only flags":
        store = RunStore(tmp_path / "copy")
        rows = store.read(0, "gradient").to_dict("records")
        store.write(0, "gradient", [row | {"flag": "no ray", "score": float("nan")} for row in rows])
    came = CliRunner().invoke(app, ["report", str(tmp_path / "copy"), "--images", "0"])
    assert came.exit_code == 2 and words[what] in came.output.replace("\n", " ") and "Traceback" not in came.output
