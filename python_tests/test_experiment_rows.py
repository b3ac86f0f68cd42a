"""The rows of a run: maps without a ray, shuffles, further measures, unknown classes, damaged files, pictures,
memory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import weakref
from pathlib import Path

import numpy as np
import pandas
import pytest
import tiny_networks
import torch
from PIL import Image
from tiny_networks import class_tree, save_photograph, tiny

import apem_fast as af
from apem_fast.cli.console import flagged_lines, left_out_lines
from apem_fast.experiment.filter.options import FilterOptions
from apem_fast.experiment.inputs.image_folders import LeftOut
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.experiment.report import measure_sections
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.report.subject import Subject
from apem_fast.experiment.report.summary import summary, write_csv
from apem_fast.experiment.run import columns as measures
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.explaining import flags_of, with_stand_ins
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import explainer_from
from apem_fast.relevance import STAGES, shuffled

OPTIONS = RunOptions(
    network="tiny_networks:tiny", limit=4, block=4, max_epsilon=30, step=0.5, batch_size=16, explainers=("gradient",)
)


def partly_zero(model, images, labels):
    """Nothing for images whose label is even."""
    return torch.where((labels % 2 == 1)[:, None, None, None], images.abs() + 1, torch.zeros_like(images))


def never_finite(model, images, labels):
    return torch.full_like(images, torch.nan)


def nothing(model, images, labels):
    return torch.zeros_like(images)


def not_finite_for_missiles(model, images, labels):
    """Nothing of use for images whose label is 4."""
    return torch.where((labels == 4)[:, None, None, None], torch.nan, images)


def other_explainers(*names: str, **changes) -> RunOptions:
    explainers = tuple(name if name in ("gradient", "uniform") else f"{__name__}.{name}:batch_size=4" for name in names)
    return dataclasses.replace(OPTIONS, explainers=explainers, **changes)


# -- maps without a ray ----------------------------------------------------------------------------------------------


def test_a_map_without_a_ray_is_flagged_and_stops_nobody(tmp_path):
    store = evaluate(other_explainers("partly_zero", "gradient"), tmp_path / "run")
    images, results = store.images(), store.results()
    even = {row["image"] for row in images.to_dict("records") if row["label"] % 2 == 0}
    assert 0 < len(even) < 4
    mine, gradient = (part for _, part in results.groupby("explainer", sort=False))
    assert {row["image"] for row in mine.to_dict("records") if row["flag"]} == even
    flagged, measured = mine[mine["flag"] != ""], mine[mine["flag"] == ""]
    assert len(flagged) == 3 * len(even) and set(flagged["flag"]) == {"the map is 0 throughout"}
    assert flagged[["epsilon_minus", "epsilon_plus", "score"]].isna().all(axis=None)
    assert (flagged[["probes", "scan_probes", "search_seconds"]] == 0).all(axis=None)
    assert not flagged[["flipped_minus", "flipped_plus"]].any(axis=None)
    assert measured["score"].notna().all() and (measured["probes"] > 0).all() and (gradient["flag"] == "").all()
    assert flagged_lines(store) == [
        f"{3 * len(even)} of 24 maps could not be measured and count nowhere ({3 * len(even)}: the map is 0 "
        "throughout)."
    ]
    table = summary(store)
    assert list(table["images"]) == [4 - len(even), 4] * 3 and list(table["flagged"]) == [len(even), 0] * 3
    write_csv(store)
    data = re.search(r'id="data">(.*?)</script>', write_page(store).read_text("utf-8"), re.DOTALL)[1]
    assert "NaN" not in data and "partly_zero" in data  # JSON that a browser reads
    network = tiny()
    network.model.eval()
    by_name = {row["image"]: row for row in measured[measured["stage"] == "1-channel"].to_dict("records")}
    for one in bundled_photographs()[:4]:  # what is measured is as it is alone
        if one.name in by_name:
            pixels = network.pixels(one.open())[None]
            image = network.normalised(pixels)
            relevance = af.relevance_map(image.abs() + 1, None, 99.0, "sum")
            alone = af.apem(network.model, image, relevance, max_epsilon=30, step=0.5)
            row = by_name[one.name]
            assert (row["epsilon_minus"], row["epsilon_plus"]) == (
                float(alone.epsilon_minus),
                float(alone.epsilon_plus),
            )


def test_attributions_that_are_not_finite_are_flagged(tmp_path):
    store = evaluate(other_explainers("not_finite_for_missiles", shuffles=1), tmp_path / "run")
    labels, results = store.images().set_index("image")["label"], store.results()
    bad = results["image"].map(labels) == 4
    assert 0 < bad.sum() < len(bad)
    assert set(results[bad]["flag"]) == {"the attribution has NaN or infinity"} and set(results[~bad]["flag"]) == {""}
    assert results[bad]["score_norm"].isna().all() and results[~bad]["score_norm"].notna().all()


@pytest.mark.parametrize("name", ["nothing", "never_finite"])
def test_a_run_with_nothing_to_measure(name, tmp_path):
    store = evaluate(other_explainers(name, shuffles=1), tmp_path / "run")
    assert (store.results()["flag"] != "").all() and len(store.results()) == 12 and summary(store).empty


def test_flags_of_maps():
    maps = torch.zeros(5, 2, 3, 3)
    maps[1], maps[2], maps[3, 0], maps[4, 1, 2, 2] = 1, 0.5, 1, 1e-30
    sparse = torch.zeros_like(maps)
    flags = flags_of(maps, sparse, 99.0)
    assert flags == ["the map is 0 throughout", "the map is 1 throughout", "", "", ""]
    sparse[0, 0, 0, 0] = 1
    assert flags_of(maps, sparse, 90.0) == ["the clip at percentile 90 leaves 0 throughout", *flags[1:]]
    stood_in = with_stand_ins({"some": maps, "all": maps[:1].expand(5, 2, 3, 3)}, {"some": flags, "all": flags[:1] * 5})
    assert list(stood_in) == ["some"] and torch.equal(stood_in["some"][3:], maps[3:])
    assert (stood_in["some"][:3] == 0.5).all() and (maps[0] == 0).all()


# -- bounds and the grey stage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["pixels", "-2,2/2.1/2.2", "-2,none", "none"])
def test_a_run_with_bounds_has_the_epsilons_of_the_function(said, tmp_path):
    options = dataclasses.replace(OPTIONS, bounds=said, stages=("times-grey", "1-channel"), max_epsilon=900.0)
    store = evaluate(options, tmp_path / "run")
    assert list(store.results()["stage"].unique()) == ["1-channel", "times-grey"]
    network = tiny()
    network.model.eval()
    pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()[:4]])
    images = network.normalised(pixels)
    black, white = ((value - 0.5) / 0.25 for value in (0.0, 1.0))
    pair = {
        "pixels": (black, white),
        "-2,2/2.1/2.2": (-2.0, (2.0, 2.1, 2.2)),
        "-2,none": (-2.0, None),
        "none": (None, None),
    }[said]
    attribution = af.explain.Gradient()(network.model, images)
    free = 0
    for stage in options.stages:
        maps = STAGES[stage](attribution, pixels, 99.0)
        bounded = af.apem(network.model, images, maps, max_epsilon=900, step=0.5, bounds=pair)
        part = store.results().query("stage == @stage")
        assert part["epsilon_minus"].tolist() == bounded.epsilon_minus.tolist()
        assert part["epsilon_plus"].tolist() == bounded.epsilon_plus.tolist()
        unbounded = af.apem(network.model, images, maps, max_epsilon=900, step=0.5)
        free += int((bounded.epsilon_minus != unbounded.epsilon_minus).sum())
        free += int((bounded.epsilon_plus != unbounded.epsilon_plus).sum())
    assert (free > 0) == (said != "none")  # the bounds are felt
    record = json.loads((store.folder / "run.json").read_text())
    assert record["options"]["bounds"] == (said if said == "pixels" else json.loads(json.dumps(pair)))
    assert RunStore(store.folder).options == options


def test_pixels_bounds_of_each_channel():
    network = dataclasses.replace(tiny(), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1))
    low, high = network.bounds("pixels")
    assert low == pytest.approx((-2, -2, -3)) and high == pytest.approx((2, 3, 7))
    assert network.bounds((None, 3.0)) == (None, 3.0)
    assert torch.equal(network.normalised(torch.zeros(1, 3, 1, 1)).flatten(), torch.tensor(low))


@pytest.mark.parametrize("said", ["pixel", "1", "1,2,3", "a,b", "", "2,1", "1/2,none/3"])
def test_bounds_that_are_none(said):
    with pytest.raises(ValueError, match="bounds must"):
        RunOptions(bounds=said)
    with pytest.raises(ValueError, match="bounds must"):
        FilterOptions(bounds=said)


# -- shuffles and further measures -----------------------------------------------------------------------------------


def test_shuffled_epsilons_are_the_least_of_those_of_each_shuffle(tmp_path):
    options = dataclasses.replace(OPTIONS, shuffles=3, seed=7, limit=3, max_epsilon=60.0)
    store = evaluate(options, tmp_path / "run")
    network = tiny()
    network.model.eval()
    chosen = bundled_photographs()[:3]
    pixels = torch.stack([network.pixels(one.open()) for one in chosen])
    images = network.normalised(pixels)
    attribution = af.explain.Gradient()(network.model, images)
    differing = 0
    for stage in OPTIONS.stages:
        maps = STAGES[stage](attribution, pixels, 99.0)
        own = af.apem(network.model, images, maps, max_epsilon=60, step=0.5)
        each = [af.apem(network.model, images, shuffled(maps, 7, n), max_epsilon=60, step=0.5) for n in range(3)]
        rows = store.results().query("stage == @stage").to_dict("records")
        for n, row in enumerate(rows):
            for sign in ("minus", "plus"):
                epsilons = [float(getattr(one, f"epsilon_{sign}")[n]) for one in each]
                flips = [bool(getattr(one, f"flipped_{sign}")[n]) for one in each]
                assert row[f"shuffled_epsilon_{sign}"] == min(epsilons)
                assert row[f"shuffled_flipped_{sign}"] == any(flips)
                differing += len(set(epsilons)) > 1
            assert row["epsilon_plus"] == float(own.epsilon_plus[n])
            expected = (
                row["epsilon_plus"] / row["shuffled_epsilon_plus"]
                - row["epsilon_minus"] / row["shuffled_epsilon_minus"]
            )
            assert row["score_norm"] == expected
    assert differing  # the least is one of several
    assert not set(evaluate(OPTIONS, tmp_path / "plain").results()) & {"score_norm", "shuffled_epsilon_plus"}


def test_further_measures_have_columns_of_their_own(monkeypatch, tmp_path):
    def concentration(explained):
        assert (
            len(explained.images)
            == len(explained.network.pixels_of(explained.images))
            == len(explained.labels)
            == len(explained.relevance)
            == 4
        )
        assert explained.explainer.name == "partly_zero" and explained.stage in STAGES.values()
        return explained.relevance.mean(dim=(1, 2, 3))

    monkeypatch.setitem(
        measures.MEASURES, "concentration", measures.Measure(concentration, "Concentration", "higher", "the mean")
    )
    store = evaluate(other_explainers("partly_zero", measures=("concentration",)), tmp_path / "run")
    results = store.results()
    assert (results["concentration"].isna() == (results["flag"] != "")).all()
    assert results["concentration"].dropna().between(0, 1).all() and results["concentration"].nunique() == 3
    with pytest.raises(ValueError, match=r"measures must be one of selectivity, continuity, .*concentration"):
        RunOptions(measures=("sensitivity",))


def test_curves_are_kept_where_they_are_asked_for(tmp_path):
    asked = ("deletion", "relevance_gain", "selectivity", "insertion")
    options = other_explainers("partly_zero", "gradient", measures=asked, curves=True, parts=7, imputation="mean")
    store = evaluate(options, tmp_path / "run")
    network = load_network(OPTIONS.network)
    pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()[: OPTIONS.limit]])
    images = network.normalised(pixels)
    for key in options.explainers:
        attribution = explainer_from(key)(network.model, images)
        for stage in options.stages:
            relevance = STAGES[stage](attribution, pixels, 99.0)
            how = {"steps": 7, "imputation": "mean"}
            expected = {
                "selectivity": af.selectivity(network.model, images, relevance, steps=7).output,
                "deletion": af.measures.deletion(network.model, images, relevance, **how).output,
                "insertion": af.measures.insertion(network.model, images, relevance, **how).output,
            }
            rows = store.results().query("explainer == @key and stage == @stage").to_dict("records")
            for n, row in enumerate(rows):
                for name, curves in expected.items():
                    kept = row[f"{name}_curve"]
                    if row["flag"]:
                        assert len(kept) == 0
                    else:
                        np.testing.assert_allclose(kept, curves[n], rtol=1e-5, atol=1e-7)
                        assert np.trapezoid(kept, dx=1 / 7) == pytest.approx(row[name], abs=0.02)
    assert list(store.results().filter(like="_curve")) == ["deletion_curve", "selectivity_curve", "insertion_curve"]
    write_csv(store)
    assert not [name for name in pandas.read_csv(store.folder / "results.csv") if "curve" in name]
    drawn = measure_sections.curves(Subject(store, scored_rows(store)[0], 0)).figures[0][1]
    assert all(f">{word}<" in drawn for word in ("Deletion", "Selectivity", "Insertion", "3-channel", "times-image"))
    with pytest.raises(ValueError, match="curves=True, not False"):
        evaluate(dataclasses.replace(options, curves=False), store.folder)
    with pytest.raises(ValueError, match=r"curves needs one of the measures selectivity, .* \(got none"):
        dataclasses.replace(options, measures=())


@pytest.mark.parametrize("stage", STAGES)
def test_selectivity_and_continuity_of_a_run(tmp_path, stage):
    store = evaluate(
        dataclasses.replace(OPTIONS, measures=("selectivity", "continuity"), stages=(stage,)), tmp_path / "run"
    )
    network = load_network(OPTIONS.network)
    pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()[: OPTIONS.limit]])
    images = network.normalised(pixels)
    for key in OPTIONS.explainers:
        explainer = explainer_from(key)
        relevance = STAGES[stage](explainer(network.model, images), pixels, OPTIONS.percentile)
        rows = store.results().query("explainer == @key")
        areas = af.selectivity(network.model, images, relevance).area
        np.testing.assert_allclose(rows["selectivity"], areas, rtol=1e-4)
        for n, expected in enumerate(rows["continuity"]):
            found = af.continuity(
                network.model,
                images[n : n + 1],
                explainer,
                neighbours=3,
                relevance=lambda a, own: STAGES[stage](a, own, OPTIONS.percentile),
                pixels=network.pixels_of,
            )
            np.testing.assert_allclose(expected, found.continuity.item(), rtol=1e-4)


def test_every_measure_of_a_run_is_the_function_of_that_name(tmp_path):
    named = dataclasses.replace(OPTIONS, limit=3, stages=("1-channel",), explainers=("gradient",), parts=9)
    options = dataclasses.replace(named, measures=tuple(measures.MEASURES), imputation="mean")
    rows = evaluate(options, tmp_path / "run").results()
    network = load_network(OPTIONS.network)
    pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()[:3]])
    images = network.normalised(pixels)
    relevance = STAGES["1-channel"](af.explain.Gradient()(network.model, images), pixels, OPTIONS.percentile)
    field, limits = af.measures, {"max_epsilon": OPTIONS.max_epsilon, "step": OPTIONS.step}
    gain = field.relevance_gain(network.model, images, relevance, imputation="mean", steps=9)
    low, high = network.normalised(torch.zeros(1, 3, 1, 1)), network.normalised(torch.ones(1, 3, 1, 1))
    robust = field.robustness_s(network.model, images, relevance, **limits)
    adversarial = field.adversarial_curves(network.model, images, relevance, steps=9, **limits)
    blocks = field.region_perturbation(network.model, images, relevance, repeats=1, low=low, high=high)
    # A scan goes as far beyond the change as its batch does.
    fractions = field.flip_fraction(network.model, images, relevance, imputation="mean", batch_size=OPTIONS.batch_size)
    expected = {
        "selectivity": af.selectivity(network.model, images, relevance, steps=9).area,
        "deletion": gain.deletion.area,
        "insertion": gain.insertion.area,
        "relevance_gain": gain.gain,
        "region_perturbation": blocks.area_over_curve,
        "flip_fraction": fractions.fraction,
        "robustness_s": robust.area_relevant,
        "robustness_complement": robust.area_complement,
        "adversarial_morf": adversarial.morf,
        "adversarial_lerf": adversarial.lerf,
    }
    assert {*expected, "continuity"} == set(measures.MEASURES) <= set(rows)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    # The curves are run once, whatever looks at them: with a constant, with the mean from both ends, towards the
    # adversarial image from both ends.
    spent = 5 * 10 + blocks.probes + fractions.probes + robust.probes
    assert rows["measure_probes"].tolist() == spent.tolist()


# -- images ----------------------------------------------------------------------------------------------------------


def test_images_of_unknown_classes(tmp_path):
    save_photograph(tmp_path / "flat" / "a.png", 0)
    save_photograph(tmp_path / "flat" / "b.png", 1)
    options = dataclasses.replace(OPTIONS, images=str(tmp_path / "flat"))
    images = evaluate(options, tmp_path / "run").images()
    assert images["correct"].isna().all() and images["loss"].isna().all()
    assert list(images["truth"]) == ["", ""] and list(images["truth_label"]) == [-1, -1]
    assert images["confidence"].between(0, 1).all() and list(images["source"]) == ["a.png", "b.png"]
    page = write_page(RunStore(tmp_path / "run")).read_text("utf-8")
    assert "2 photographs." in " ".join(page.split())


def test_losses_and_truths_of_class_folders(tmp_path):
    class_tree(tmp_path / "tree", each=1)
    options = dataclasses.replace(OPTIONS, images=str(tmp_path / "tree"), limit=None)
    images = evaluate(options, tmp_path / "run").images()
    network = tiny()
    assert sorted(images["truth"]) == sorted(tiny_networks.CATEGORIES)
    for row in images.to_dict("records"):
        with Image.open(tmp_path / "tree" / row["source"]) as picture:
            logits = network.model(network.normalised(network.pixels(picture)[None])).detach()[0].double()
        truth = tiny_networks.CATEGORIES.index(row["source"].split("/")[0].lower())
        assert row["truth_label"] == truth and row["truth"] == tiny_networks.CATEGORIES[truth]
        assert row["loss"] == pytest.approx(math.log(sum(math.exp(v) for v in logits)) - float(logits[truth]), abs=1e-6)
        assert row["correct"] == (int(logits.argmax()) == truth)


def test_damaged_files_are_listed_and_stop_nobody(tmp_path):
    folder = class_tree(tmp_path / "tree", each=2)
    good = min((folder / "Tabby").iterdir())
    (folder / "Daisy" / "cut.jpg").write_bytes(good.read_bytes()[:400])
    (folder / "Daisy" / "empty.png").write_bytes(b"")
    (folder / "Daisy" / "notes.txt").write_text("daisies")
    options = dataclasses.replace(OPTIONS, images=str(folder), limit=None, block=2)
    store = evaluate(options, tmp_path / "run")
    assert len(store.images()) == 10 and len(store.results()) == 30
    left_out = {one.path: one.reason for one in store.left_out()}
    assert set(left_out) == {"Daisy/cut.jpg", "Daisy/empty.png", "Daisy/notes.txt"}
    assert "truncated" in left_out["Daisy/cut.jpg"].lower() and left_out["Daisy/notes.txt"] == "not an image file"
    write_csv(store)
    assert len(pandas.read_csv(tmp_path / "run" / "left-out.csv")) == 3
    again = evaluate(dataclasses.replace(options, explainers=("uniform",)), tmp_path / "run")  # they stay left out
    assert len(again.results()) == 60 and len(again.left_out()) == 3
    min((folder / "Tabby").iterdir()).write_text("gone")
    with pytest.raises(ValueError, match="could be read when the run began, and cannot be now"):
        evaluate(dataclasses.replace(options, explainers=("edge",)), tmp_path / "run")
    (folder / "Tabby" / "new.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds a run with the same images=.*; it has changed since"):
        evaluate(options, tmp_path / "run")


def test_left_out_files_on_the_terminal():
    assert left_out_lines([]) == []
    lines = left_out_lines([LeftOut(f"{n}.txt", "not an image file") for n in range(7)], shown=2)
    assert lines == [
        "7 files were left out (left-out.csv lists them):",
        "  0.txt: not an image file",
        "  1.txt: not an image file",
        "  and 5 more",
    ]


def test_pictures_of_the_first_images_only(tmp_path):
    store = evaluate(dataclasses.replace(OPTIONS, pictures=3, block=2), tmp_path / "run")
    names = list(store.images()["image"])
    assert [store.photograph(name).exists() for name in names] == [True, True, True, False]
    assert [store.map(name, "gradient", "1-channel").exists() for name in names] == [True, True, True, False]
    write_page(store)


def test_a_folder_that_cannot_be_written_any_more(tmp_path):
    store = evaluate(OPTIONS, tmp_path / "run")
    results = store.results()
    store.map("cat", "uniform", "x").parent.parent.mkdir()
    store.map("cat", "uniform", "1-channel").parent.write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be written .*; what was finished before is kept"):
        evaluate(dataclasses.replace(OPTIONS, explainers=("uniform",)), tmp_path / "run")
    pandas.testing.assert_frame_equal(RunStore(tmp_path / "run").results(), results)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    """However many images there are, one block of them is alive at a time, and the process does not grow."""
    for number in range(200):
        save_photograph(tmp_path / "flat" / f"{number:03d}.png", number, side=24)
    options = dataclasses.replace(
        OPTIONS,
        images=str(tmp_path / "flat"),
        limit=None,
        block=8,
        stages=("1-channel",),
        max_epsilon=8.0,
        pictures=0,
        explainers=("uniform",),
    )
    made, alive, resident = [], [], []
    prepare = Network.normalised

    def normalised(network, pixels):
        made.append((weakref.ref(pixels), weakref.ref(images := prepare(network, pixels))))
        return images

    def look(state) -> None:
        if state.finished:
            alive.append(sum(one() is not None for pair in made for one in pair))
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    monkeypatch.setattr(Network, "normalised", normalised)
    evaluate(options, tmp_path / "run", progress=look)
    assert len(alive) == len(made) == 25
    assert min(alive) == 2 and max(alive) <= 4  # pixels and images of this block, at most also of the one before
    assert resident[-1] < resident[4] + 100e6


@pytest.mark.parametrize("record", ["float64", "float32"])
def test_rows_say_who_decided_close_margins(tmp_path, record):
    store = evaluate(dataclasses.replace(OPTIONS, record=record), tmp_path / "run")
    assert set(store.results()["record"]) == {record} and store.options.record == record
    other = {"float64": "float32", "float32": "float64"}[record]
    with pytest.raises(ValueError, match=f"record={record}, not {other}"):
        evaluate(dataclasses.replace(OPTIONS, record=other), tmp_path / "run")
