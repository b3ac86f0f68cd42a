"""Folders of images: layouts, class folders, ground truth files, names, and one sentence for each mistake."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat
from tiny_networks import CATEGORIES, class_tree, save_photograph

from apem_fast.experiment.inputs.classes import Classes, with_class_file
from apem_fast.experiment.inputs.ground_truth import read_ground_truth
from apem_fast.experiment.inputs.image_folders import image_set, unique_names

FIVE = Classes(CATEGORIES)
SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")


def truths(folder, ground_truth=None, classes=FIVE) -> dict[str, tuple[int, ...]]:
    return {one.source: one.classes for one in image_set(str(folder), ground_truth, classes).photographs}


# -- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders_are_matched_by_name(tmp_path):
    found = truths(class_tree(tmp_path / "tree", each=2))
    assert list(found) == sorted(found) and len(found) == 10
    assert found["Daisy/photo 8.JPEG"] == (4,) and found["Tabby/photo 1.JPEG"] == (0,)


@pytest.mark.parametrize(
    "folders, classes, expected",
    [
        (("tiger_cat", "Egyptian Cat"), Classes(("x", "tiger cat", "Egyptian cat")), (1, 2)),
        (("0", "4"), FIVE, (0, 4)),
        (("007", "3"), Classes(tuple(map(str, "abcdefgh"))), (7, 3)),
        (SYNSETS[::-1], FIVE, (4, 3, 2, 1, 0)),  # all of them: their order
        ((SYNSETS[3],), Classes(CATEGORIES, SYNSETS[::-1]), (1,)),
        (("e", "d", "c", "b", "a"), FIVE, (4, 3, 2, 1, 0)),  # as many as classes: their order
        (("daisy", "4"), Classes(("4", "daisy")), (1, 0)),
        (("crane", "0"), Classes(("crane", "crane")), (1, 0)),  # a name of two classes is none; as many: their order
    ],
)
def test_rules_of_class_folders(folders, classes, expected):
    assert classes.of_folders(folders) == dict(zip(folders, expected))


@pytest.mark.parametrize(
    "folders, classes, words",
    [
        (("tabby", "tabbies"), FIVE, "got 2 folders, and no class for tabbies)"),
        (("tabby", "3"), FIVE, "no class for"),  # no rule holds for both
        (("5",), FIVE, "no class for 5"),
        (SYNSETS[:2], FIVE, "n01440764, n01443537; --classes FILE lists synsets"),
        (("crane",), Classes(("crane", "crane", "x")), "no class for crane"),
        (("a", "b", "c", "d"), FIVE, "no class for a, b, c and 1 more"),
    ],
)
def test_class_folders_that_do_not_fit(folders, classes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        classes.of_folders(folders)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("c.txt", "\n".join(SYNSETS), Classes(CATEGORIES, SYNSETS)),
        (
            "c.txt",
            "\n".join(f"{s} fish {i}, Pisces\n" for i, s in enumerate(SYNSETS)),
            Classes(tuple(f"fish {i}" for i in range(5)), SYNSETS),
        ),
        ("c.txt", "a b\nc\nd\ne\nf\n", Classes(("a b", "c", "d", "e", "f"))),
        (
            "c.json",
            json.dumps({str(i): [s, f"f{i}"] for i, s in enumerate(SYNSETS)}),
            Classes(tuple(f"f{i}" for i in range(5)), SYNSETS),
        ),
        ("c.json", '["a", "b", "c", "d", "e"]', Classes(tuple("abcde"))),
    ],
)
def test_class_files(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    assert with_class_file(CATEGORIES, tmp_path / name) == expected


@pytest.mark.parametrize(
    "text, words", [("a\nb\n", "lists 2 classes, the network has 5"), (None, "cannot be read as a list of classes")]
)
def test_class_files_that_do_not_fit(text, words, tmp_path):
    if text is not None:
        (tmp_path / "c.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        with_class_file(CATEGORIES, tmp_path / "c.txt")


# -- ground truth files ----------------------------------------------------------------------------------------------

VALIDATION = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 8)]
KIT_ORDER = (SYNSETS[2], SYNSETS[4], SYNSETS[0], SYNSETS[3], SYNSETS[1])  # the kit's numbers 1 to 5
TRUE = [3, 0, 1, 4, 2, 2, 0]  # the network's index of each validation image


def write_kit(folder) -> str:
    """A ground truth file and a meta.mat like those of the development kit: five leaves and one synset above them."""
    entries = [(number + 1, synset, 0) for number, synset in enumerate(KIT_ORDER)] + [(6, "n00001740", 5)]
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    savemat(folder / "meta.mat", {"synsets": np.array(entries, dtype=kind)[:, None]})
    numbers = [KIT_ORDER.index(SYNSETS[index]) + 1 for index in TRUE]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    return str(folder / "ILSVRC2012_validation_ground_truth.txt")


@pytest.mark.parametrize("classes", [FIVE, Classes(CATEGORIES, SYNSETS)])
def test_the_development_kits_numbers_are_translated(classes, tmp_path):
    found = read_ground_truth(write_kit(tmp_path), VALIDATION, classes)
    assert found == dict(zip(VALIDATION, TRUE))
    some = [VALIDATION[5], VALIDATION[2]]  # a part of the images: the number in a name counts, not its place
    assert read_ground_truth(write_kit(tmp_path), some, classes) == {some[0]: 2, some[1]: 1}


FILES = {
    "caffe": "".join(f"{name} {index}\n" for name, index in zip(VALIDATION, TRUE)),
    "synsets": "".join(f"{name} {SYNSETS[index]}\n" for name, index in zip(VALIDATION, TRUE)),
    "stems": "".join(f"{name[:-5]}\t{index}\n" for name, index in zip(VALIDATION[::-1], TRUE[::-1])),
    "kaggle": "ImageId,PredictionString\n"
    + "".join(f"{name[:-5]},{SYNSETS[i]} 1 2 3 4 {SYNSETS[0]} 5 6 7 8\n" for name, i in zip(VALIDATION, TRUE)),
    "indices": "".join(f"{index}\n" for index in TRUE),
}


@pytest.mark.parametrize("kind", FILES)
def test_ground_truth_files(kind, tmp_path):
    (tmp_path / "truth").write_text(FILES[kind])
    assert read_ground_truth(tmp_path / "truth", VALIDATION, FIVE) == dict(zip(VALIDATION, TRUE))
    assert read_ground_truth(tmp_path / "truth", VALIDATION[2:4], FIVE) == dict(zip(VALIDATION[2:4], TRUE[2:4]))


def test_names_may_have_folders(tmp_path):
    (tmp_path / "truth").write_text("a/one.png 2\na/two 3\nthree 1\n")
    found = read_ground_truth(tmp_path / "truth", ["a/one.png", "a/two.png", "b/three.png"], FIVE)
    assert found == {"a/one.png": 2, "a/two.png": 3, "b/three.png": 1}


@pytest.mark.parametrize(
    "text, images, words",
    [
        ("1\n2\n5\n", VALIDATION[:3], "must lie beside the ILSVRC2012 development kit's meta.mat"),
        ("0\n5\n", VALIDATION[:2], "holds class 5, the network has 5 classes"),
        ("0\n1\n", VALIDATION[:3], "has no line for ILSVRC2012_val_00000003.JPEG (it has 2 lines)"),
        ("0\n1\n", ["a.png"], "must have a number for each of the 1 images"),
        ("a 5\n", ["a.png"], "must be an index from 0 to 4 or a synset of the network (got 5)"),
        ("a n01440764\n", ["a.png"], "the classes of synsets such as n01440764 are not known; --classes FILE"),
        ("a 1\n", ["a.png", "b.png", "c.png"], "has no line for b.png and 1 more images"),
        ("a 1\nb\n", ["a.png", "b.png"], "must be NAME CLASS, or each a number (got 'b')"),
        ("", ["a.png"], "is empty"),
        (None, ["a.png"], "cannot be read"),
    ],
)
def test_ground_truth_files_that_do_not_fit(text, images, words, tmp_path):
    if text is not None:
        (tmp_path / "truth").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        read_ground_truth(tmp_path / "truth", images, FIVE)


def test_a_kit_of_more_classes_than_the_network(tmp_path):
    with pytest.raises(ValueError, match="names 5 classes, the network has 3"):
        read_ground_truth(write_kit(tmp_path), VALIDATION, Classes(CATEGORIES[:3]))
    (tmp_path / "meta.mat").write_text("something else")
    with pytest.raises(ValueError, match=r"cannot be read as the development kit's meta.mat"):
        read_ground_truth(tmp_path / "ILSVRC2012_validation_ground_truth.txt", VALIDATION, FIVE)


# -- layouts and names -----------------------------------------------------------------------------------------------


def test_a_flat_folder(tmp_path):
    for number, name in enumerate(VALIDATION[:3]):
        save_photograph(tmp_path / "flat" / name, number)
    (tmp_path / "flat" / "truth.txt").write_text("0\n1\n2\n")
    (tmp_path / "flat" / ".hidden.png").write_text("")
    (tmp_path / "flat" / "run" / "photographs").mkdir(parents=True)
    (tmp_path / "flat" / "run" / "run.json").write_text("{}")
    save_photograph(tmp_path / "flat" / "run" / "photographs" / "x.png", 0)  # a run's results are no images to explain
    assert truths(tmp_path / "flat") == dict.fromkeys(VALIDATION[:3], ())
    images = image_set(str(tmp_path / "flat"), str(tmp_path / "flat" / "truth.txt"), FIVE)
    assert [one.classes for one in images.photographs] == [(0,), (1,), (2,)] and images.left_out == ()
    assert images.digest != image_set(str(tmp_path / "flat"), None, FIVE).digest


def test_folders_that_are_no_classes(tmp_path):
    save_photograph(tmp_path / "b" / "one.png", 0)
    save_photograph(tmp_path / "two.png", 1)
    assert truths(tmp_path, "none") == {"b/one.png": (), "two.png": ()}
    with pytest.raises(ValueError, match=r"got two.png beside folders\); with --ground-truth none"):
        truths(tmp_path)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        truths(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="holds no images"):
        truths(tmp_path)
    with pytest.raises(ValueError, match="bring their own"):
        image_set("photographs", "truth.txt", FIVE)


def test_a_circle_of_links_ends(tmp_path):
    save_photograph(tmp_path / "tabby" / "one.png", 0)
    (tmp_path / "tabby" / "again").symlink_to(tmp_path)
    assert list(truths(tmp_path)) == ["tabby/one.png"]


PARTS = st.text("aAbB .-_/é:*\\'", min_size=1, max_size=8)


@given(st.lists(PARTS.map(lambda part: f"f/{part.strip('/')}/x.png".replace("//", "/")), unique=True, max_size=12))
def test_names_are_safe_and_distinct(paths):
    names = unique_names(paths)
    assert len({name.casefold() for name in names.values()}) == len(paths)
    assert all(re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*", name) and len(name) < 120 for name in names.values())
    assert unique_names(paths[::-1]) == names


def test_names_read_like_paths():
    assert unique_names(["tench/ILSVRC2012_val_1.JPEG", "b.png"]) == {
        "tench/ILSVRC2012_val_1.JPEG": "tench-ILSVRC2012_val_1",
        "b.png": "b",
    }
    twins = unique_names(["a b.png", "a_b.png", "a_b.jpg", "c.png"])
    assert len(set(twins.values())) == 4 and twins["c.png"] == "c" and twins["a b.png"].startswith("a_b.")
    assert len(unique_names([f"{'x' * 300}.png"])[f"{'x' * 300}.png"]) < 120
