"""The data of a page's gallery: images with their maps, numbers and close-ups, of one run or several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas

from apem_fast.experiment.report.closeups import RAYS, closeup_picture, read_closeup
from apem_fast.experiment.report.subject import explainer_names
from apem_fast.experiment.run.pictures import kept_picture, small_map, small_picture
from apem_fast.experiment.run.store import RunStore
from apem_fast.relevance import STAGES

MAP_SIDE, PHOTOGRAPH_SIDE = 160, 224
"""The greatest width and height of pictures inside the page, in pixels; the files in the folder have full size."""
LEAST_SIDE = 48
BYTES_OF_MAPS, BYTES_A_PIXEL = 11e6, 0.45
"""A page of many maps shows them smaller, so that it stays below some 15 MB. A map is hard to compress. Of more images
than that allows, the page has pictures of the first ones, and the numbers of all."""


def gallery_data(stores: Mapping[str, RunStore], shown_images: int | None = None) -> dict[str, Any]:
    """The data for the page's script: images, explainers, stages, and each map with its numbers and its close-up.

    Args:
        stores: runs by their names. Of several runs, only images that all have are shown, and each method once for each
            run that has it, side by side.
        shown_images: the greatest number of images, the first ones; None for all whose pictures the runs kept.
    """
    runs = [_OfRun(number, name, store) for number, (name, store) in enumerate(stores.items())]
    images = _common_images(runs, shown_images)
    for run in runs:
        run.results = run.results[run.results["image"].isin(images)]
    side, pictured = _sizes(len(images), sum(len(run.results) for run in runs))
    with_pictures = set(images[:pictured])
    maps: dict[str, Any] = {}
    for run in runs:
        run.add_maps(maps, side, with_pictures, several=len(runs) > 1)
    methods = dict.fromkeys(key for run in runs for key in run.methods())
    options = [run.store.options for run in runs]
    return {
        "image_count": len(runs[0].images),
        "picture_count": min(pictured, len(images)),
        "max_epsilon": max(one.max_epsilon for one in options),
        "step": min(one.step for one in options),
        "runs": list(stores),
        "stages": [
            {"name": name, "title": STAGES[name].title} for name in STAGES if any(name in one.stages for one in options)
        ],
        "explainers": [
            run.explainer(key, several=len(runs) > 1) for key in methods for run in runs if key in run.methods()
        ],
        "images": [
            _image(runs, name, round(PHOTOGRAPH_SIDE * side / MAP_SIDE) if name in with_pictures else 0)
            for name in images
        ],
        "maps": maps,
    }


def _sizes(images: int, maps: int) -> tuple[int, int]:
    """The side of a map's picture in pixels, and the number of images with pictures."""
    side = math.sqrt(BYTES_OF_MAPS / max(1, maps + images) / BYTES_A_PIXEL)
    if side >= LEAST_SIDE:
        return round(min(MAP_SIDE, side)), images
    bytes_an_image = (maps / images + 1) * LEAST_SIDE**2 * BYTES_A_PIXEL
    return LEAST_SIDE, int(BYTES_OF_MAPS / bytes_an_image)


class _OfRun:
    """One of the runs in a gallery."""

    def __init__(self, number: int, name: str, store: RunStore):
        self.number, self.name, self.store = number, name, store
        self.images = store.images()
        self.results = store.results()
        self.by_name = {row["image"]: row for row in self.images.to_dict("records")}
        self.names = explainer_names(store)

    def methods(self) -> list[str]:
        """The explainers that have results, in the run's order."""
        done = set(self.results["explainer"])
        return [key for key in self.store.options.explainers if key in done]

    def column(self, key: str, several: bool) -> str:
        """The page's name for an explainer of this run."""
        return f"{self.number}/{key}" if several else key

    def explainer(self, key: str, several: bool) -> dict[str, str]:
        name = f"{self.names[key]} · {self.name}" if several else self.names[key]
        return {
            "key": self.column(key, several),
            "name": name,
            "method": key,
            "title": self.names[key],
            "run": self.name,
        }

    def add_maps(self, maps: dict[str, Any], side: int, with_pictures: set[str], several: bool) -> None:
        store = self.store
        for row in self.results.to_dict("records"):
            path = store.map(row["image"], row["explainer"], row["stage"])
            if not path.exists():
                continue
            entry: dict[str, Any] = {"flag": row["flag"]} if row.get("flag") else {}
            if row["image"] in with_pictures:
                entry["map"] = small_map(kept_picture(path), side)
            if row["score"] == row["score"]:  # a flagged map has no numbers
                entry |= {name: row[name] for name in ("epsilon_minus", "epsilon_plus", "score")}
                entry |= {name: bool(row[name]) for name in ("flipped_minus", "flipped_plus")}
                rays = _rays(store, row["explainer"], row["stage"], row["image"])
                entry |= {} if rays is None else {"rays": rays}
            column = self.column(row["explainer"], several)
            maps.setdefault(row["image"], {}).setdefault(column, {})[row["stage"]] = entry

    def shows_what(self, other: _OfRun, image: str) -> bool:
        """Whether an image is the same in another run: the same values where the network is one, as far as is known; of
        another network, which may prepare images otherwise, the same file."""
        mine, theirs = self.by_name[image], other.by_name[image]
        column = "digest" if self.store.options.network == other.store.options.network else "source"
        return mine[column] == theirs[column]


def _common_images(runs: list[_OfRun], shown_images: int | None) -> list[str]:
    """The images of the first run that all runs have with the same content, and whose pictures they kept."""
    first, *others = runs
    names = first.images["image"].tolist()
    names = names if shown_images is None else names[:shown_images]
    return [
        name
        for name in names
        if all(run.store.photograph(name).exists() for run in runs)  # a big run keeps only the first
        and all(name in run.by_name and first.shows_what(run, name) for run in others)
    ]


def _rays(store: RunStore, explainer: str, stage: str, image: str) -> dict[str, Any] | None:
    """The close-up of one map: for each ray, its margin curve, the prediction at the flip and two small pictures."""
    record = read_closeup(store, explainer, image).get(stage)
    if record is None:
        return None
    rays = {}
    for ray in RAYS:
        rays[ray] = {name: record[ray][name] for name in ("epsilon", "margin", "prediction", "gain", "mean_change")}
        for name, which in (("perturbed", ray), ("change", f"{ray}-change")):
            picture = kept_picture(closeup_picture(store, explainer, stage, image, which))
            rays[ray][name] = small_picture(picture.convert("RGB"), MAP_SIDE, quality=60)
    return rays


def _correct(row: Mapping[str, Any]) -> bool | None:
    return None if pandas.isna(row["correct"]) else bool(row["correct"])


def _image(runs: list[_OfRun], name: str, side: int) -> dict[str, Any]:
    """An image's data, with each network's prediction, and its photograph if a side is given."""
    first, row = runs[0], runs[0].by_name[name]
    fields: dict[str, Any] = {field: row[field] for field in ("image", "subject", "source", "prediction", "confidence")}
    if side:
        picture = kept_picture(first.store.photograph(name)).convert("RGB")
        fields["photograph"] = small_picture(picture, side, quality=85)
    loss = row.get("loss")
    return fields | {
        "correct": _correct(row),
        "truth": row.get("truth") or "",
        "loss": None if loss is None or pandas.isna(loss) else loss,
        "dropped": row.get("dropped") or "",
        "predictions": [
            {
                "run": run.name,
                "prediction": run.by_name[name]["prediction"],
                "confidence": run.by_name[name]["confidence"],
                "correct": _correct(run.by_name[name]),
            }
            for run in (runs if len(runs) > 1 else [])
        ],
    }
