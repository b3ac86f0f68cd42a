"""The papers' study by one command, and runs set side by side, on networks small enough for a test."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

from apem_fast.cli.main import app
from apem_fast.experiment.report.comparison import Run, agreement, medians, named, write_comparison
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.study import METHODS, Study
from apem_fast.explain import BASELINES

OPTIONS = RunOptions(
    network="tiny_networks:tiny", limit=6, explainers=("gradient", "random", "uniform"), max_epsilon=64.0, pictures=0
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in the random maps alone."""
    folder = tmp_path_factory.mktemp("runs")
    other = dataclasses.replace(OPTIONS, seed=1, percentile=90.0)
    return [evaluate(one, folder / name) for name, one in (("first", OPTIONS), ("second", other))]


def test_runs_of_one_network_are_compared_image_by_image(runs, tmp_path):
    page = write_comparison(named(runs), tmp_path / "comparison.html").read_text("utf-8")
    assert "2 runs compared" in page and "first less the others, image by image" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    one, other = (Run.of(name, store) for name, store in named(runs).items())
    a, b = (run.scores("1-channel")["gradient"] for run in (one, other))
    assert f"{np.median(a - b.loc[a.index]):.1f}".replace("-", "−") in page


def test_two_runs_of_the_same_images_are_resampled_together():
    """Two networks of the same scores rank alike whichever images are drawn, if the same are drawn for both."""
    generator = np.random.default_rng(0)
    images = [f"image {i}" for i in range(9)]
    rows = pandas.DataFrame(
        {"image": image, "explainer": key, "stage": "1-channel", "score": generator.normal()}
        for image in images
        for key in "abc"
    )
    names = {key: key.upper() for key in "abc"}
    one, same = (Run(name, name, rows, names) for name in ("one", "same"))
    interval = agreement([one, same]).tables[0][1].rows[0][-1].text
    assert interval == "1.00 to 1.00"
    apart = dataclasses.replace(same, rows=rows.assign(image="another " + rows["image"]))
    low, high = agreement([one, apart]).tables[0][1].rows[0][-1].text.replace("−", "-").split(" to ")
    assert float(low) < 1 and float(high) == 1


def test_few_images_have_no_interval():
    rows = pandas.DataFrame(
        {"image": str(i), "explainer": key, "stage": "1-channel", "epsilon_minus": 1.0, "epsilon_plus": 2.0 + i}
        | {"score": 1.0 + i, "flipped_minus": True, "flipped_plus": True}
        for i in range(6)
        for key in "ab"
    )
    for images, there in ((5, False), (6, True)):
        run = Run("one", "one", rows[rows["image"].astype(int) < images], {"a": "A", "b": "B"})
        same = dataclasses.replace(run, name="same")
        (_, medians_table), *_ = medians([run, same]).tables
        (_, taus), *_ = agreement([run, same]).tables
        assert all((line[3].text != "–") == there for line in medians_table.rows)
        assert (taus.rows[0][-1].text != "–") == there


def test_a_run_is_not_compared_with_itself(runs):
    with pytest.raises(ValueError, match="at least two runs"):
        named(runs[:1])
    with pytest.raises(ValueError, match="must differ"):
        named([runs[0], runs[0]])


def test_the_papers_protocol():
    study = Study.of_papers(images="photographs", networks={"vgg16": "a.pth", "resnet50": "b.pth"})
    assert list(study.runs) == ["vgg16", "resnet50"]
    for options in study.runs.values():
        assert options.explainers == METHODS and len(options.stages) == 3 and options.shuffles == 10
        assert (options.selection, options.count, options.percentile, options.step) == ("both", 5000, 99.0, 1.0)


def test_what_is_missing_is_named_before_anything_is_computed(tmp_path):
    folder = tmp_path / "study"
    arguments = ["study", "-o", folder, "--images", "photographs", "--network", "vgg16=nowhere.pth", "--count", 40]
    came = CliRunner(env={"TERM": "dumb", "COLUMNS": "200"}).invoke(app, [*map(str, arguments)])
    assert came.exit_code == 2 and not folder.exists()
    assert "the file of its weights" in came.output and "nowhere.pth" in came.output
    few = Study.of_papers(images="photographs", networks={"tiny_networks:tiny": None}, count=40)
    (sentence,) = few.missing()
    assert re.search(r"two sets of 40 images need at least 80 \(there are \d+\)", sentence)


@pytest.mark.slow
def test_a_small_study_from_beginning_to_end(tmp_path):
    study = Study(
        runs={
            name: dataclasses.replace(
                OPTIONS, network=f"tiny_networks:{name}", explainers=("gradient", "lrp"), shuffles=1
            )
            for name in ("tiny", "pooled")
        }
    )
    assert study.missing() == []
    assert all(seconds > 0 for seconds in study.predicted_seconds().values())
    finished = study.run(tmp_path / "study")
    reports = [one.page for one in finished]
    assert (tmp_path / "study" / "index.html").exists() and len(reports) == 2
    assert [len(one.filtered) for one in finished] == [3 * 2 * 2] * 2 and finished[0].audit is None
    assert all("The papers’ claims" in page.read_text("utf-8") for page in reports)
    for page in reports:  # the filter's picture and table, of three photographs, two methods and two stages
        assert 'id="filter"' in page.read_text("utf-8")
        assert len((page.parent / "filter" / "filtered.csv").read_text().splitlines()) == 1 + 3 * 2 * 2
    before = [store.read_bytes() for store in sorted(Path(tmp_path / "study").rglob("*.parquet"))]
    assert [one.page for one in study.run(tmp_path / "study")] == reports  # a second time finds everything done
    assert before == [store.read_bytes() for store in sorted(Path(tmp_path / "study").rglob("*.parquet"))]


def test_a_quick_study_is_the_six_methods_and_the_baselines_in_the_folder_itself(tmp_path, monkeypatch):
    """The same study with a tiny network: it prints the table, the filter, the audit and its page."""
    quick = Study.quick()
    (options,) = quick.runs.values()
    assert options.explainers == (*METHODS, *BASELINES) and options.shuffles == 0
    small = dataclasses.replace(
        quick,
        runs={".": dataclasses.replace(OPTIONS, explainers=("gradient", "random"), limit=14)},
        filtered=("cat",),
        audited=4,
    )
    monkeypatch.setattr(Study, "quick", lambda device: small)
    folder = tmp_path / "study"
    came = CliRunner(env={"TERM": "dumb", "COLUMNS": "200"}).invoke(app, ["study", "--quick", "-o", str(folder)])
    assert came.exit_code == 0, came.output
    assert "4 of 4 audited rays exact" in came.output and "APEM: epsilon+ less epsilon-" in came.output
    assert len(re.findall(r"^cat \(.*\), Gradient at .*: score", came.output, re.MULTILINE)) == 2
    assert (folder / "index.html").exists() and (folder / "results.csv").exists()
