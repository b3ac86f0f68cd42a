"""Broken and hostile input: nothing of somebody's own is run unasked, nothing is written outside, nothing is mixed."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import sys
import threading

import pandas
import pytest
import torch
from networks import images_and_maps, small_network
from tiny_networks import class_tree
from torch import nn
from typer.testing import CliRunner

import apem_fast as af
from apem_fast.cli.main import app
from apem_fast.experiment.filter.maps import FilterOptions, filter_photographs, photographs_named
from apem_fast.experiment.report.report import foreign_code, write_report
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import DamagedShard, RunStore
from apem_fast.explain import imported_by
from apem_fast.files.checksums import json_with_checksum
from apem_fast.validation import grid_steps

OPTIONS = RunOptions(network="tiny_networks:tiny", limit=3, explainers=("gradient",), max_epsilon=30, batch_size=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return evaluate(OPTIONS, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    return tmp_path / "run"


def change(folder, **options):
    record = json.loads((folder / "run.json").read_text("utf-8"))
    record["options"] |= options
    (folder / "run.json").write_bytes(json_with_checksum(record))


# -- somebody else's run ---------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that says so when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a_trap.py").write_text("import builtins\nbuiltins.a_trap_was_run = True\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delattr("builtins.a_trap_was_run", raising=False)
    yield lambda: "a_trap" in sys.modules
    sys.modules.pop("a_trap", None)


@pytest.mark.parametrize(
    "options",
    [
        {"network": "a_trap:network"},
        {"explainers": ["gradient", "a_trap.explain"]},
        {"explainers": ["gradient", "grad-cam:layer=x:reshape=a_trap.reshape"]},
    ],
    ids=str,
)
def test_a_report_imports_nothing_that_a_run_names(copy, trap, options):
    change(copy, **options)
    came = CliRunner().invoke(app, ["report", str(copy), "--paper"])
    assert came.exit_code == 0, came.output
    assert not trap() and "a_trap" in came.output and "--trust" in came.output
    if "network" in options:
        came = CliRunner().invoke(app, ["filter", "--run", str(copy)])
        assert came.exit_code == 2 and "--trust" in came.output and not trap()


def test_trust_names_the_code_first(copy):
    assert foreign_code(RunStore(copy)) == ["tiny_networks:tiny"]
    came = CliRunner().invoke(app, ["report", str(copy), "--images", "1", "--trust"])
    assert came.exit_code == 0 and "Running code that the run names: tiny_networks:tiny" in came.output
    assert (copy / "closeups").is_dir()


def test_what_is_somebodys_own():
    assert imported_by("gradient") == imported_by("captum.attr.Saliency") == []
    assert imported_by("os.abort") == ["os.abort"] and imported_by("captum.attr.x.y") == ["captum.attr.x.y"]


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b", "a\\b", "a\0b"], ids=repr)
def test_no_name_leads_out_of_a_run(copy, name):
    store = RunStore(copy)
    with pytest.raises(ValueError, match="no plain name"):
        store.photograph(name)
    with pytest.raises(ValueError, match="no plain name"):
        store.map("cat", "gradient", "..")


def test_links_inside_a_run_are_not_followed(copy, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (copy / ".index.html.part").symlink_to(outside)
    write_report(RunStore(copy), images=0)
    assert outside.read_text() == "mine" and (copy / "index.html").is_file()
    shutil.rmtree(copy / "photographs")
    (copy / "photographs").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="symbolic link"):
        RunStore(copy).photograph("cat")


# -- nothing is mixed, nothing is lost -------------------------------------------------------------------------------


def test_a_run_does_not_go_on_with_other_pictures_under_the_same_names(tmp_path):
    folder = class_tree(tmp_path / "tree", each=1)
    options = dataclasses.replace(OPTIONS, images=str(folder), limit=None)
    evaluate(options, tmp_path / "run")
    files = sorted(folder.rglob("*.JPEG"))
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(ValueError, match="shows something else than it did when the run began"):
        evaluate(dataclasses.replace(options, explainers=("uniform",)), tmp_path / "run")


def test_filtered_maps_of_two_files_of_one_name_are_two(tmp_path):
    files = []
    for place, number in (("a", 0), ("b", 1)):
        folder = class_tree(tmp_path / place, each=1)
        files.append(sorted(folder.rglob("*.JPEG"))[number].rename(tmp_path / place / "img.JPEG"))
    options = FilterOptions(network="tiny_networks:tiny", stages=("1-channel",), levels=4, max_epsilon=30.0)
    one, other = filter_photographs(options, photographs_named(list(map(str, files))), tmp_path / "out")
    assert not torch.equal(one.pixels, other.pixels)
    alone = filter_photographs(options, photographs_named([str(files[1])]), tmp_path / "other")
    assert torch.equal(alone[0].filtered, other.filtered)


def test_every_flipped_bit_of_a_shard_is_noticed_or_changes_nothing(run):
    path = next(iter((run.folder / "shards").glob("*.gradient.parquet")))
    contents, expected = path.read_bytes(), run.read(0, "gradient")
    generator, silent = random.Random(0), 0
    try:
        for _ in range(300):
            changed = bytearray(contents)
            changed[generator.randrange(len(contents))] ^= 1 << generator.randrange(8)
            path.write_bytes(changed)
            try:
                pandas.testing.assert_frame_equal(run.read(0, "gradient"), expected)
            except DamagedShard:
                continue
            except AssertionError:
                silent += 1
    finally:
        path.write_bytes(contents)
    assert silent == 0


def test_a_damaged_shard_is_named_set_aside_and_done_again(copy):
    store = RunStore(copy)
    expected = store.results()
    path = next(iter((copy / "shards").glob("*.gradient.parquet")))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        store.results()
    again = evaluate(OPTIONS, copy).results()
    columns = ["image", "stage", "epsilon_minus", "epsilon_plus"]
    pandas.testing.assert_frame_equal(again[columns], expected[columns])
    assert path.with_name(f"{path.name}.damaged-0").is_file()


def test_a_folder_that_vanishes_is_said(tmp_path):
    folder = class_tree(tmp_path / "tree", each=1)
    options = dataclasses.replace(OPTIONS, images=str(folder), limit=None, block=1)
    gone = []

    def progress(state):
        if state.images_finished == 2 and not gone:
            gone.append(shutil.rmtree(tmp_path / "run"))

    with pytest.raises(ValueError, match="deleted or moved while the run was at work"):
        evaluate(options, tmp_path / "run", progress=progress)


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"images": [1], "left_out": [], "note": ""}', '{"images": 3}'])
def test_a_damaged_selection_is_a_sentence(copy, contents):
    (copy / "selection.json").write_text(contents)
    with pytest.raises(ValueError, match=r"selection\.json"):
        RunStore(copy).selection()


# -- models that cannot be measured ----------------------------------------------------------------------------------


class Random(nn.Module):
    """Answers in its own way each time."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_network()

    def forward(self, images):
        return self.model(images) + 0.01 * torch.randn(len(images), 1)


def test_a_model_that_is_random_is_refused_by_every_measure():
    images, relevance = images_and_maps(2)
    model = Random().eval()
    state = torch.get_rng_state()
    for measure in (
        lambda: af.apem(model, images, relevance),
        lambda: af.filter_relevance(model, images, relevance),
        lambda: af.selectivity(model, images, relevance),
        lambda: af.continuity(model, images, af.explain.Gradient()),
    ):
        with pytest.raises(ValueError, match="must answer the same image in the same way"):
            measure()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_put_into_training_mode_is_refused_at_the_next_call():
    images, relevance = images_and_maps(2)
    model = small_network()
    evaluator = af.Evaluator(model, images, max_epsilon=20.0)
    model.train()
    with pytest.raises(ValueError, match="must be in eval mode"):
        evaluator.apem({"relevance": relevance})


def test_threads_that_share_a_model_leave_it_as_it_was():
    images, relevance = images_and_maps(3)
    model = small_network()
    before = {name: (value.data_ptr(), value.requires_grad) for name, value in model.named_parameters()}
    precision = torch.backends.mkldnn.matmul.fp32_precision
    expected = af.apem(model, images, relevance, max_epsilon=40.0).score
    scores = []

    def work():
        scores.append(af.apem(model, images, relevance, max_epsilon=40.0).score)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scores) == 4 and all(torch.equal(score, expected) for score in scores)
    assert {name: (value.data_ptr(), value.requires_grad) for name, value in model.named_parameters()} == before
    assert torch.backends.mkldnn.matmul.fp32_precision == precision


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_epsilon": 1e300}, "at most 2\\^53"),
        ({"step": 5e-324}, "at most 2\\^53"),
        ({"bounds": (float("nan"), None)}, "got NaN"),
    ],
    ids=str,
)
def test_grids_and_bounds_that_mean_nothing_are_refused(options, words):
    images, relevance = images_and_maps(1)
    with pytest.raises(ValueError, match=words):
        af.apem(small_network(), images, relevance, **options)


@pytest.mark.filterwarnings("ignore:apem")
def test_no_epsilon_lies_beyond_the_greatest():
    for greatest, step, last in ((1e12, 1.0, 10**12), (0.3, 0.1, 3), (0.7, 0.1, 7), (40.0, 0.25, 160)):
        assert grid_steps(greatest, step) == last
