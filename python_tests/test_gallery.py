"""The gallery of a page: two runs side by side, notes and the view in the address, pages of many images; and what an
image's file held that the network was not shown."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import tiny_networks
from browser import CHROMIUM, in_browser
from PIL import Image
from test_experiment_page import AXE, serious_faults
from typer.testing import CliRunner

from apem_fast.cli.main import app
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.report import gallery
from apem_fast.experiment.report.comparison import write_comparison
from apem_fast.experiment.report.gallery import gallery_data
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.summary import dropped_lines
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(autouse=True)
def without_sections(monkeypatch) -> None:
    """Figures take seconds, and are another test's."""
    monkeypatch.setattr("apem_fast.experiment.report.page.sections_of", lambda store, rows: [])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        tiny_networks.save_photograph(folder / f"photo{number}.png", number)
    return folder


def options(photos: Path, **changes: object) -> RunOptions:
    usual = {
        "network": "tiny_networks:tiny",
        "images": str(photos),
        "explainers": ("gradient", "random"),
        "stages": ("3-channel", "1-channel"),
        "max_epsilon": 32.0,
    }
    return RunOptions(**{**usual, **changes})


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory) -> dict[str, RunStore]:
    """Two runs of one network: the second has no Random, an Edge instead, fewer images, and clips otherwise."""
    folder = tmp_path_factory.mktemp("runs")
    other = options(photos, explainers=("gradient", "edge"), percentile=60.0, limit=3)
    return {"one": evaluate(options(photos), folder / "one"), "two": evaluate(other, folder / "two")}


# -- two runs --------------------------------------------------------------------------------------------------------


def test_two_runs_lie_side_by_side(runs):
    data = gallery_data(runs)
    assert [one["name"] for one in data["explainers"]] == [
        "Gradient · one",
        "Gradient · two",
        "Random · one",
        "Edge · two",
    ]
    assert [one["image"] for one in data["images"]] == ["photo0", "photo1", "photo2"] and data["runs"] == ["one", "two"]
    assert [one["run"] for one in data["images"][0]["predictions"]] == ["one", "two"]
    for number, store in enumerate(runs.values()):
        rows = store.results()
        for row in rows[rows["image"] != "photo3"].to_dict("records"):
            entry = data["maps"][row["image"]][f"{number}/{row['explainer']}"][row["stage"]]
            assert (entry["epsilon_minus"], entry["score"]) == (row["epsilon_minus"], row["score"])
    alone = gallery_data({"": runs["one"]})
    assert [one["key"] for one in alone["explainers"]] == ["gradient", "random"] and len(alone["images"]) == 4
    assert alone["images"][0]["predictions"] == [] and set(alone["maps"]["photo0"]) == {"gradient", "random"}


def test_an_image_that_shows_something_else_is_not_set_beside(photos, runs, tmp_path):
    for number in range(3):
        tiny_networks.save_photograph(tmp_path / "photos" / f"photo{number}.png", number if number != 1 else 9)
    other = evaluate(options(tmp_path / "photos"), tmp_path / "other")
    assert [one["image"] for one in gallery_data({"a": runs["one"], "b": other})["images"]] == ["photo0", "photo2"]


def test_each_run_says_of_its_own_prediction_whether_it_is_wrong():
    def row(prediction, correct):
        return {"image": "a", "subject": "a", "source": "", "prediction": prediction, "confidence": 0.5} | {
            "correct": correct
        }

    runs = [SimpleNamespace(name=n, by_name={"a": row(*of)}) for n, of in (("one", ("cat", True)), ("two", ("dog", 0)))]
    found = gallery._image(runs, "a", side=0)
    assert found["correct"] is True and [one["correct"] for one in found["predictions"]] == [True, False]
    assert gallery._correct(row("cat", pandas.NA)) is None


def test_a_comparison_without_common_pictures_says_so(runs, photos, tmp_path):
    bare = evaluate(options(photos, pictures=0), tmp_path / "bare")
    page = write_comparison({"one": runs["one"], "bare": bare}, tmp_path / "page.html").read_text("utf-8")
    assert "The runs have no images in common of which they kept pictures." in page


@pytest.mark.slow
@in_a_browser
def test_the_runs_differences_are_shown_and_sorted_by(runs, tmp_path):
    page = write_comparison(runs, tmp_path / "comparison.html").read_text("utf-8")
    data = gallery_data(runs)
    asked = """
      const names = () => [...document.querySelectorAll("#gallery .photograph b")].map((one) => one.textContent);
      form.elements.method.value = "gradient";
      form.elements.order.value = "runs";
      form.dispatchEvent(new Event("input"));
      return { names: names(),
        columns: [...document.querySelectorAll("#gallery .column")].map((one) => one.textContent),
        scores: [...document.querySelectorAll("#gallery .score")].map((one) => one.textContent), rows: viewRows(),
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth };"""
    found = in_browser(page, asked, tmp_path)
    gap = {
        image: maps["1/gradient"]["3-channel"]["score"] - maps["0/gradient"]["3-channel"]["score"]
        for image, maps in data["maps"].items()
    }
    assert found["errors"] == [] and found["overflow"] <= 0
    assert found["columns"] == ["Photograph", "Gradient · one", "Gradient · two"]
    assert found["names"] == sorted(gap, key=lambda image: -abs(gap[image])) and any(gap.values())
    for image, text in zip(found["names"], found["scores"][1::2]):
        change = float(re.search(r"\((.*)\)$", text)[1].replace("−", "-").replace(",", ""))
        assert change == pytest.approx(gap[image], abs=0.01)
    assert {row["run"] for row in found["rows"]} == {"one", "two"} and len(found["rows"]) == 3 * 2 * 2


@pytest.mark.slow
@in_a_browser
@pytest.mark.skipif(not Path(AXE).exists(), reason="no axe-core: npm install axe-core, or AXE_CORE=axe.min.js")
def test_axe_finds_nothing_serious_on_a_comparison(runs, tmp_path):
    assert serious_faults(write_comparison(runs, tmp_path / "comparison.html")) == []


# -- the address -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@in_a_browser
def test_notes_and_the_view_are_kept_in_the_address(runs, tmp_path):
    page = write_page(runs["one"], output=tmp_path / "page.html").read_text("utf-8")
    write = """
      form.elements.order.value = "worst";
      form.dispatchEvent(new Event("input"));
      tabs.children[1].click();
      showDetail(run.images[2], run.explainers[1]);
      note.value = "look: <b> & ear = 100 %";
      note.dispatchEvent(new Event("input"));
      const within = location.hash;
      document.getElementById("detail").close();
      await new Promise((done) => setTimeout(done, 50));
      return { within, hash: location.hash };"""
    found = in_browser(page, write, tmp_path)
    assert found["errors"] == []
    kept = dict(urllib.parse.parse_qsl(found["hash"][1:]))
    note = "look: <b> & ear = 100 %"
    assert kept == {"order": "worst", "stage": "1-channel", "note.photo2": note}
    assert dict(urllib.parse.parse_qsl(found["within"][1:])) == kept | {"image": "photo2", "explainer": "random"}
    read = """
      const own = [...document.querySelectorAll("#gallery .own-note")].map((one) => one.textContent).filter(Boolean);
      return { order: form.elements.order.value, stage: view.stage, own, open: document.getElementById("detail").open,
        note: note.value, count: document.getElementById("count").textContent, rows: viewRows() };"""
    found = in_browser(page, read, tmp_path, found["within"])
    assert found["errors"] == [] and (found["order"], found["stage"], found["open"]) == ("worst", 1, True)
    assert found["own"] == [note] and found["note"] == note
    assert {row["image"]: row["note"] for row in found["rows"]} == {
        "photo2": note,
        "photo0": "",
        "photo1": "",
        "photo3": "",
    }
    noted = in_browser(page, read, tmp_path, "#noted=yes&note.photo1=mine")
    assert noted["count"].startswith("1 to 1 of 1 that suit, of 4") and noted["own"] == ["mine"]


# -- many images -----------------------------------------------------------------------------------------------------


def test_a_page_of_many_images_keeps_within_its_size_and_says_what_is_left_out(runs, monkeypatch, tmp_path):
    assert gallery._sizes(100, 600) == (160, 100)
    side, pictured = gallery._sizes(1000, 9000)
    assert pictured == 1000 and gallery.LEAST_SIDE <= side < 60
    side, pictured = gallery._sizes(1000, 18000)
    assert side == gallery.LEAST_SIDE and 500 < pictured < 1000
    assert 19 * pictured * side**2 * gallery.BYTES_A_PIXEL <= gallery.BYTES_OF_MAPS
    monkeypatch.setattr(gallery, "BYTES_OF_MAPS", 2.5 * 5 * 48**2 * gallery.BYTES_A_PIXEL)
    data = gallery_data({"": runs["one"]})
    assert data["picture_count"] == 2 and ["photograph" in one for one in data["images"]] == [True, True, False, False]
    assert ["map" in data["maps"][f"photo{n}"]["random"]["1-channel"] for n in range(4)] == [True, True, False, False]
    assert "score" in data["maps"]["photo3"]["random"]["1-channel"]
    text = write_page(runs["one"], output=tmp_path / "page.html").read_text("utf-8")
    assert "the first 2 photographs and their maps are shown" in text


@pytest.mark.slow
@in_a_browser
def test_what_has_no_picture_is_shown_without(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(gallery, "BYTES_OF_MAPS", 2.5 * 5 * 48**2 * gallery.BYTES_A_PIXEL)
    text = write_page(runs["one"], output=tmp_path / "page.html").read_text("utf-8")
    asked = """const drawn = [...document.querySelectorAll("#gallery img")].filter((one) => one.naturalWidth);
      return { shown: drawn.length, scores: document.querySelectorAll("#gallery .score").length };"""
    found = in_browser(text, asked, tmp_path)
    assert found["errors"] == [] and (found["shown"], found["scores"]) == (2 * 3, 4 * 2)


# -- what a file held beside what was shown --------------------------------------------------------------------------


def save_all_kinds(folder: Path) -> None:
    """Pictures of each kind: with transparency that matters and that does not, with several frames, plain ones."""
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    picture = Image.fromarray(colours, "RGBA")
    picture.save(folder / "seen-through.png")
    opaque = picture.copy()
    opaque.putalpha(255)
    opaque.save(folder / "opaque.png")
    plain = picture.convert("RGB")
    plain.save(folder / "plain.jpg")
    palette = plain.quantize(16)
    palette.save(folder / "palette.gif", transparency=palette.getpixel((3, 3)))
    grey = plain.convert("L")
    grey.save(folder / "moving.gif", save_all=True, append_images=[grey.rotate(90), grey.rotate(180)])
    picture.save(folder / "both.webp", save_all=True, append_images=[picture.rotate(180)], lossless=True)


LOST = {
    "seen-through.png": "transparency dropped",
    "palette.gif": "transparency dropped",
    "moving.gif": "first frame alone",
    "both.webp": "transparency dropped, first frame alone",
    "opaque.png": "",
    "plain.jpg": "",
}


def test_what_a_picture_held_beside_what_is_shown(tmp_path):
    save_all_kinds(tmp_path / "photos")
    for name, words in LOST.items():
        path = tmp_path / "photos" / name
        photograph = Photograph(path.stem, path.stem, (), name, path)
        assert photograph.dropped() == words, name
        assert photograph.open().mode == "RGB" and photograph.open().size == (40, 30)


def test_the_run_and_its_page_say_which_images_lost_something(tmp_path):
    save_all_kinds(tmp_path / "photos")
    came = CliRunner(env={"TERM": "dumb", "COLUMNS": "200"}).invoke(
        app,
        [
            "evaluate",
            "-o",
            str(tmp_path / "run"),
            "--images",
            str(tmp_path / "photos"),
            "--network",
            "tiny_networks:tiny",
            "--explainers",
            "random",
            "--stages",
            "1-channel",
            "--max-epsilon",
            "20",
        ],
    )
    assert came.exit_code == 0, came.output
    store = RunStore(tmp_path / "run")
    lines = [
        "Transparency dropped in 3 images: both.webp, palette.gif, seen-through.png.",
        "First frame alone in 2 images: both.webp, moving.gif.",
    ]
    assert dropped_lines(store) == lines
    assert dropped_lines(store, shown=1)[0] == "Transparency dropped in 3 images: both.webp and 2 more."
    output, page = " ".join(came.output.split()), html.unescape((tmp_path / "run" / "index.html").read_text("utf-8"))
    assert all(line in output and line in page for line in lines)
    images = store.images()
    assert dict(zip(images["source"], images["dropped"])) == LOST
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert {one["source"]: one["dropped"] for one in data["images"]} == LOST


# -- given again -----------------------------------------------------------------------------------------------------


def test_evaluate_given_again_keeps_the_papers_section_and_says_that_it_was_finished(photos, tmp_path):
    run = tmp_path / "run"
    runner = CliRunner(env={"TERM": "dumb", "COLUMNS": "300"})
    chosen = ["--network", "tiny_networks:tiny", "--stages", "1-channel", "--max-epsilon", "20", "--limit", "2"]

    def command(*words: object, code: int = 0) -> str:
        came = runner.invoke(app, [*map(str, words)])
        assert came.exit_code == code, came.output
        return " ".join(came.output.split())

    def again(explainers: str, code: int = 0) -> str:
        return command("evaluate", "-o", run, "--images", photos, "--explainers", explainers, *chosen, code=code)

    def has_papers() -> bool:
        return 'id="papers"' in (run / "index.html").read_text("utf-8")

    assert "finished already" not in again("random") and not has_papers()
    command("report", run, "--paper", "--images", 0)
    assert has_papers()
    assert "was finished already (2 images, 1 explanation): nothing is computed again" in again("random")
    assert has_papers()
    again("random,uniform")  # one more
    assert has_papers() and "Uniform" in (run / "index.html").read_text("utf-8")
    command("report", run, "--images", 0)
    assert not has_papers()
    record = run / "page.json"
    record.write_bytes(record.read_bytes().replace(b"false", b"true "))
    output = again("random", code=2)
    assert "page.json is damaged" in output and "apem-fast report writes it again" in output
    command("report", run, "--images", 0)


def test_a_run_without_a_measurable_map_ends_with_a_hint_and_not_with_success(photos, tmp_path):
    (tmp_path / "none").mkdir()
    for number in range(4):
        np.save(tmp_path / "none" / f"photo{number}.npy", np.zeros((24, 24)))
    came = CliRunner(env={"TERM": "dumb", "COLUMNS": "200"}).invoke(
        app,
        [
            "evaluate",
            "-o",
            str(tmp_path / "run"),
            "--images",
            str(photos),
            "--network",
            "tiny_networks:tiny",
            "--explainers",
            f"maps:folder={str(tmp_path / 'none')!r}",
            "--stages",
            "1-channel",
        ],
    )
    output = " ".join(came.output.split())
    assert came.exit_code == 1 and "No map could be measured" in output and "the map is 0 throughout" in output
    assert not (tmp_path / "run" / "index.html").exists()
