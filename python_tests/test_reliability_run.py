"""A run's folder under faults: damaged files, other images under the same names, folders that vanish, links, names that
lead elsewhere. Nothing is silently another number, and nothing ends in a traceback."""

import dataclasses
import json
import os
import random
import shutil

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from tiny_networks import tiny
from typer.testing import CliRunner

from apem_fast.cli.main import app
from apem_fast.experiment.inputs import ground_truth
from apem_fast.experiment.inputs.image_folders import image_set, shown, unique_names
from apem_fast.experiment.inputs.networks import NETWORKS
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import DamagedShard, RunStore
from apem_fast.files.checksums import (
    Damaged,
    checked_json,
    checked_parquet,
    checked_tensors,
    json_with_checksum,
    parquet_of,
    tensors_with_checksum,
)
from apem_fast.siamese.folders import image_file


@pytest.fixture(autouse=True, scope="module")
def _network():
    patch = pytest.MonkeyPatch()
    patch.setitem(NETWORKS, "tiny", tiny)
    yield
    patch.undo()


def a_folder_of_images(folder, count=4):
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliability")
    options = RunOptions(
        network="tiny",
        images=str(a_folder_of_images(folder / "images")),
        explainers=("gradient", "uniform"),
        stages=("1-channel",),
        max_epsilon=30.0,
        block=2,
    )
    return evaluate(options, folder / "run")


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    return RunStore(tmp_path / "run")


def numbers(store):
    results = store.results().drop(columns=["attribution_seconds", "search_seconds"])
    return results.sort_values(["explainer", "image", "stage"]).reset_index(drop=True)


def flipped(contents, position, bit):
    changed = bytearray(contents)
    changed[position] ^= 1 << bit
    return bytes(changed)


# -- flipped bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_no_flipped_bit_and_no_cut_is_another_number(kind, finished):
    if kind == "parquet":
        contents, read = finished._shard(0, "gradient").read_bytes(), checked_parquet
    else:
        contents, read = (finished.folder / "run.json").read_bytes(), checked_json
    read(contents)
    draw = random.Random(0)
    for position in range(len(contents)):
        with pytest.raises(Damaged):
            read(flipped(contents, position, draw.randrange(8)))
    for length in range(0, len(contents), 7):
        with pytest.raises(Damaged):
            read(contents[:length])


def test_other_programs_read_the_files_too(finished):
    path = finished._shard(0, "gradient")
    assert pandas.read_parquet(path).equals(finished.read(0, "gradient"))
    table = pyarrow.Table.from_pylist([{"a": 0.1, "b": "x"}])
    assert checked_parquet(parquet_of(table)).equals(table)
    record = {"a": [1, None, "ü\udcff"]}
    assert checked_json(json_with_checksum(record)) == record


@pytest.mark.parametrize("key", ["images", "gradient"])
def test_a_damaged_shard_is_named_set_aside_and_done_again(key, copied, finished):
    path = copied._shard(1, key)
    contents = path.read_bytes()
    path.write_bytes(flipped(contents, len(contents) // 2, 3))
    with pytest.raises(DamagedShard, match="is damaged"):
        copied.images() if key == "images" else copied.results()
    came = CliRunner().invoke(app, ["report", str(copied.folder), "--images", "0"])
    assert came.exit_code == 2 and path.name in came.output.replace("\n", "")
    said = []
    again = evaluate(copied.options, copied.folder, progress=lambda state: said.append(state.finished))
    assert any(path.name in sentence and "set aside" in sentence for sentence in said)
    assert len(list(path.parent.glob(f"{path.name}.damaged-*"))) == 1
    assert numbers(again).equals(numbers(finished)) and again.images().equals(finished.images())


@pytest.mark.parametrize("name", ["run.json", "selection.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"null", b"\xff\xfe", None])
def test_a_damaged_record_is_one_sentence(name, damage, copied):
    path = copied.folder / name
    path.write_bytes(flipped(path.read_bytes(), 20, 0) if damage is None else damage)
    with pytest.raises(ValueError, match=name):
        evaluate(copied.options, copied.folder)


# -- images ----------------------------------------------------------------------------------------------------------


def test_an_image_that_shows_something_else_is_not_mixed_in(copied, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(copied.options.images, images)
    options = dataclasses.replace(copied.options, images=str(images))
    store = evaluate(options, tmp_path / "own")
    store._shard(0, "gradient").unlink()
    (images / "3.png").replace(images / "0.png")
    shutil.copy(copied.options.images + "/3.png", images / "3.png")
    with pytest.raises(ValueError, match=r"0\.png shows something else than it did when the run began"):
        evaluate(options, tmp_path / "own")


def test_crafted_names_stay_apart(tmp_path):
    first = unique_names(["a b.png", "a_b.png"])
    crafted = ["a b.png", "a_b.png", first["a b.png"] + ".png"]
    assert len({name.casefold() for name in unique_names(crafted).values()}) == 3


def test_names_that_are_no_text(tmp_path):
    assert shown("a\x1b[31m.png") == "a\\x1b[31m.png" and shown("ü.png") == "ü.png"
    assert shown(os.fsdecode(b"\xff.png")) == "\\xff.png"
    folder = a_folder_of_images(tmp_path / "images", 1)
    try:
        (folder / "0.png").rename(folder / os.fsdecode(b"\xff\x1b[31m.png"))
    except OSError:
        pytest.skip("the file system takes only text")
    options = RunOptions(network="tiny", images=str(folder), explainers=("uniform",), max_epsilon=30.0)
    store = evaluate(options, tmp_path / "run")
    assert store.images()["source"].tolist() == ["\\xff\\x1b[31m.png"]


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_vanishes_does_not_end_in_success(copied, tmp_path):
    options, gone = copied.options, []

    def vanishes(state):
        if state.finished and not gone:
            gone.append(True)
            shutil.rmtree(tmp_path / "other")

    with pytest.raises(ValueError, match="deleted or moved while the run was at work"):
        evaluate(options, tmp_path / "other", progress=vanishes)


def test_results_that_vanish_do_not_end_in_success(copied, tmp_path):
    def vanishes(state):
        if state.finished:
            shutil.rmtree(tmp_path / "other" / "shards")

    with pytest.raises(ValueError, match="lacks results that were written to it"):
        evaluate(copied.options, tmp_path / "other", progress=vanishes)


def test_links_are_not_followed(tmp_path, finished):
    (tmp_path / "run").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run" / ".run.json.part").symlink_to(victim)
    evaluate(finished.options, tmp_path / "run")
    assert victim.read_text() == "mine"
    shutil.rmtree(tmp_path / "run" / "maps")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "maps").symlink_to(tmp_path / "elsewhere")
    for shard in (tmp_path / "run" / "shards").glob("*.gradient.parquet"):
        shard.unlink()
    with pytest.raises(ValueError, match="maps is a symbolic link, and those are not followed"):
        evaluate(finished.options, tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..", ".hidden", "a\\b", "C:a"])
def test_names_in_a_run_lead_nowhere_else(name, copied, tmp_path):
    rows = copied.read(0, "images").to_dict("records")
    copied.write(0, "images", [rows[0] | {"image": name}, *rows[1:]])
    came = CliRunner().invoke(app, ["report", str(copied.folder)])
    assert came.exit_code == 2 and "Traceback" not in came.output
    assert not (tmp_path / "outside.png").exists()


def test_opening_a_run_imports_nothing(copied):
    record = json.loads((copied.folder / "run.json").read_bytes())
    record["options"] |= {"network": "os:abort", "explainers": ["os.abort"]}
    (copied.folder / "run.json").write_bytes(json_with_checksum(record))
    assert RunStore(copied.folder).options.explainers == ("os.abort",)


def test_image_sets_take_names_of_any_kind(tmp_path):
    folder = a_folder_of_images(tmp_path / "images", 1)
    (folder / "\x1b]0;title\x07.txt").write_text("x")
    left_out = image_set(str(folder), None, None).left_out
    assert [one.path for one in left_out] == ["\\x1b]0;title\\x07.txt"]


# -- what else lies in a folder --------------------------------------------------------------------------------------


def test_torch_files_with_a_checksum_are_torch_files(tmp_path):
    content = {"a": torch.randn(3, 4), "b": "x"}
    contents = tensors_with_checksum(content)
    (tmp_path / "a.pt").write_bytes(contents)
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["a"], content["a"])
    assert torch.equal(checked_tensors(contents)["a"], content["a"])
    for position in range(0, len(contents), 5):
        with pytest.raises(Damaged):
            checked_tensors(flipped(contents, position, position % 8))
    with pytest.raises(Damaged, match="list"):
        checked_tensors(tensors_with_checksum([1]))


@pytest.mark.parametrize("kind", ["photographs", "maps"])
def test_a_damaged_picture_is_a_sentence_of_the_report(kind, copied):
    path = min((copied.folder / kind).rglob("*.png"))
    contents = path.read_bytes()
    path.write_bytes(flipped(contents, len(contents) // 2, 1))
    came = CliRunner().invoke(app, ["report", str(copied.folder), "--images", "0"])
    assert came.exit_code == 2 and path.name in came.output.replace("\n", "") and "is damaged" in came.output


def test_a_busy_folder_keeps_its_record(copied):
    record = (copied.folder / "run.json").read_bytes()
    options = dataclasses.replace(copied.options, explainers=("gradient", "uniform", "random"))
    with RunStore.claimed(copied.folder), pytest.raises(ValueError, match="another run is at work in"):
        evaluate(options, copied.folder)
    assert (copied.folder / "run.json").read_bytes() == record


def test_pictures_have_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    path = a_folder_of_images(tmp_path / "images", 1) / "0.png"
    photograph = Photograph("0", "0", (), "0.png", path)
    monkeypatch.setattr("apem_fast.files.picture_size.MOST_PIXELS", 24 * 24 - 1)
    for read in (photograph.open, lambda: image_file(path)):
        with pytest.raises((OSError, ValueError), match="APEM_FAST_MOST_PIXELS raises this"):
            read()
    monkeypatch.setenv("APEM_FAST_MOST_PIXELS", str(24 * 24))
    assert photograph.open().size == (24, 24) and image_file(path).shape == (3, 24, 24)


def test_a_reader_that_breaks_down_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "meta.mat").write_bytes(b"x")
    monkeypatch.setattr(ground_truth, "_READER", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ValueError, match=r"meta\.mat cannot be read .* \(the reader broke down\)"):
        ground_truth._numbers_in(tmp_path / "meta.mat")
