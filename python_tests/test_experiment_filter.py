"""Filtering photographs: what is written, the figure's panels, and the command as a user meets it."""

from __future__ import annotations

import dataclasses
import re
import tempfile

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from test_experiment import tiny_network
from typer.testing import CliRunner

import apem_fast as af
from apem_fast.cli import main as cli
from apem_fast.experiment.filter.figures import before_and_after
from apem_fast.experiment.filter.filtered import FilteredPhotograph
from apem_fast.experiment.filter.maps import FilterOptions, filter_photographs, photographs_named
from apem_fast.experiment.inputs import networks
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions

OPTIONS = FilterOptions(network="tiny", stages=("1-channel",), max_epsilon=30, step=0.5, batch_size=8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny_network)


def names_in(folder):
    """Without the digests of pictures."""
    return sorted(re.sub(r"\.[0-9a-f]{16}\.pt$", ".pt", path.name) for path in folder.iterdir())


def command(*arguments):
    return CliRunner(env={"TERM": "dumb", "COLUMNS": "100"}).invoke(cli.app, ["filter", *map(str, arguments)])


def test_photographs_are_filtered_and_written(tmp_path):
    heard = []
    done = filter_photographs(OPTIONS, photographs_named(["cat", "flower"]), tmp_path, lambda *now: heard.append(now))
    network = networks.load_network("tiny")
    for one in done:
        (photograph,) = photographs_named([one.name])
        pixels = network.pixels(photograph.open())[None]
        images = network.normalised(pixels)
        maps = af.relevance_map(af.explain.Gradient()(network.model, images), None, 99.0, "sum")
        expected = af.filter_relevance(network.model, images, maps, max_epsilon=30, step=0.5)
        saved = FilteredPhotograph.load(tmp_path / f"{photograph.name}.gradient.1-channel.{photograph.digest}.pt")
        assert torch.equal(saved.filtered, expected.relevance[0])
        assert one.numbers["stopped"] == expected.reasons[0]
        assert torch.equal(one.curve[1], expected.curves[0].score)
    table = pandas.read_csv(tmp_path / "filtered.csv")
    assert table["image"].tolist() == ["cat", "flower"] and (table["score_after"] >= table["score_before"]).all()
    assert Image.open(tmp_path / "filtered.png").size[0] > 500
    assert {name for name, *_ in heard} == {"cat, gradient, 1-channel", "flower, gradient, 1-channel"}
    axes = before_and_after(done).axes
    titles = ["photograph", "1-channel", "filtered", "score as values go"]
    assert len(axes) == 2 * 4 and [axis.get_title() for axis in axes[:4]] == titles


def test_methods_and_stages_in_one_figure_and_more_of_them_later(tmp_path):
    """P1 Figure 7: a row a method; the map and its filtered one, the map times the image and its own filtered one."""
    (flower,) = photographs_named(["flower"])
    few = dataclasses.replace(OPTIONS, levels=10)
    filter_photographs(few, [flower], tmp_path)
    heard = []
    more = dataclasses.replace(few, explainers=("random", "gradient"), stages=("times-image", "1-channel"))
    done = filter_photographs(more, [flower], tmp_path, lambda name, *_: heard.append(name))
    maps = [(one.explainer, one.stage) for one in done]
    assert maps == [(key, stage) for key in ("random", "gradient") for stage in ("1-channel", "times-image")]
    assert "flower, gradient, 1-channel" not in heard and len(set(heard)) == 3
    network = networks.load_network("tiny")
    pixels = network.pixels(flower.open())[None]
    images = network.normalised(pixels)
    maps = af.relevance_map(af.explain.Gradient()(network.model, images), pixels, 99.0, "sum")
    expected = af.filter_relevance(network.model, images, maps, levels=10, max_epsilon=30, step=0.5)
    assert torch.equal(done[3].relevance, maps[0]) and torch.equal(done[3].filtered, expected.relevance[0])
    figure = before_and_after(done)
    assert len(figure.axes) == 2 * 7
    assert [axis.get_ylabel() for axis in figure.axes[::7]] == ["Random", "Gradient"]
    shown = figure.axes[7 + 4].images[0].get_array()
    np.testing.assert_allclose(shown, maps[0].mean(dim=0).sqrt().numpy())
    table = pandas.read_csv(tmp_path / "filtered.csv")
    assert table["explainer"].tolist() == ["random", "random", "gradient", "gradient"]
    assert table["stage"].tolist() == ["1-channel", "times-image"] * 2


def test_before_and_after_share_their_scale():
    """What the filter left looks as it did: its pixels have the same shade in both pictures."""
    (one,) = filter_photographs_in_memory()
    *pictures, curve = before_and_after([one]).axes
    _, before, after = (axis.images[0].get_array() for axis in pictures)
    marked = curve.lines[1].get_xydata()[0]
    assert tuple(marked) == (100 * one.numbers["removed_share"], one.numbers["score_after"])
    left = one.filtered[0].numpy() > 0
    assert left.any() and not left.all()
    assert (before[left] == after[left]).all() and (after[~left] == 0).all()


def filter_photographs_in_memory():
    with tempfile.TemporaryDirectory() as folder:
        return filter_photographs(OPTIONS, photographs_named(["flower"]), folder)


def test_the_command(tmp_path):
    picture = tmp_path / "mine.png"
    photographs_named(["flower"])[0].open().save(picture)
    came = command(
        "cat", picture, "--output", tmp_path / "out", "--network", "tiny", "--levels", 20, "--max-epsilon", 30
    )
    assert came.exit_code == 0, came.output
    assert "mine" in came.stdout and "of 20 levels" in came.stdout and "filtered.png" in came.stdout
    assert names_in(tmp_path / "out") == [
        "cat.gradient.1-channel.pt",
        "cat.gradient.times-image.pt",
        "filtered.csv",
        "filtered.json",
        "filtered.png",
        "mine.gradient.1-channel.pt",
        "mine.gradient.times-image.pt",
        "options.json",
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nowhere.png",), "nowhere.png is neither an image file nor a bundled photograph"),
        (("cat", "--levels", "0"), "levels must be at least 1 (got 0)"),
        (("cat", "--min-drop", "-1"), "min_drop must be at least 0"),
        (("cat", "--patience", "-1"), "patience must be at least 0 (got -1)"),
        (("cat", "--against", "end"), "against must be one of previous, start (got 'end')"),
        (
            ("cat", "--stages", "colour"),
            "stages must be one of 3-channel, 1-channel, times-grey, times-image (got 'colour')",
        ),
        (("cat", "--explainers", "gradiant"), "did you mean 'gradient'"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, words, tmp_path):
    came = command("--output", tmp_path / "out", "--network", "tiny", *arguments)
    assert came.exit_code == 2 and words in came.stderr
    assert came.stderr.startswith("apem-fast filter: ") and came.stderr.count("\n") == 1


def test_a_stopped_filter_goes_on_and_does_not_mix(tmp_path):
    """The photograph that is done is not filtered again; other options need another folder."""

    class Stopped(Exception):
        pass

    def stop(name, *_):
        if name.startswith("flower"):
            raise Stopped

    chosen = photographs_named(["cat", "flower"])
    with pytest.raises(Stopped):
        filter_photographs(OPTIONS, chosen, tmp_path, stop)
    assert names_in(tmp_path) == [
        "cat.gradient.1-channel.pt",
        "options.json",
    ]
    heard = []
    again = filter_photographs(
        dataclasses.replace(OPTIONS, batch_size=3), chosen, tmp_path, lambda name, *_: heard.append(name)
    )
    assert set(heard) == {"flower, gradient, 1-channel"} and [one.name for one in again] == ["cat", "flower"]
    whole = filter_photographs(OPTIONS, chosen, tmp_path / "whole")
    for one, other in zip(again, whole):
        assert torch.equal(one.filtered, other.filtered)
        assert {**one.numbers, "probes": 0} == {**other.numbers, "probes": 0}
    with pytest.raises(ValueError, match=r"holds maps filtered with step=0.5, not 1.0; choose another folder"):
        filter_photographs(dataclasses.replace(OPTIONS, step=1.0), chosen, tmp_path)


def test_maps_of_a_run_are_filtered_into_it(tmp_path):
    run = tmp_path / "run"
    options = RunOptions(network="tiny", explainers=("gradient", "random"), limit=2, max_epsilon=30, step=0.5)
    store = evaluate(options, run)
    came = command("--run", run, "--levels", 20)
    assert came.exit_code == 0, came.output
    table = pandas.read_csv(run / "filter" / "filtered.csv")
    rows = store.results().query("explainer == 'gradient' and stage != '3-channel'").sort_values(["image", "stage"])
    assert table["image"].tolist() == rows["image"].tolist() and table["stage"].tolist() == rows["stage"].tolist()
    # The map that the filter begins with is the one that the run measured.
    assert table["score_before"].tolist() == rows["score"].tolist()


def test_mistakes_about_runs(tmp_path):
    run = tmp_path / "run"
    evaluate(RunOptions(network="tiny", explainers=("random",), limit=1, max_epsilon=30), run)
    for arguments, words in (
        (("--run", run, "--explainers", "gradient"), "has no explainer gradient (it has random)"),
        (("--run", run, "--explainers", "random", "dog"), "has no image dog (it has cat)"),
        (("--run", tmp_path / "nowhere"), "holds no run"),
        (("--run", run, "--max-epsilon", 9, "--step", 2), "--max-epsilon, --step cannot be given with --run"),
        (("--run", run, "--percentile", 90), "--percentile cannot be given with --run"),
        (("--run", run, "--output", tmp_path / "out"), "give either --output, a folder for results, or --run"),
        ((), "give either --output"),
    ):
        came = command(*arguments)
        assert came.exit_code == 2 and words in came.stderr.replace("\n", " "), came.output
