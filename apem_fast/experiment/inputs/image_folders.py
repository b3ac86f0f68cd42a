"""Folders of images: which files are images, their names in a run, and their true classes if known.

There are three layouts: a folder for each class; a flat folder with a ground truth file, as for ILSVRC2012's validation
images; and a flat folder of images whose classes are unknown.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from apem_fast.experiment.inputs.classes import Classes
from apem_fast.experiment.inputs.ground_truth import read_ground_truth
from apem_fast.experiment.inputs.photographs import Photograph, bundled_photographs
from apem_fast.explain.stored_maps import plain_name

NO_GROUND_TRUTH = "none"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class LeftOut:
    """A file that does not take part in a run, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """The images that a run chooses from, in the order of their names, and the files that are no images."""

    photographs: tuple[Photograph, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of the images' names and true classes."""
        digest = hashlib.blake2b(digest_size=16)
        for one in self.photographs:
            digest.update(repr((one.name, one.source, one.categories, one.classes, one.box)).encode())
        return digest.hexdigest()


def image_set(images: str, ground_truth: str | None, classes: Classes) -> ImageSet:
    """All images there are.

    Args:
        images: "photographs" for the bundled ones, or a folder.
        ground_truth: a file as `read_ground_truth` takes; "none" if folders are not classes; None if they are, or if
            there are no folders.
        classes: of the network.

    Raises:
        ValueError: no such folder, one without images, or truths that do not fit the network's classes.
        FileNotFoundError: a package with bundled photographs is missing.
    """
    if images == "photographs":
        if ground_truth is not None:
            raise ValueError("ground-truth: the bundled photographs bring their own (got a file)")
        return ImageSet(bundled_photographs())
    folder = Path(images)
    if not folder.is_dir():
        raise ValueError(f"images: {folder} is not a folder")
    truth_file = None if ground_truth in (None, NO_GROUND_TRUTH) else Path(ground_truth).resolve()
    files = sorted(file for file in _files(folder) if truth_file is None or (folder / file).resolve() != truth_file)
    paths = [file for file in files if PurePosixPath(file).suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"images: {folder} holds no images ({', '.join(suffix[1:] for suffix in SUFFIXES)})")
    truth = _truths(folder, paths, ground_truth, classes)
    names = unique_names(paths)
    photographs = tuple(
        Photograph(
            names[path], shown(PurePosixPath(path).stem), (), shown(path), folder / path, classes=truth.get(path, ())
        )
        for path in paths
    )
    images_alone = set(paths)
    return ImageSet(photographs, tuple(LeftOut(shown(f), "not an image file") for f in files if f not in images_alone))


def _files(folder: Path) -> Iterator[str]:
    """Relative paths, with slashes, of all files that are not hidden. Runs' folders and circular links are left out."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or "run.json" in files:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def _truths(folder: Path, paths: list[str], ground_truth: str | None, classes: Classes) -> dict[str, tuple[int, ...]]:
    if ground_truth == NO_GROUND_TRUTH:
        return {}
    if ground_truth is not None:
        return {path: (index,) for path, index in read_ground_truth(ground_truth, paths, classes).items()}
    within = [path for path in paths if "/" in path]
    if not within:
        return {}
    if len(within) < len(paths):
        raise ValueError(
            f"images: {folder} must hold either images or a folder of images for each class (got "
            f"{next(path for path in paths if '/' not in path)} beside folders); with "
            f"--ground-truth {NO_GROUND_TRUTH}, folders are no classes"
        )
    class_of = classes.of_folders(sorted({path.split("/")[0] for path in within}))
    return {path: (class_of[path.split("/")[0]],) for path in paths}


def shown(path: str) -> str:
    """A path as safe text: bytes that are not UTF-8, and control characters, become escapes."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def unique_names(paths: list[str]) -> dict[str, str]:
    """A unique name for each path, which is a safe file name on any system, also on one that ignores capitals."""
    plain = {path: _safe(path) for path in paths}
    count = Counter(name.casefold() for name in plain.values())
    names = {path: name if count[name.casefold()] == 1 else f"{name}.{_mark(path)}" for path, name in plain.items()}
    for size in (8, 16, 32):  # a file may have the very name that another one was given
        count = Counter(name.casefold() for name in names.values())
        if len(count) == len(names):
            break
        for path, name in names.items():
            if count[name.casefold()] > 1:
                names[path] = f"{plain[path]}.{_mark(path, size)}"
    return names


def _safe(path: str) -> str:
    name = plain_name(path) or "image"
    return name if len(name) <= 100 else f"{name[:80]}.{_mark(path)}"


def _mark(path: str, size: int = 4) -> str:
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()
