"""Which images take part: literal oracles for what is correct, the draw, and what it does not depend on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_networks import class_tree, tiny

from apem_fast.experiment.inputs.classes import Classes
from apem_fast.experiment.inputs.image_folders import image_set
from apem_fast.experiment.inputs.selection import select
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions


@pytest.fixture(scope="module")
def network():
    network = tiny()
    network.model.eval()
    return network


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, network):
    folder = class_tree(tmp_path_factory.mktemp("tree"), each=6)
    return image_set(str(folder), None, Classes(network.categories)).photographs


@pytest.fixture(scope="module")
def right(photographs, network) -> dict[str, bool]:
    """Whether the network names each image as its folder does."""
    answers = {}
    for one in photographs:
        label = network.model(network.normalised(network.pixels(one.open())[None])).argmax()
        answers[one.name] = network.categories[label] == one.path.parent.name.lower()
    assert 4 <= sum(answers.values()) <= 26  # both kinds are tested
    return answers


def test_all_of_a_kind(photographs, network, right):
    def names(selection):
        return select(photographs, network, "cpu", selection=selection).names

    assert names("all") == names("both") == tuple(right)
    assert names("correct") == tuple(name for name in right if right[name])
    assert names("misclassified") == tuple(name for name in right if not right[name])


@pytest.mark.parametrize("selection, each", [("all", 7), ("correct", 3), ("misclassified", 5), ("both", 3)])
def test_so_many_drawn_by_a_seed(selection, each, photographs, network, right):
    draws = [select(photographs, network, "cpu", selection=selection, count=each, seed=seed) for seed in range(4)]
    assert len({draw.names for draw in draws}) > 1 and not any(draw.note for draw in draws)
    for draw in draws:
        kinds = [right[name] for name in draw.names]
        expected = {"all": None, "correct": (each, 0), "misclassified": (0, each), "both": (each, each)}[selection]
        assert len(kinds) == (each if expected is None else sum(expected))
        assert expected is None or (sum(kinds), len(kinds) - sum(kinds)) == expected
        assert list(draw.names) == [name for name in right if name in draw.names]  # in the images' order
    again = select(photographs[::-1], network, "cpu", selection=selection, count=each, seed=0)
    assert set(again.names) == set(draws[0].names)


def test_a_larger_draw_contains_a_smaller_one(photographs, network):
    few, many = (select(photographs, network, "cpu", selection="both", count=n, seed=5).names for n in (2, 4))
    assert set(few) < set(many)


def test_no_more_images_are_looked_at_than_needed(photographs, network):
    opened = []

    class Counted:
        def __init__(self, one):
            self.one, self.name = one, one.name

        def open(self):
            opened.append(self.name)
            return self.one.open()

        def __getattr__(self, name):
            return getattr(self.one, name)

    draw = select([Counted(one) for one in photographs], network, "cpu", selection="correct", count=1, seed=1)
    assert draw.names[0] == opened[-1] and len(opened) < len(photographs)


def test_fewer_than_asked_for(photographs, network, right):
    draw = select(photographs, network, "cpu", selection="both", count=29)
    assert draw.names == tuple(right)
    correct = sum(right.values())
    assert (
        draw.note == f"Fewer images than the 29 asked for: {correct} correct and {30 - correct} misclassified among 30."
    )


def test_images_that_cannot_be_read_are_passed_over(photographs, network, tmp_path):
    broken = [dataclasses.replace(one, path=tmp_path / one.name) for one in photographs[:10]]
    (tmp_path / broken[0].name).write_text("no image")
    draw = select(broken + list(photographs[10:]), network, "cpu", count=20, seed=2)
    assert set(draw.names) == {one.name for one in photographs[10:]}
    assert {one.path for one in draw.left_out} == {one.source for one in broken}
    assert {one.reason for one in draw.left_out if one.path == broken[0].source} == {"not an image that can be read"}


def test_nothing_to_choose_from(photographs, network, right):
    unknown = [dataclasses.replace(one, classes=()) for one in photographs]
    with pytest.raises(ValueError, match="selection correct needs images of known classes: a folder for each class"):
        select(unknown, network, "cpu", selection="correct")
    wrong = [one for one in photographs if not right[one.name]]
    with pytest.raises(ValueError, match=f"selection correct: none of the {len(wrong)} images is correct"):
        select(wrong, network, "cpu", selection="correct")
    assert select(unknown, network, "cpu", count=2).names  # "all" needs no classes


def test_the_run_explains_what_was_selected(photographs, right, tmp_path):
    options = RunOptions(
        network="tiny_networks:tiny",
        images=str(photographs[0].path.parent.parent),
        selection="both",
        count=2,
        seed=3,
        block=3,
        max_epsilon=8,
        explainers=("gradient",),
        stages=("1-channel",),
        batch_size=16,
    )
    store = evaluate(options, tmp_path / "run")
    images = store.images()
    assert sorted(images["correct"]) == [False, False, True, True]
    assert [right[name] for name in images["image"]] == list(images["correct"])
    assert (images["prediction"] == images["truth"]).eq(images["correct"]).all()
    labels = torch.tensor([CATEGORY_INDEX[name] for name in images["truth"]])
    assert images["truth_label"].tolist() == labels.tolist() and set(store.results()["image"]) == set(images["image"])
    with pytest.raises(ValueError, match="selection=both, not misclassified"):
        evaluate(dataclasses.replace(options, selection="misclassified"), tmp_path / "run")


def test_a_run_without_images_leaves_no_folder(tmp_path):
    class_tree(tmp_path / "tree", each=1)
    options = RunOptions(
        network="tiny_networks:tiny", images=str(tmp_path / "tree"), ground_truth="none", selection="correct"
    )
    with pytest.raises(ValueError, match="needs images of known classes"):
        evaluate(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


CATEGORY_INDEX = {name: index for index, name in enumerate(tiny().categories)}
