"""The run's table: what each explainer scored at each stage, and what it cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas

from apem_fast.experiment.report.censoring import Estimate, bootstrap_interval, intervals, mean_of, median_of
from apem_fast.experiment.report.sets import image_sets, with_truth
from apem_fast.experiment.run.store import RunStore
from apem_fast.relevance import STAGES


def summary(store: RunStore) -> pandas.DataFrame:
    """One row for each set of images, stage and explainer, in the papers' order of sets and stages.

    Columns: set ("correct", "misclassified" or "all", see `sets.image_sets`), stage, explainer (its key), name, images;
    flagged, how many more there are whose map leaves no ray; mean and median of the score (APEM); mean_low, mean_high,
    median_low, median_high, between which these lie where censoring hides their exact value; mean_ci_low, mean_ci_high,
    median_ci_low, median_ci_high, their 95 % bootstrap intervals over the images, censored scores as observed; mean
    epsilon_minus and epsilon_plus; censored_minus and censored_plus, how many rays reached max_epsilon without a flip
    (their epsilons enter as max_epsilon); seconds; probes, the model inputs that were run; scan_probes, those of a scan
    of every grid point up to each flip; saving, the ratio of the two.
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
    return pandas.DataFrame(rows)


def _line(every: pandas.DataFrame) -> dict[str, object]:
    """The numbers of one explainer at one stage."""
    part = every[has_score(every)]
    scores = intervals(part, "score")
    line: dict[str, object] = {"images": len(part), "flagged": len(every) - len(part)}
    for name, statistic, estimate in (("mean", np.mean, mean_of(scores)), ("median", np.median, median_of(scores))):
        low, high = bootstrap_interval(scores.observed, statistic)
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
    """Which rows have a score: those without a flag, whose map has rays."""
    scored = results["score"].notna()
    return scored & (results["flag"].fillna("") == "") if "flag" in results else scored


def marked(row: dict, name: str) -> str:
    """The mean or median of a row of `summary`, with ≥, ≤ or ≈ before it where censoring hides the exact value."""
    mark = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]).mark
    return mark + f"{round(row[name], 1) + 0.0:,.1f}"  # + 0: no negative zero


def interval(row: dict, name: str) -> str:
    """The 95 % interval of the mean or median of a row of `summary`."""
    low, high = (round(row[f"{name}_ci_{end}"], 1) + 0.0 for end in ("low", "high"))
    return f"{low:,.1f} to {high:,.1f}"


COLUMNS: dict[str, tuple[str, Callable[[dict], str]]] = {
    "name": ("explanation", lambda row: row["name"]),
    "median": ("median", lambda row: marked(row, "median")),
    "mean": ("mean", lambda row: marked(row, "mean")),
    "epsilon_minus": ("epsilon-", lambda row: f"{row['epsilon_minus']:,.1f}"),
    "epsilon_plus": ("epsilon+", lambda row: f"{row['epsilon_plus']:,.1f}"),
    "censored": ("censored -/+", lambda row: f"{row['censored_minus']}/{row['censored_plus']}"),
    "seconds": ("seconds", lambda row: f"{row['seconds']:.1f}"),
    "probes": ("probes", lambda row: f"{row['probes']:,}"),
    "scan_probes": ("full scan", lambda row: f"{row['scan_probes']:,}"),
    "saving": ("saving", lambda row: f"{row['saving']:.1f}x"),
}
"""What a reader sees of a row: heading and text, by column."""


def totals(table: pandas.DataFrame) -> dict[str, float]:
    """Sums over the whole run."""
    sums = {name: table[name].sum() for name in ("seconds", "probes", "scan_probes", "censored_minus", "censored_plus")}
    return sums | {"saving": sums["scan_probes"] / max(sums["probes"], 1)}


def write_csv(store: RunStore) -> None:
    """`table.csv`, the summary, `results.csv`, every image's row, and `left-out.csv`, if files were; numbers
    unrounded."""
    store.write_file(store.folder / "table.csv", summary(store).to_csv(index=False))
    results = store.results().merge(store.images(), on="image", how="left")
    store.write_file(store.folder / "results.csv", results.to_csv(index=False))
    left_out = store.left_out()
    if left_out:
        store.write_file(store.folder / "left-out.csv", pandas.DataFrame(left_out).to_csv(index=False))
