"""The run's table: the scores of each explainer at each stage, and their cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from apem_fast.experiment.report.censoring import (
    FEWEST_FOR_AN_INTERVAL,
    Estimate,
    bootstrap_interval,
    intervals,
    mean_of,
    median_of,
)
from apem_fast.experiment.report.sets import image_sets, with_truth
from apem_fast.experiment.run.store import RunStore
from apem_fast.experiment.run.tables import CURVE, Column
from apem_fast.relevance import STAGES


def summary(store: RunStore) -> pandas.DataFrame:
    """One row for each set of images, stage and explainer, in the papers' order of sets and stages.

    Columns: those of `COLUMNS`, in their order.
    """
    results = store.results()
    if results.empty:
        return pandas.DataFrame()
    results = with_truth(results, store.images())
    rows = []
    for which, of_set in image_sets(results).items():
        for stage in (stage for stage in STAGES if stage in set(of_set["stage"])):
            for key in store.options.explainers:
                every = of_set[(of_set["stage"] == stage) & (of_set["explainer"] == key)]
                if has_score(every).any():
                    name = store.record["explainers"][key]["name"]
                    rows.append({"set": which, "stage": stage, "explainer": key, "name": name} | _line(every))
    return pandas.DataFrame(rows, columns=[one.name for one in COLUMNS]) if rows else pandas.DataFrame()


def _line(every: pandas.DataFrame) -> dict[str, object]:
    """The numbers of one explainer at one stage."""
    part = every[has_score(every)]
    scores = intervals(part, "score")
    line: dict[str, object] = {"images": len(part), "flagged": len(every) - len(part)}
    for name, statistic, estimate in (("mean", np.mean, mean_of(scores)), ("median", np.median, median_of(scores))):
        enough = len(scores) >= FEWEST_FOR_AN_INTERVAL
        low, high = bootstrap_interval(scores.observed, statistic) if enough else (np.nan, np.nan)
        line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        line |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
    return line | {
        "epsilon_minus": part["epsilon_minus"].mean(),
        "epsilon_plus": part["epsilon_plus"].mean(),
        "censored_minus": int((~part["flipped_minus"].astype(bool)).sum()),
        "censored_plus": int((~part["flipped_plus"].astype(bool)).sum()),
        "seconds": every["attribution_seconds"].sum() + every["search_seconds"].sum(),
        "probes": int(every["probes"].sum()),
        "scan_probes": int(every["scan_probes"].sum()),
        "saving": every["scan_probes"].sum() / max(every["probes"].sum(), 1),
    }


def has_score(results: pandas.DataFrame) -> pandas.Series:
    """Which rows have a score: those without a flag."""
    scored = results["score"].notna()
    return scored & (results["flag"].fillna("") == "") if "flag" in results else scored


def marked(row: dict[str, Any], name: str) -> str:
    """The mean or median of a row of `summary`, with ≥, ≤ or ≈ before it if censoring hides the exact value."""
    mark = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]).mark
    return mark + f"{round(row[name], 1) + 0.0:,.1f}"  # + 0: no negative zero


def interval(row: dict[str, Any], name: str) -> str:
    """The 95 % interval of the mean or median of a row of `summary`; a dash where there are too few images for one."""
    if np.isnan(row[f"{name}_ci_low"]):
        return "–"
    low, high = (round(row[f"{name}_ci_{end}"], 1) + 0.0 for end in ("low", "high"))
    return f"{low:,.1f} to {high:,.1f}"


@dataclass(frozen=True)
class Shown(Column):
    """A column of the summary, and how it is shown. Without a heading it is not shown."""

    heading: str = ""  # on a terminal
    on_page: str = ""  # the heading on the page, if it differs
    text: Callable[[dict[str, Any]], str] = str
    sorts: Callable[[dict[str, Any]], float] | None = None  # the value to sort by, if not the column's

    @property
    def title(self) -> str:
        """The heading on the page."""
        return self.on_page or self.heading


def _as(pattern: str, name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: pattern.format(row[name])


COLUMNS = (
    Shown("set", "text", "which images: all, or correct and misclassified apart, or the two drawn from both"),
    Shown("stage", "text", "how the attribution became a map: 3-channel, 1-channel, times-grey or times-image"),
    Shown("explainer", "text", "the explainer's key: its name and the options that are not usual"),
    Shown("name", "text", "the explainer's name", "explanation", text=lambda row: row["name"]),
    Shown("images", "integer", "how many images have a score"),
    Shown("flagged", "integer", "how many more there are whose map leaves no ray"),
    Shown("mean", "number", "mean score (APEM)", "mean", text=lambda row: marked(row, "mean")),
    Shown("mean_low", "number", "least mean that censored rays leave possible"),
    Shown("mean_high", "number", "greatest mean that censored rays leave possible"),
    Shown("mean_ci_low", "number", "low end of its 95 % bootstrap interval over the images, of six at least"),
    Shown("mean_ci_high", "number", "high end of that interval"),
    Shown("median", "number", "median score", "median", "median score", text=lambda row: marked(row, "median")),
    Shown("median_low", "number", "least median that censored rays leave possible"),
    Shown("median_high", "number", "greatest median that censored rays leave possible"),
    Shown("median_ci_low", "number", "low end of its 95 % bootstrap interval over the images, of six at least"),
    Shown("median_ci_high", "number", "high end of that interval"),
    Shown("epsilon_minus", "number", "mean epsilon_minus", "epsilon-", "mean ε⁻", _as("{:,.1f}", "epsilon_minus")),
    Shown("epsilon_plus", "number", "mean epsilon_plus", "epsilon+", "mean ε⁺", _as("{:,.1f}", "epsilon_plus")),
    Shown(
        "censored_minus",
        "integer",
        "rays along the relevance that reach max_epsilon without a change of the prediction",
        "censored -/+",
        "censored",
        lambda row: f"{row['censored_minus']}/{row['censored_plus']}",
        lambda row: row["censored_minus"] + row["censored_plus"],
    ),
    Shown("censored_plus", "integer", "rays along the irrelevance that do"),
    Shown("seconds", "number", "time of explaining and searching", "seconds", text=_as("{:,.1f}", "seconds")),
    Shown("probes", "integer", "model inputs that the search asked for", "probes", text=_as("{:,}", "probes")),
    Shown(
        "scan_probes",
        "integer",
        "model inputs that a scan of every grid point up to each flip takes",
        "full scan",
        text=_as("{:,}", "scan_probes"),
    ),
    Shown("saving", "number", "scan_probes / probes", "saving", text=_as("{:.1f}×", "saving")),
)
"""The summary, in the order of `table.csv`."""

BY_NAME = {one.name: one for one in COLUMNS}
AFTER_SCORES = tuple(one for one in COLUMNS if one.heading and one.name not in ("name", "median", "mean"))
"""The columns after the scores, which are the same on a terminal and on the page."""

ON_TERMINAL = (BY_NAME["name"], BY_NAME["median"], BY_NAME["mean"], *AFTER_SCORES)


def totals(table: pandas.DataFrame) -> dict[str, float]:
    """Sums over the whole run."""
    sums = {name: table[name].sum() for name in ("seconds", "probes", "scan_probes", "censored_minus", "censored_plus")}
    return sums | {"saving": sums["scan_probes"] / max(sums["probes"], 1)}


def dropped_lines(store: RunStore, shown: int = 5) -> list[str]:
    """A line for each thing that images lost when they were read, such as transparency, with the first images' paths.

    results.csv lists all of them.
    """
    lines = []
    for what, sources in store.dropped().items():
        more = f" and {len(sources) - shown:,} more" if len(sources) > shown else ""
        images = f"{len(sources):,} image{'' if len(sources) == 1 else 's'}"
        lines.append(f"{what[0].upper()}{what[1:]} in {images}: {', '.join(sources[:shown])}{more}.")
    return lines


def results_with_images(store: RunStore) -> pandas.DataFrame:
    """Every image's row for each explainer and stage, with the image's data and without curves."""
    results = store.results()
    kept = [name for name in results if not name.endswith(CURVE)]
    return results[kept].merge(store.images(), on="image", how="left")


def write_csv(store: RunStore) -> None:
    """Writes `table.csv` (the summary), `results.csv` (every image's rows) and, if files were left out, `left-out.csv`.

    Numbers are not rounded.
    """
    store.write_file(store.folder / "table.csv", summary(store).to_csv(index=False))
    store.write_file(store.folder / "results.csv", results_with_images(store).to_csv(index=False))
    left_out = store.left_out()
    if left_out:
        store.write_file(store.folder / "left-out.csv", pandas.DataFrame(left_out).to_csv(index=False))
