"""Single flipped bits, and files cut off, of every kind that the commands leave: noticed in one sentence, or no other
number."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from apem_fast.experiment.filter.filtered import FilteredPhotograph
from apem_fast.experiment.report.report import write_report
from apem_fast.experiment.run.pictures import kept_picture
from apem_fast.experiment.run.store import IMAGES, RunStore
from apem_fast.files.checksums import checked_json
from apem_fast.siamese import checkpoints
from reliability import children
from reliability.commands import COMMANDS, write_images
from reliability.tables import Part

CUT_OFF = 10  # every so many times a file is cut off, not changed
OUTCOMES = ("same", "noticed", "silent", "traceback")


@dataclass(frozen=True)
class Kind:
    """One file of a kind, and how the program reads it, as something that can be compared."""

    name: str
    path: Path
    read: Callable[[], Any]


def kinds(folder: Path) -> list[Kind]:
    """Files as the commands leave them in `folder`."""
    images = write_images(folder / "images")
    for command in COMMANDS:
        place = folder / command.name
        if children.finish(partial(command.work, images, place), place) != 0:
            raise RuntimeError(children.said(place))
    run = folder / "evaluate"
    if children.finish(lambda: _report(run), run) != 0:
        raise RuntimeError(children.said(run))
    store = RunStore(run)

    def shard(key: str) -> Kind:
        path = min((run / "shards").glob(f"00000.{key}*.parquet"))
        return Kind(f"shard of {key}", path, lambda: store.read(0, key))

    def picture(name: str, path: Path) -> Kind:
        return Kind(name, path, lambda: np.asarray(kept_picture(path)))

    def record(name: str, path: Path) -> Kind:
        return Kind(name, path, lambda: checked_json(path.read_bytes()))

    def first(place: Path, pattern: str) -> Path:
        return min(place.rglob(pattern))

    filtered = first(folder / "filter", "*.pt")
    training, ranker = (folder / "siamese train" / name for name in ("training.pt", "ranker.pt"))
    return [
        shard(IMAGES),
        shard("gradient"),
        Kind("run.json", run / "run.json", lambda: RunStore(run).record),
        Kind("selection.json", run / "selection.json", store.selection),
        picture("photograph of a run", first(run / "photographs", "*.png")),
        picture("map of a run", first(run / "maps", "*.png")),
        record("close-up's numbers", first(run / "closeups", "*.json")),
        picture("close-up's picture", first(run / "closeups", "*.png")),
        Kind("filtered map", filtered, lambda: vars(FilteredPhotograph.load(filtered))),
        record("filter's options.json", folder / "filter" / "options.json"),
        record("filter's table", folder / "filter" / "filtered.json"),
        picture("filter's picture", folder / "filter" / "filtered.png"),
        Kind("training checkpoint", training, lambda: checkpoints.read(training, checkpoints.TRAINING, "training")),
        Kind("trained ranker", ranker, lambda: _ranker(ranker)),
    ]


def _report(run: Path) -> None:
    write_report(RunStore(run), images=1, trust=True)


def _ranker(path: Path) -> dict[str, Any]:
    ranker, facts = checkpoints.load_ranker(path)
    return {"facts": facts, **ranker.state_dict()}


def plain(value: Any) -> Any:
    """Something whose equality is that of every bit."""
    if isinstance(value, pandas.DataFrame):
        return value.to_json(double_precision=15), *map(str, value.dtypes), *(repr(v) for v in value.to_numpy().flat)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "numpy"):
        return plain(value.numpy())
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes()
    return repr(value)


def outcome(read: Callable[[], Any], expected: Any) -> str:
    try:
        value = read()
    except (ValueError, FileNotFoundError) as error:
        return "noticed" if str(error) and "\n" not in str(error) else "traceback"
    except Exception:
        return "traceback"
    return "same" if plain(value) == expected else "silent"


def run(folder: Path, seconds: float, seed: int, positions: int = 46_200) -> Part:
    """`positions` times in all, as often for each kind, while time lasts."""
    draw = random.Random(seed)
    every = kinds(folder)
    rows, deadline = [], time.monotonic() + seconds
    for number, kind in enumerate(every):
        contents = kind.path.read_bytes()
        expected = plain(kind.read())
        share = (deadline - time.monotonic()) / (len(every) - number)
        until, counts = time.monotonic() + share, Counter[str]()
        cut = 0
        for time_ in range(-(-positions // len(every))):
            at = draw.randrange(len(contents))
            changed = bytearray(contents)
            if time_ % CUT_OFF == CUT_OFF - 1:
                del changed[at:]
                cut += 1
            else:
                changed[at] ^= 1 << draw.randrange(8)
            kind.path.write_bytes(changed)
            counts[outcome(kind.read, expected)] += 1
            if time.monotonic() > until:
                break
        kind.path.write_bytes(contents)
        rows.append((kind.name, len(contents), counts.total() - cut, cut, *(counts[one] for one in OUTCOMES)))
    sums = [sum(row[column] for row in rows) for column in range(2, len(OUTCOMES) + 4)]
    return Part(
        "Flipped bits",
        "One bit at a random place of a file, or the file cut off there; then it is read as the program reads it. "
        "Wanted: none silent, no traceback.",
        ("file", "bytes", "flips", "cut off", *OUTCOMES),
        [*rows, ("all", "", *sums)],
        bad=sums[-1] + sums[-2],
    )
