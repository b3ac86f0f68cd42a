"""An audit's result for a run's table: a sentence, and the worst case for each mean and median."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas

from apem_fast.experiment.report.section import Cell, Section, Table, number
from apem_fast.experiment.report.sets import TITLES, image_sets, with_truth
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.report.subject import explainer_names
from apem_fast.experiment.run.audited_rays import RunAudit, read_audit
from apem_fast.experiment.run.store import RunStore

NOT_AUDITED = (
    "Not audited: no ray was scanned at every grid point to see how often the search is right; apem-fast audit does it."
)
ALL_SCANNED = "Every epsilon was found by a scan of every grid point, so there is nothing to audit."

ALL_PROVED = (
    "Every epsilon is proved: no grid point before it flips, by bounds of the margin on whole segments of the ray."
)


def audit_sentence(store: RunStore) -> str:
    """What is known about the run's epsilons; it says so if the run was not audited since it changed."""
    audit = read_audit(store)
    if audit is not None:
        return f"Audit: {audit}"
    return {"exhaustive": ALL_SCANNED, "certified": ALL_PROVED}.get(str(store.options.search), NOT_AUDITED)


def worst_case(store: RunStore, audit: RunAudit) -> pandas.DataFrame:
    """The range of each mean and median of the table, if all epsilons that may be wrong were in its line.

    With the audit's confidence, at most `audit.most_wrong_count` epsilons of the run are wrong. Each of them could be
    anywhere from the first grid point to the limit, in an unknown line. A median of n scores of which k are wrong lies
    between the scores k places below and above it. A mean changes by at most the sum of the k greatest possible
    changes, divided by n.

    Columns: set, stage, explainer, images, mean, mean_low, mean_high, median, median_low, median_high.
    """
    rows, _ = scored_rows(store)
    step, limit = store.options.step, store.options.max_epsilon
    lines = []
    for which, of_set in image_sets(with_truth(rows.drop(columns="correct"), store.images())).items():
        for (stage, explainer), part in of_set.groupby(["stage", "explainer"], sort=False):
            line = {"set": which, "stage": stage, "explainer": explainer, "images": len(part)}
            lines.append(line | moved(part, audit.most_wrong_count, step, limit))
    return pandas.DataFrame(lines)


def moved(part: pandas.DataFrame, wrong: int, step: float, limit: float) -> dict[str, float]:
    """The mean and the median score, and their range if `wrong` of the epsilons could be anything."""
    minus, plus = (part[f"epsilon_{sign}"].to_numpy(np.float64) for sign in ("minus", "plus"))
    score = np.sort(plus - minus)
    up = np.sort(np.concatenate([limit - plus, minus - step]))[::-1][:wrong].sum() / len(part)
    down = np.sort(np.concatenate([plus - step, limit - minus]))[::-1][:wrong].sum() / len(part)
    k, end = min(wrong, len(part)), np.full(min(wrong, len(part)), limit - step)
    return {
        "mean": float(score.mean()),
        "mean_low": float(score.mean() - down),
        "mean_high": float(score.mean() + up),
        "median": float(np.median(score)),
        "median_low": float(np.median(np.concatenate([-end, score[: len(score) - k]]))),
        "median_high": float(np.median(np.concatenate([score[k:], end]))),
    }


def write_worst_case(store: RunStore, audit: RunAudit) -> None:
    """Writes `audit/table.csv` in the run's folder, see `worst_case`; not if the audit is about some rays only."""
    path = store.inside("audit", "table.csv")
    if audit.up_to is not None:
        path.unlink(missing_ok=True)
        return
    store.write_file(path, worst_case(store, audit).to_csv(index=False))


def audit_section(store: RunStore, rows: pandas.DataFrame) -> list[Section]:
    """The section of the page; None if the run is not audited."""
    audit = read_audit(store)
    if audit is None:
        return []
    tables = [("", _at_worst(store, audit))] if audit.up_to is None else []
    if audit.differences:
        wrong = tuple(
            (
                Cell(one.maps),
                Cell(str(one.image)),
                Cell("irrelevance" if one.irrelevance else "relevance"),
                _epsilon(one.found),
                _epsilon(one.scanned),
            )
            for one in audit.differences
        )
        tables.append(("Rays that differ", Table(("maps", "image", "ray", "search", "scan"), wrong)))
    return [Section(key="audit", title="Audit", reading=_reading(audit), finding=str(audit), tables=tuple(tables))]


def _reading(audit: RunAudit) -> str:
    drawn = "as many of each explanation and stage as its share is" if audit.stratified else "each as likely as another"
    which, say = "rays", "all epsilons"
    if audit.up_to is not None:
        which, say = f"rays whose epsilon was found to be at most {audit.up_to:g}", "their epsilons"
    done = (
        f"{audit.rays:,} of the {audit.of:,} {which}, drawn at random ({drawn}), were scanned at every grid point up "
        f"to their flip, {audit.probes:,} probes, and compared with what the search found. At most "
        f"{audit.most_wrong_count:,} of {say} are wrong, with 95 % confidence."
    )
    if audit.up_to is not None:
        return (
            f"{done} Of the {audit.others:,} rays that were found to flip later or not at all nothing is said: a flip "
            "that the search passed over could be among them. apem-fast audit without --up-to draws from all."
        )
    return (
        f"{done} At worst: if all of these were in one line of the table and could be anything from the first grid "
        "point to the limit, its median and mean would lie in between. Rays of shuffled maps are not audited."
    )


def _at_worst(store: RunStore, audit: RunAudit) -> Table:
    names = explainer_names(store)
    table = worst_case(store, audit)
    apart = len(set(table["set"])) > 1
    columns = ("stage", "explanation", "median", "median at worst", "mean", "mean at worst")
    lines = tuple(
        (
            *((Cell(TITLES[row["set"]]),) if apart else ()),
            Cell(row["stage"]),
            Cell(names[row["explainer"]]),
            Cell(number(row["median"]), row["median"]),
            Cell(
                f"{number(row['median_low'])} to {number(row['median_high'])}", row["median_high"] - row["median_low"]
            ),
            Cell(number(row["mean"]), row["mean"]),
            _between(row, "mean"),
        )
        for row in table.to_dict("records")
    )
    return Table((*(("photographs",) if apart else ()), *columns), lines)


def _between(row: dict[Hashable, Any], name: str) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return Cell(f"{number(low)} to {number(high)}", high - low)


def _epsilon(value: float | None) -> Cell:
    return Cell("no flip", np.inf) if value is None else Cell(f"{value:,g}", value)
