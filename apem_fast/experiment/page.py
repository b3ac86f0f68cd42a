"""A run as one HTML page that needs no network and no other file: made from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from apem_fast.experiment.figures import boxplots
from apem_fast.experiment.pictures import coloured, data_uri
from apem_fast.experiment.store import RunStore
from apem_fast.experiment.table import summary, totals
from apem_fast.explain import BASELINES
from apem_fast.relevance import STAGES

MAP_SIDE, PHOTOGRAPH_SIDE = 160, 224
"""Pixels: how wide and high pictures are inside the page; the files beside it have all of them."""


def write_page(store: RunStore, shown_images: int = 24) -> Path:
    """Write `index.html` into the run's folder; returns its path.

    Args:
        store: a run with at least one finished explainer.
        shown_images: how many images are shown with their maps, the first of the run.
    """
    table, correct = summary(store), store.images()["correct"]
    environment = Environment(
        loader=PackageLoader("apem_fast.experiment"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        data=_data(store, shown_images),
        options=store.options,
        made_with=store.record["made_with"],
        explainers=store.record["explainers"],
        stages=[STAGES[name] for name in store.options.stages],
        table=[row | {"baseline": _is_baseline(row["explainer"])} for row in table.to_dict("records")],
        best={stage: rows["median"].max() for stage, rows in table.groupby("stage")},
        totals=totals(table),
        findings=_findings(table),
        image_count=len(store.images()),
        correct_count=int(correct.sum()) if correct.notna().any() else None,
        boxplots=Markup(boxplots(store)),
    )
    return store.write_file(store.folder / "index.html", page)


def _is_baseline(key: str) -> bool:
    return key.split(":")[0] in BASELINES


def _findings(table: pandas.DataFrame) -> list[str]:
    """What the table says, in sentences: who scores highest, how the baselines do, and what readability costs."""

    def number(value: float) -> str:
        return f"{value:,.1f}".replace("-", "−")

    stages = list(dict.fromkeys(table["stage"]))
    first = table[table["stage"] == stages[0]]
    best = first.loc[first["median"].idxmax()]
    sentences = [f"At the {stages[0]} stage {best['name']} has the highest median score, {number(best['median'])}."]
    baselines = first[[_is_baseline(key) for key in first["explainer"]]]
    if len(baselines) and len(baselines) < len(first):
        low, high = baselines["median"].min(), baselines["median"].max()
        span = f"score {number(low)}" if low == high else f"score between {number(low)} and {number(high)}"
        sentences.append(f"The baselines, which know nothing of the network, {span}.")
    if len(stages) > 1:
        medians = table[table["explainer"] == best["explainer"]].set_index("stage")["median"]
        course = ", ".join(f"{number(medians[stage])} at {stage}" for stage in stages if stage in medians)
        sentences.append(f"{best['name']}, stage by stage: {course}.")
    return sentences


def _data(store: RunStore, shown_images: int) -> dict[str, Any]:
    """What the page's script shows: images, explainers, stages, and each map with its numbers."""
    pictures = store.options.pictures
    images = store.images().head(shown_images if pictures is None else min(shown_images, pictures))
    results = store.results()
    results = results[results["image"].isin(images["image"]) & (results["flag"] == "")]
    maps: dict[str, Any] = {}
    for row in results.to_dict("records"):
        with Image.open(store.map(row["image"], row["explainer"], row["stage"])) as picture:
            source = data_uri(coloured(picture), MAP_SIDE)
        maps.setdefault(row["image"], {}).setdefault(row["explainer"], {})[row["stage"]] = {
            "map": source,
            **{name: row[name] for name in ("epsilon_minus", "epsilon_plus", "score")},
            **{name: bool(row[name]) for name in ("flipped_minus", "flipped_plus")},
        }
    return {
        "max_epsilon": store.options.max_epsilon,
        "step": store.options.step,
        "stages": [{"name": name, "title": STAGES[name].title} for name in store.options.stages],
        "explainers": [
            {"key": key, "name": store.record["explainers"][key]["name"]}
            for key in store.options.explainers
            if key in set(results["explainer"])
        ],
        "images": [_image(store, row) for row in images.to_dict("records")],
        "maps": maps,
    }


def _image(store: RunStore, row: dict[str, Any]) -> dict[str, Any]:
    with Image.open(store.photograph(row["image"])) as picture:
        photograph = data_uri(picture.convert("RGB"), PHOTOGRAPH_SIDE, quality=85)
    fields = ("image", "subject", "source", "prediction", "confidence")
    correct = bool(row["correct"]) if pandas.notna(row["correct"]) else None
    return {name: row[name] for name in fields} | {"correct": correct, "photograph": photograph}
