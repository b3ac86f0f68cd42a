"""A run as one HTML page that needs no network and no other file: made from the store alone."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pandas
from jinja2 import Environment, PackageLoader, StrictUndefined

from apem_fast.experiment.report.audited import audit_section, audit_sentence
from apem_fast.experiment.report.claims import claims, claims_section
from apem_fast.experiment.report.closeups import RAYS, closeup_picture, read_closeup
from apem_fast.experiment.report.findings import leader_sentences
from apem_fast.experiment.report.published import paper_tables
from apem_fast.experiment.report.section import Cell, Table, number
from apem_fast.experiment.report.sections import sections_of
from apem_fast.experiment.report.sets import TITLES, image_sets
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.report.subject import explainer_names, is_baseline
from apem_fast.experiment.report.summary import AFTER_SCORES, BY_NAME, interval, marked, summary, totals
from apem_fast.experiment.run.pictures import coloured, kept_picture, small_picture
from apem_fast.experiment.run.store import RunStore
from apem_fast.files.checksums import Damaged, checked_json
from apem_fast.relevance import STAGES

MAP_SIDE, PHOTOGRAPH_SIDE, FILTER_SIDE = 160, 224, 1400
"""Pixels: how wide and high pictures are inside the page, at most; the files beside it have all of them."""
LEAST_SIDE = 48
BYTES_OF_MAPS, BYTES_A_PIXEL = 11e6, 0.45
"""A page of many maps shows them smaller, so that it stays below some 15 MB. A map is hard to compress."""


def write_page(
    store: RunStore, shown_images: int | None = None, *, paper: bool = False, output: str | Path | None = None
) -> Path:
    """Write the page; returns its path.

    Args:
        store: a run with at least one finished explainer.
        shown_images: how many images are shown with their maps, the first of the run; None for all whose pictures the
            run kept. Those that have close-ups (see `closeups`) show them.
        paper: add the tables of P1 and P2, with their numbers beside the run's.
        output: an HTML file; None for `index.html` in the run's folder.

    Raises:
        ValueError: the run has no finished results, or none with a score, or was written by another version.
    """
    rows, flagged = scored_rows(store)
    if rows.empty:
        raise ValueError(f"{store.folder} holds no map that could be measured: all {len(flagged)} are flagged")
    table = summary(store)
    environment = Environment(
        loader=PackageLoader("apem_fast.experiment.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    correct = store.images()["correct"].astype("boolean")
    page = environment.get_template("page.html").render(
        data=_data(store, shown_images),
        options=store.options,
        made_with=store.record["made_with"],
        explainers=store.record["explainers"],
        stages=[STAGES[name] for name in store.options.stages],
        table=[
            row
            | {"baseline": is_baseline(row["explainer"])}
            | {f"{name}_text": marked(row, name).replace("-", "−") for name in ("median", "mean")}
            | {f"{name}_range": _range(row, name) for name in ("median", "mean")}
            | {f"{name}_interval": _interval(row, name) for name in ("median", "mean")}
            | {"set_title": TITLES[row["set"]]}
            for row in table.to_dict("records")
        ],
        best={key: part["median"].max() for key, part in table.groupby(["set", "stage"])},
        columns=BY_NAME,
        after_scores=AFTER_SCORES,
        apart=len(set(table["set"])) > 1,
        notes=_notes(store),
        flagged=_flagged(store, flagged),
        totals=totals(table),
        duration=_duration(totals(table)["seconds"]),
        findings=_findings(table, rows),
        image_count=len(store.images()),
        correct_count=int(correct.sum()),
        truth_known=bool(correct.notna().any()),
        audit=audit_sentence(store),
        sections=[
            *sections_of(store, rows),
            *audit_section(store, rows),
            *([claims_section(claims(rows, store.options.step))] if paper else []),
        ],
        papers=paper_tables(rows, store.options.network) if paper else [],
        filtered=_filtered(store),
    )
    return store.write_file(Path(output) if output is not None else store.folder / "index.html", page)


def _findings(table: pandas.DataFrame, rows: pandas.DataFrame) -> list[str]:
    """What the table says, in sentences: who scores highest and from whom it is told apart, how the baselines do, and
    what readability costs. Of the correctly classified images, where the page shows these apart."""
    which, of_set = next(iter(image_sets(rows).items()))
    table = table[table["set"] == which]
    stages = list(dict.fromkeys(table["stage"]))
    first = table[table["stage"] == stages[0]].sort_values("median", ascending=False, kind="stable")
    lines = {row["explainer"]: row for row in first.to_dict("records")}
    names = {key: row["name"] for key, row in lines.items()}
    medians = {key: f"{number(row['median'])} (95 % interval {_interval(row, 'median')})" for key, row in lines.items()}
    sentences = [f"Of the {TITLES[which]} images:"] if TITLES[which] else []
    sentences += leader_sentences(of_set, stages[0], names, medians, list(lines))
    baselines = first[[is_baseline(key) for key in first["explainer"]]]
    if len(baselines) and len(baselines) < len(first):
        low, high = baselines["median"].min(), baselines["median"].max()
        span = f"score {number(low)}" if low == high else f"score between {number(low)} and {number(high)}"
        sentences.append(f"The baselines, which know nothing of the network, {span}.")
    if len(stages) > 1:
        best = next(iter(lines))
        course = table[table["explainer"] == best].set_index("stage")["median"]
        said = ", ".join(f"{number(course[stage])} at {stage}" for stage in stages if stage in course)
        sentences.append(f"The median of {names[best]}, stage by stage: {said}.")
    return sentences


def _interval(row: dict[str, Any], name: str) -> str:
    return interval(row, name).replace("-", "−")


def _range(row: dict[str, Any], name: str) -> str:
    """Between what the exact value lies, where censoring hides it."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low == high:
        return ""
    if low == float("-inf"):
        return "any value is possible" if high == float("inf") else f"at most {number(high)}"
    return f"at least {number(low)}" if high == float("inf") else f"between {number(low)} and {number(high)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 600 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def _notes(store: RunStore) -> list[str]:
    """What is to be known of the choice of images."""
    chosen, left_out = store.selection(), store.left_out()
    notes = [chosen.note] if chosen is not None and chosen.note else []
    return notes + ([f"Files left out (left-out.csv lists them): {len(left_out):,}."] if left_out else [])


def _flagged(store: RunStore, flagged: pandas.DataFrame) -> list[str]:
    """How many maps have no ray, and why, by explainer."""
    if flagged.empty:
        return []
    reasons = flagged["flag"].fillna("") if "flag" in flagged else pandas.Series("", flagged.index)
    counts = flagged.assign(reason=reasons.where(reasons != "", "no score")).value_counts(["explainer", "reason"])
    names = explainer_names(store)
    return [f"{names[explainer]}: {count} ({reason})" for (explainer, reason), count in counts.items()]


# -- pictures --------------------------------------------------------------------------------------------------------


def _data(store: RunStore, shown_images: int | None) -> dict[str, Any]:
    """What the page's script shows: images, explainers, stages, and each map with its numbers and its close-up."""
    images = store.images() if shown_images is None else store.images().head(shown_images)
    images = images[[store.photograph(name).exists() for name in images["image"]]]  # a big run keeps only the first
    results = store.results()
    results = results[results["image"].isin(images["image"])]
    names = explainer_names(store)
    side = math.sqrt(BYTES_OF_MAPS / max(1, len(results) + len(images)) / BYTES_A_PIXEL)
    side = round(min(MAP_SIDE, max(LEAST_SIDE, side)))
    maps: dict[str, Any] = {}
    for row in results.to_dict("records"):
        path = store.map(row["image"], row["explainer"], row["stage"])
        if not path.exists():
            continue
        source = small_picture(coloured(kept_picture(path)), side)
        entry = {"map": source, "flag": row.get("flag") or ""}
        if row["score"] == row["score"]:  # a flagged map has no numbers
            entry |= {name: row[name] for name in ("epsilon_minus", "epsilon_plus", "score")}
            entry |= {name: bool(row[name]) for name in ("flipped_minus", "flipped_plus")}
            entry["rays"] = _rays(store, row["explainer"], row["stage"], row["image"])
        maps.setdefault(row["image"], {}).setdefault(row["explainer"], {})[row["stage"]] = entry
    return {
        "image_count": len(store.images()),
        "max_epsilon": store.options.max_epsilon,
        "step": store.options.step,
        "stages": [{"name": name, "title": STAGES[name].title} for name in store.options.stages],
        "explainers": [
            {"key": key, "name": names[key]} for key in store.options.explainers if key in set(results["explainer"])
        ],
        "images": [_image(store, row, round(PHOTOGRAPH_SIDE * side / MAP_SIDE)) for row in images.to_dict("records")],
        "maps": maps,
    }


def _rays(store: RunStore, explainer: str, stage: str, image: str) -> dict[str, Any] | None:
    """The close-up of one map: by ray, its margin curve, the prediction at the flip and two small pictures."""
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


def _image(store: RunStore, row: dict[str, Any], side: int) -> dict[str, Any]:
    photograph = small_picture(kept_picture(store.photograph(row["image"])).convert("RGB"), side, quality=85)
    fields = {name: row[name] for name in ("image", "subject", "source", "prediction", "confidence")}
    correct = None if pandas.isna(row["correct"]) else bool(row["correct"])
    loss = row.get("loss")
    return fields | {
        "photograph": photograph,
        "correct": correct,
        "truth": row.get("truth") or "",
        "loss": None if loss is None or pandas.isna(loss) else loss,
    }


# -- the filter ------------------------------------------------------------------------------------------------------


def _filtered(store: RunStore) -> dict[str, Any] | None:
    """What `apem-fast filter` left in the run's folder: its picture and its table."""
    folder = store.folder / "filter"
    if not (folder / "filtered.png").exists():
        return None
    picture = small_picture(kept_picture(folder / "filtered.png").convert("RGB"), FILTER_SIDE, quality=85)
    path = folder / "filtered.json"
    try:
        lines = list(csv.reader(io.StringIO(checked_json(path.read_bytes())["table"])))
    except FileNotFoundError:
        lines = []
    except (OSError, KeyError, Damaged) as error:
        raise ValueError(f"{path} is damaged ({error}); the command apem-fast filter writes it again") from None
    columns, lines = (lines[0], lines[1:]) if lines else ([], [])
    cells = tuple(tuple(map(_filter_cell, line)) for line in lines)
    return {"picture": picture, "table": Table(tuple(name.replace("_", " ") for name in columns), cells)}


def _filter_cell(text: str) -> Cell:
    try:
        value = float(text)
    except ValueError:
        return Cell(text)
    return Cell(f"{round(value, 3):,.12g}".replace("-", "−"), value)
