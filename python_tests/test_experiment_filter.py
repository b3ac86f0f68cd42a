"""Filtering photographs: what is written, the figure's panels, and the command as a user meets it."""

from __future__ import annotations

import tempfile

import pandas
import pytest
import torch
from PIL import Image
from test_experiment import tiny_network
from typer.testing import CliRunner

import apem_fast as af
from apem_fast import cli
from apem_fast.experiment import networks
from apem_fast.experiment.filter import FilterOptions, filter_photographs, photographs_named
from apem_fast.experiment.filter_figures import COLUMNS, before_and_after

OPTIONS = FilterOptions(network="tiny", max_epsilon=30, step=0.5, batch_size=8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny_network)


def command(*arguments):
    return CliRunner(env={"TERM": "dumb", "COLUMNS": "100"}).invoke(cli.app, ["filter", *map(str, arguments)])


def test_photographs_are_filtered_and_written(tmp_path):
    heard = []
    done = filter_photographs(OPTIONS, photographs_named(["cat", "flower"]), tmp_path, lambda *now: heard.append(now))
    network = networks.load_network("tiny")
    for one in done:
        pixels = network.pixels(one.photograph.open())[None]
        images = network.normalised(pixels)
        maps = af.relevance_map(af.explain.Gradient()(network.model, images), None, 99.0, "sum")
        expected = af.filter_relevance(network.model, images, maps, max_epsilon=30, step=0.5)
        assert torch.equal(torch.load(tmp_path / f"{one.photograph.name}.pt"), expected.relevance[0])
        assert one.result.stopped == expected.stopped
    table = pandas.read_csv(tmp_path / "filtered.csv")
    assert table["image"].tolist() == ["cat", "flower"] and (table["score_after"] >= table["score_before"]).all()
    assert Image.open(tmp_path / "filtered.png").size[0] > 500
    assert {name for name, *_ in heard} == {"cat", "flower"}
    axes = before_and_after(done).axes
    assert len(axes) == 2 * len(COLUMNS) and [axis.get_title() for axis in axes[: len(COLUMNS)]] == list(COLUMNS)


def test_before_and_after_share_their_scale():
    """What the filter left looks as it did: its pixels have the same shade in both pictures."""
    (one,) = filter_photographs_in_memory()
    _, before, after, times, filtered = (axis.images[0].get_array() for axis in before_and_after([one]).axes)
    left = one.result.relevance[0, 0].numpy() > 0
    assert left.any() and not left.all()
    assert (before[left] == after[left]).all() and (after[~left] == 0).all()
    assert (times[left] == filtered[left]).all() and (filtered[~left] == 0).all() and times.max() == 1


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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cat.pt", "filtered.csv", "filtered.png", "mine.pt", "options.json"]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nowhere.png",), "nowhere.png is neither an image file nor a bundled photograph"),
        (("cat", "--levels", "0"), "levels must be at least 1 (got 0)"),
        (("cat", "--min-drop", "-1"), "min_drop must be at least 0"),
        (("cat", "--stage", "colour"), "stage must be 3-channel, 1-channel, times-image (got 'colour')"),
        (("cat", "--explainer", "gradiant"), "did you mean 'gradient'"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, words, tmp_path):
    came = command("--output", tmp_path / "out", "--network", "tiny", *arguments)
    assert came.exit_code == 2 and words in came.stderr
    assert came.stderr.startswith("apem-fast filter: ") and came.stderr.count("\n") == 1
