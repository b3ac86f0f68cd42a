"""Finds a network's class from its name, its index, or its ImageNet synset, such as n01440764."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Classes:
    """The classes of a network, in the order of its outputs.

    Args:
        categories: the name of each class; two classes may share one (ImageNet has two cranes).
        synsets: the WordNet id (wnid) of each class, such as n01440764; empty if they are not known.
    """

    categories: tuple[str, ...]
    synsets: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.categories)

    def sorted_synsets(self, synsets: Sequence[str]) -> Classes:
        """These classes with the given synsets in alphabetical order, which is the order of every ImageNet network.

        Unchanged if synsets are known already, or if there are not as many as classes.
        """
        distinct = sorted(set(synsets))
        if self.synsets or len(distinct) != len(self) or not all(map(SYNSET.fullmatch, distinct)):
            return self
        return replace(self, synsets=tuple(distinct))

    def index_of(self, word: str) -> int | None:
        """The class that `word` names by its index from 0 or by its synset; None if there is none."""
        if word.isdecimal():
            return int(word) if int(word) < len(self) else None
        return self._synset_index.get(word)

    def of_folders(self, folders: Sequence[str]) -> dict[str, int]:
        """The class of each of the folders that images are sorted into.

        The first of these rules that holds for every folder is applied to all: its name is that of exactly one category
        (capitals do not matter, and _ counts as a blank); it is a synset of a known class; it is an index from 0; or
        there are as many folders as classes, which are then assigned in alphabetical order.

        Raises:
            ValueError: no rule holds for all folders.
        """
        known = self.sorted_synsets(folders)
        rules = (lambda folder: self._name_index.get(_plain(folder)), known._synset_index.get, known.index_of)
        matched = [{folder: rule(folder) for folder in folders} for rule in rules]
        for found in matched:
            if None not in found.values():
                return {folder: index for folder, index in found.items() if index is not None}
        if len(folders) == len(self):
            return {folder: index for index, folder in enumerate(sorted(folders))}
        best = min(matched, key=lambda found: list(found.values()).count(None))
        strangers = [folder for folder, index in best.items() if index is None]
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        hint = "" if self.synsets or not any(map(SYNSET.fullmatch, strangers)) else "; --classes FILE lists synsets"
        raise ValueError(
            f"images: folders must be named after the network's {len(self)} classes, by category, by index from 0 or "
            f"by synset, or be as many as they are (got {len(folders)} folders, and no class for "
            f"{', '.join(strangers[:3])}{more}{hint})"
        )

    @cached_property
    def _name_index(self) -> dict[str, int | None]:
        """The index of each name; None if two classes share it."""
        found: dict[str, int | None] = {}
        for index, name in enumerate(self.categories):
            found[_plain(name)] = None if _plain(name) in found else index
        return found

    @cached_property
    def _synset_index(self) -> dict[str, int]:
        return {synset: index for index, synset in enumerate(self.synsets)}


def with_class_file(categories: tuple[str, ...], path: str | Path) -> Classes:
    """The classes that a file lists in the order of the network's outputs.

    It has a line for each class: its synset, its name, or its synset followed by its names with commas between them, as
    in ILSVRC's `LOC_synset_mapping.txt`. Or it is JSON: a list of names, or `{"0": ["n01440764", "tench"], ...}`. Its
    names replace `categories`.

    Raises:
        ValueError: a file that cannot be read, or that does not list as many classes.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        entries = _json_entries(json.loads(text)) if path.suffix == ".json" else _line_entries(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"classes: {path} cannot be read as a list of classes ({error})") from None
    if len(entries) != len(categories):
        raise ValueError(f"classes: {path} lists {len(entries)} classes, the network has {len(categories)}")
    synsets, names = zip(*entries)
    return Classes(names if all(names) else categories, synsets if all(synsets) else ())


def _line_entries(text: str) -> list[tuple[str, str]]:
    entries = []
    for line in filter(None, map(str.strip, text.splitlines())):
        first, _, rest = line.partition(" ")
        entries.append((first, rest.split(",")[0].strip()) if SYNSET.fullmatch(first) else ("", line))
    return entries


def _json_entries(content: list[str] | dict[str, list[str]]) -> list[tuple[str, str]]:
    if isinstance(content, list):
        return [("", str(name)) for name in content]
    return [(content[str(index)][0], content[str(index)][1]) for index in range(len(content))]


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()
