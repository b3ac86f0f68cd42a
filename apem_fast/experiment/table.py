"""The run's table: what each explainer scored at each stage, and what it cost."""

from __future__ import annotations

from collections.abc import Callable

import pandas

from apem_fast.experiment.store import RunStore
from apem_fast.relevance import STAGES


def summary(store: RunStore) -> pandas.DataFrame:
    """One row for each stage and explainer, in the order of the papers' stages and of the command.

    Columns: stage, explainer (its key), name, images; flagged, how many more there are whose map leaves no ray and which
    nothing else counts; mean and median of the score (APEM); mean epsilon_minus and
    epsilon_plus; censored_minus and censored_plus, how many rays reached max_epsilon without a flip (their epsilons
    enter as max_epsilon, so a mean with censored rays is no more than a bound); seconds; probes, the forward passes
    taken; scan_probes, those of a scan of every grid point up to each flip; saving, the ratio of the two.
    """
    results = store.results()
    if results.empty:
        return pandas.DataFrame()
    rows = []
    for stage in (stage for stage in STAGES if stage in set(results["stage"])):
        for key in store.options.explainers:
            part = results[(results["stage"] == stage) & (results["explainer"] == key)]
            flagged = int((part["flag"] != "").sum())
            part = part[part["flag"] == ""]
            if part.empty:
                continue
            rows.append(
                {
                    "stage": stage,
                    "explainer": key,
                    "name": store.record["explainers"][key]["name"],
                    "images": len(part),
                    "flagged": flagged,
                    "mean": part["score"].mean(),
                    "median": part["score"].median(),
                    "epsilon_minus": part["epsilon_minus"].mean(),
                    "epsilon_plus": part["epsilon_plus"].mean(),
                    "censored_minus": int((~part["flipped_minus"]).sum()),
                    "censored_plus": int((~part["flipped_plus"]).sum()),
                    "seconds": part["attribution_seconds"].sum() + part["search_seconds"].sum(),
                    "probes": int(part["probes"].sum()),
                    "scan_probes": int(part["scan_probes"].sum()),
                    "saving": part["scan_probes"].sum() / max(part["probes"].sum(), 1),
                }
            )
    return pandas.DataFrame(rows)


COLUMNS: dict[str, tuple[str, Callable[[dict], str]]] = {
    "name": ("explanation", lambda row: row["name"]),
    "median": ("median", lambda row: f"{row['median']:,.1f}"),
    "mean": ("mean", lambda row: f"{row['mean']:,.1f}"),
    "epsilon_minus": ("epsilon-", lambda row: f"{row['epsilon_minus']:,.1f}"),
    "epsilon_plus": ("epsilon+", lambda row: f"{row['epsilon_plus']:,.1f}"),
    "censored": ("censored -/+", lambda row: f"{row['censored_minus']}/{row['censored_plus']}"),
    "seconds": ("seconds", lambda row: f"{row['seconds']:.1f}"),
    "probes": ("passes", lambda row: f"{row['probes']:,}"),
    "scan_probes": ("full scan", lambda row: f"{row['scan_probes']:,}"),
    "saving": ("saving", lambda row: f"{row['saving']:.1f}x"),
}
"""What a reader sees of a row: heading and text, by column."""


def totals(table: pandas.DataFrame) -> dict[str, float]:
    """Sums over the whole run."""
    sums = {name: table[name].sum() for name in ("seconds", "probes", "scan_probes", "censored_minus", "censored_plus")}
    return sums | {"saving": sums["scan_probes"] / max(sums["probes"], 1)}


def write_csv(store: RunStore) -> None:
    """`table.csv`, the summary, `results.csv`, every image's row, and `left-out.csv`, if files were; numbers unrounded."""
    store.write_file(store.folder / "table.csv", summary(store).to_csv(index=False))
    results = store.results().merge(store.images(), on="image", how="left")
    store.write_file(store.folder / "results.csv", results.to_csv(index=False))
    left_out = store.left_out()
    if left_out:
        store.write_file(store.folder / "left-out.csv", pandas.DataFrame(left_out).to_csv(index=False))
