"""A run's page: one HTML file that works offline and without other files, made from the store alone."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas
from jinja2 import Environment, PackageLoader, StrictUndefined

from apem_fast.experiment.report.audited import audit_section, audit_sentence
from apem_fast.experiment.report.claims import claims, claims_section
from apem_fast.experiment.report.findings import leader_sentences
from apem_fast.experiment.report.gallery import gallery_data
from apem_fast.experiment.report.published import paper_tables
from apem_fast.experiment.report.section import Cell, Table, number
from apem_fast.experiment.report.sections import sections_of
from apem_fast.experiment.report.sets import TITLES, image_sets
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.report.subject import explainer_names, is_baseline
from apem_fast.experiment.report.summary import AFTER_SCORES, BY_NAME, dropped_lines, interval, marked, summary, totals
from apem_fast.experiment.run.pictures import kept_picture, small_picture
from apem_fast.experiment.run.store import RunStore
from apem_fast.files.checksums import Damaged, checked_json
from apem_fast.relevance import STAGES

FILTER_SIDE = 1400
"""The greatest width and height of the filter's picture inside the page, in pixels; its file has full size."""


def write_page(
    store: RunStore, shown_images: int | None = None, *, paper: bool | None = None, output: str | Path | None = None
) -> Path:
    """Writes the page; returns its path.

    Args:
        store: a run with at least one finished explainer.
        shown_images: how many images are shown with their maps, the first ones; None for all whose pictures the run
            kept. Images with close-ups (see `closeups`) show these.
        paper: whether to add the tables of P1 and P2, with their numbers beside the run's; None does as the run's page
            did when it was last written, and a new page has none.
        output: an HTML file; None for `index.html` in the run's folder.

    Raises:
        ValueError: the run has no finished results, or none with a score, or was written by another version.
    """
    rows, flagged = scored_rows(store)
    if rows.empty:
        raise ValueError(f"{store.folder} holds no map that could be measured: all {len(flagged)} are flagged")
    if paper is None:
        paper = store.page_has_papers()
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
        data=gallery_data({"": store}, shown_images),
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
    if output is not None:
        return store.write_file(Path(output), page)
    store.write_page_record(papers=paper)
    return store.write_file(store.folder / "index.html", page)


def _findings(table: pandas.DataFrame, rows: pandas.DataFrame) -> list[str]:
    """The table in sentences: which method scores highest and differs from which others, how the baselines do, and the
    scores stage by stage. They are about correctly classified images if the page shows these separately."""
    which, of_set = next(iter(image_sets(rows).items()))
    table = table[table["set"] == which]
    stages = list(dict.fromkeys(table["stage"]))
    first = table[table["stage"] == stages[0]].sort_values("median", ascending=False, kind="stable")
    lines = {row["explainer"]: row for row in first.to_dict("records")}
    names = {key: row["name"] for key, row in lines.items()}
    medians = {key: _with_interval(row) for key, row in lines.items()}
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


def _with_interval(row: dict[str, Any]) -> str:
    said, between = number(row["median"]), _interval(row, "median")
    return said if between == "–" else f"{said} (95 % interval {between})"


def _interval(row: dict[str, Any], name: str) -> str:
    return interval(row, name).replace("-", "−")


def _range(row: dict[str, Any], name: str) -> str:
    """The interval that holds the exact value if censoring hides it."""
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
    """Notes on the choice of images."""
    chosen, left_out = store.selection(), store.left_out()
    notes = [chosen.note] if chosen is not None and chosen.note else []
    notes += [f"Files left out (left-out.csv lists them): {len(left_out):,}."] if left_out else []
    return notes + dropped_lines(store, shown=20)


def _flagged(store: RunStore, flagged: pandas.DataFrame) -> list[str]:
    """The number of maps without a ray, and why, by explainer."""
    if flagged.empty:
        return []
    reasons = flagged["flag"].fillna("") if "flag" in flagged else pandas.Series("", flagged.index)
    counts = flagged.assign(reason=reasons.where(reasons != "", "no score")).value_counts(["explainer", "reason"])
    names = explainer_names(store)
    return [f"{names[explainer]}: {count} ({reason})" for (explainer, reason), count in counts.items()]


# -- the filter ------------------------------------------------------------------------------------------------------


def _filtered(store: RunStore) -> dict[str, Any] | None:
    """The picture and the table that `apem-fast filter` wrote into the run's folder."""
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
