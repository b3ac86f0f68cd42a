"""The exceptions of the papers: found by rule, kept with their pictures wherever they lie, shown on the page."""

from __future__ import annotations

import dataclasses
import re
import statistics
from types import SimpleNamespace

import pandas
import pytest
import torch
from torch import nn

from apem_fast.experiment.inputs import networks
from apem_fast.experiment.report.exceptions import exceptional, exceptional_images, exceptions
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.report.subject import Subject
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore

LIMIT = 100.0
PAPERS = {"gradient": "Gradient", "lrp": "LRP", "smooth-grad": "SmoothGrad"}


def subject(
    epsilons: dict[str, list[tuple[float | None, float | None] | None]], correct: bool | list[bool] = True
) -> Subject:
    """A run with one stage, from (epsilon_minus, epsilon_plus) of each image; None is a censored ray, or no row."""
    lines = []
    for key, of_key in epsilons.items():
        for i, pair in enumerate(of_key):
            if pair is None:
                continue
            minus, plus = (LIMIT if one is None else float(one) for one in pair)
            lines.append(
                {"image": f"image {i}", "explainer": key, "stage": "times-image", "score": plus - minus}
                | {"epsilon_minus": minus, "epsilon_plus": plus}
                | {"flipped_minus": pair[0] is not None, "flipped_plus": pair[1] is not None}
                | {"correct": correct if isinstance(correct, bool) else correct[i]}
            )
    rows = pandas.DataFrame(lines).astype({"correct": "boolean"})
    record = {"explainers": {key: {"name": PAPERS.get(key, key)} for key in epsilons}}
    return Subject(SimpleNamespace(record=record), rows, 0)  # type: ignore[arg-type]


def test_the_papers_rules_on_scores_written_down():
    """P1 section V-B's parachute is image 0; P2 Table 4.3's six images are 1 to 6; image 7 is as it should be."""
    run = subject(
        {
            "smooth-grad": [(9, 12), (9, 12), (9, 12), (9, 12), (275, 444), (392, 470), (458, 515), (9, 12)],
            "gradient": [(30, 20), (2, 4), (2, 3), (2, 6), (100, 900), (100, 900), (100, 900), (5, 50)],
            "lrp": [(5, 12), (1, 4), (1, 3), (1, 6), (297, 433), (455, 467), (482, 510), (6, 20)],
        }
    )
    below, lrp, smooth = exceptional(run)
    assert (below.title, below.images) == ("Gradient below 0, while LRP and SmoothGrad do better", ("image 0",))
    # By 17, 1, 1 and 1: the clearest first, ties in the run's order.
    assert (lrp.title, lrp.images) == ("LRP beats Gradient", ("image 0", "image 1", "image 2", "image 3"))
    # By 66, 33 and 29, and where LRP's is 2 or 3 and SmoothGrad's 3.
    assert smooth.title == "SmoothGrad beats LRP" and smooth.methods == ("smooth-grad", "lrp", "gradient")
    assert smooth.images == ("image 5", "image 4", "image 6", "image 2")
    assert {one.of for one in (below, lrp, smooth)} == {8}
    assert exceptional_of(run) == ["image 0", "image 1", "image 2", "image 5", "image 4", "image 6"]


def exceptional_of(run: Subject) -> list[str]:
    return list(dict.fromkeys(image for one in exceptional(run) for image in one.images[:3]))


def test_only_what_is_sure_counts():
    censored_plus, censored_minus = (50, None), (None, 20)  # a score above 50, one below -80
    below, lrp, _ = exceptional(
        subject(
            {
                "gradient": [(50, 40), (50, 40), censored_minus, (50, 40), None],
                "lrp": [censored_plus, (40, 41), (40, 41), (None, 50), (5, 50)],
                "smooth-grad": [(5, 50)] * 5,
            }
        )
    )
    # Of image 3 LRP's score is below -50, perhaps below the gradient's; image 4 has no gradient.
    assert lrp.images == ("image 2", "image 0", "image 1") and lrp.of == 4
    assert below.images == ("image 2", "image 0", "image 1") and below.of == 4
    below, *_ = exceptional(
        subject({"gradient": [(50, None), (50, 51)], "lrp": [(1, 99)] * 2, "smooth-grad": [(1, 99)] * 2})
    )
    assert below.images == ()  # above 0, whatever the censored epsilon is


def test_misclassified_images_stand_apart_as_in_the_papers():
    scores = {"gradient": [(30, 20)] * 8, "lrp": [(5, 9)] * 8, "smooth-grad": [(5, 8)] * 8}
    below, *_ = exceptional(subject(scores, correct=[True, False] * 4))
    assert below.images == ("image 0", "image 2", "image 4", "image 6") and below.of == 4


def test_other_methods_are_taken_by_their_medians():
    a, b, c, d = [(0, 9), (9, 5), (0, 9)], [(0, 7), (0, 7), (0, 10)], [(0, 3), (0, 8), (0, 3)], [(0, 1)] * 3
    below, first, second = exceptional(subject({"d": d, "c": c, "a": a, "b": b, "random": [(0, 99)] * 3}))
    assert (below.title, below.images) == ("a below 0, while b and c do better", ("image 1",))
    assert (first.title, first.images) == ("b beats a", ("image 1", "image 2"))
    assert (second.title, second.images) == ("c beats b", ("image 1",))
    below, first = exceptional(subject({"a": a, "b": b}))
    assert below.title == "a below 0, while b does better" and first.images == ("image 1", "image 2")
    assert exceptional(subject({"a": a, "random": b})) == [] and exceptions(subject({"a": a})) is None


# -- a run -----------------------------------------------------------------------------------------------------------


def tiny_network() -> networks.Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5))
    return networks.Network("tiny", model, 24, (0.5,) * 3, (0.25,) * 3, ("tabby", "espresso", "missile", "moped", "x"))


OPTIONS = RunOptions(
    network="tiny",
    limit=9,
    block=4,
    max_epsilon=2000,
    step=0.5,
    explainers=("gradient", "smooth-grad:samples=3", "input-x-gradient", "random"),
    pictures=1,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny_network)


def pictures_of(store: RunStore) -> dict[str, bytes]:
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in store.folder.rglob("*.png")}


def literal(store: RunStore) -> set[str]:
    """The photographs to keep, by loops over the rows of the last stage."""
    images = store.images()["image"].tolist()
    lines = [row for row in store.results().to_dict("records") if row["stage"] == "times-image"]
    scores = {(row["explainer"], row["image"]): row["score"] for row in lines}
    assert all(row["flipped_minus"] and row["flipped_plus"] for row in lines)
    keys = [key for key in OPTIONS.explainers if key != "random"]
    order = sorted(keys, key=lambda key: -statistics.median(scores[key, image] for image in images))
    below = [
        image
        for image in images
        if scores[order[0], image] < 0 and all(scores[key, image] > scores[order[0], image] for key in order[1:])
    ]
    found = set(sorted(below, key=lambda image: scores[order[0], image])[:3])
    for better, beaten in ((order[1], order[0]), (order[2], order[1])):
        gain = {image: scores[better, image] - scores[beaten, image] for image in images}
        found |= set(sorted((image for image in images if gain[image] > 0), key=lambda image: -gain[image])[:3])
    return found


def test_pictures_are_kept_wherever_they_lie(tmp_path):
    every = evaluate(dataclasses.replace(OPTIONS, pictures=None), tmp_path / "every")
    store = evaluate(OPTIONS, tmp_path / "run", also_pictured=exceptional_images)
    images, expected = store.images()["image"].tolist(), literal(store)
    assert expected & set(images[4:]) and len(expected) < 8  # some lie in later blocks, some images are none
    kept = pictures_of(store)
    assert {name for name in images if f"photographs/{name}.png" in kept} == expected | {images[0]}
    # Of every explainer at every stage, and the same as if they had been kept as the run went along.
    assert len(kept) == len(expected | {images[0]}) * (1 + 4 * 3)
    assert kept.items() <= pictures_of(every).items()

    section = exceptions(Subject(store, scored_rows(store)[0], 0))
    shown = {row[0].caption for _, rows in section.pictures for row in rows}
    assert shown == expected and {len(row) for _, rows in section.pictures for row in rows} == {4}
    assert re.search(r": \d of 9", section.finding)
    (_, table) = section.tables[0]
    assert {row[1].text for row in table.rows} == expected

    # What is lost is made again, and only that; a run that is not to keep pictures keeps none.
    lost = store.folder / next(name for name in sorted(kept) if name.startswith("maps/") and images[0] not in name)
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.png")}
    evaluate(OPTIONS, store.folder, also_pictured=exceptional_images)
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert pictures_of(store) == kept
    assert again == {path for path in lost.parents[1].rglob(lost.name) if path != lost}  # its other stages alone
    none = evaluate(dataclasses.replace(OPTIONS, pictures=0), tmp_path / "none", also_pictured=exceptional_images)
    assert pictures_of(none) == {}
