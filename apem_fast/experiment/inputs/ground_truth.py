"""Reads the true classes of images in a flat folder from a file, as for ILSVRC2012.

Two kinds of file are in use. Both are read, and their numbering is never guessed:

    NAME CLASS     a line for each image, in any order; NAME with or without folder and suffix; CLASS the index from 0
                   in the order of the network's outputs, or a synset (wnid). Caffe's val.txt is such a file, and, with
                   commas and a heading, Kaggle's LOC_val_solution.csv; the rest of a line is not read.
    NUMBER         a line for each image, in the order of the images' names: the development kit's
                   ILSVRC2012_validation_ground_truth.txt. Its numbers run from 1 to 1000 in the kit's own order, not in
                   the alphabetical order of synsets that networks use. The kit's meta.mat, which must be in the same
                   folder, translates them. If one of the numbers is 0, they are indices as above.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from apem_fast.experiment.inputs.classes import SYNSET, Classes

_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_ground_truth(path: str | Path, images: Sequence[str], classes: Classes) -> dict[str, int]:
    """The class of each image.

    Args:
        path: the ground truth file.
        images: their paths within their folder, with slashes, in order.
        classes: the network's.

    Returns:
        The index of its class for every image.

    Raises:
        ValueError: the file cannot be read, lacks an image, or has classes that the network lacks.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"ground-truth: {path} cannot be read ({error})") from None
    lines = [re.split(r"[,\s]+", line.strip()) for line in text.splitlines() if line.strip()]
    if lines and lines[0][0] == "ImageId":
        lines = lines[1:]
    if not lines:
        raise ValueError(f"ground-truth: {path} is empty")
    if all(len(line) == 1 and line[0].isdecimal() for line in lines):
        return _by_number(path, [int(line[0]) for line in lines], images, classes)
    return _by_name(path, lines, images, classes)


def _by_name(path: Path, lines: list[list[str]], images: Sequence[str], classes: Classes) -> dict[str, int]:
    classes = classes.sorted_synsets([line[1] for line in lines if len(line) > 1 and SYNSET.fullmatch(line[1])])
    truth: dict[str, int] = {}
    for line in lines:
        if len(line) < 2:
            raise ValueError(
                f"ground-truth: each line of {path} must be NAME CLASS, or each a number (got {line[0]!r})"
            )
        index = classes.index_of(line[1])
        if index is None:
            raise ValueError(f"ground-truth: {_no_class(line[1], classes)} (in {path})")
        truth[line[0]] = index
    found = {image: truth[name] for image in images if (name := _named_in(truth, image)) is not None}
    lacking = [image for image in images if image not in found]
    if lacking:
        more = f" and {len(lacking) - 1} more images" if len(lacking) > 1 else ""
        raise ValueError(f"ground-truth: {path} has no line for {lacking[0]}{more}")
    return found


def _named_in(truth: dict[str, int], image: str) -> str | None:
    path = PurePosixPath(image)
    names = (image, str(path.with_suffix("")), path.name, path.stem)
    return next((name for name in names if name in truth), None)


def _no_class(word: str, classes: Classes) -> str:
    if SYNSET.fullmatch(word) and not classes.synsets:
        return f"the classes of synsets such as {word} are not known; --classes FILE lists them in the network's order"
    return f"a class must be an index from 0 to {len(classes) - 1} or a synset of the network (got {word})"


def _by_number(path: Path, numbers: list[int], images: Sequence[str], classes: Classes) -> dict[str, int]:
    if 0 in numbers:
        index_of = {number: number for number in range(len(classes))}
    else:
        index_of = _development_kit(path, min(numbers), classes)
    for number in numbers:
        if number not in index_of:
            raise ValueError(f"ground-truth: {path} holds class {number}, the network has {len(classes)} classes")
    stems = [_VALIDATION_IMAGE.fullmatch(PurePosixPath(image).stem) for image in images]
    if all(stems):
        places = [int(match[1]) - 1 for match in stems if match]
    elif len(images) == len(numbers):
        places = list(range(len(images)))
    else:
        raise ValueError(
            f"ground-truth: {path} must have a number for each of the {len(images)} images, unless they are called "
            f"ILSVRC2012_val_00000001 and so on (got {len(numbers)})"
        )
    for image, place in zip(images, places):
        if not 0 <= place < len(numbers):
            raise ValueError(f"ground-truth: {path} has no line for {image} (it has {len(numbers)} lines)")
    return {image: index_of[numbers[place]] for image, place in zip(images, places)}


_READER = """
import json, sys
from scipy.io import loadmat
synsets = loadmat(sys.argv[1], squeeze_me=True)["synsets"]
leaves = synsets[synsets["num_children"] == 0]
print(json.dumps(list(zip(map(int, leaves["ILSVRC2012_ID"]), map(str, leaves["WNID"])))))
"""


def _numbers_in(meta: Path) -> dict[int, str]:
    """The kit's numbers and their synsets.

    They are read in a separate process, since a damaged file can end SciPy's reader with a segmentation fault.
    """
    command = [sys.executable, "-P", "-c", _READER, str(meta)]
    came = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    try:
        if came.returncode != 0:
            lines = came.stderr.strip().splitlines()
            raise ValueError(lines[-1] if lines and came.returncode > 0 else "the reader broke down")
        return dict(json.loads(came.stdout))
    except (ValueError, TypeError) as error:
        raise ValueError(f"ground-truth: {meta} cannot be read as the development kit's meta.mat ({error})") from None


def _development_kit(path: Path, least: int, classes: Classes) -> dict[int, int]:
    """The network's index of each of the kit's numbers."""
    meta = path.with_name("meta.mat")
    if not meta.exists():
        raise ValueError(
            f"ground-truth: {path} must lie beside the ILSVRC2012 development kit's meta.mat, which says what its "
            f"numbers mean, or hold lines 'NAME INDEX' (from 0) or 'NAME SYNSET' (got numbers from {least})"
        )
    numbers = _numbers_in(meta)
    classes = classes.sorted_synsets(list(numbers.values()))
    if not classes.synsets:
        raise ValueError(f"ground-truth: {meta} names {len(numbers)} classes, the network has {len(classes)}")
    indices = {number: classes.index_of(synset) for number, synset in numbers.items()}
    return {number: index for number, index in indices.items() if index is not None}
