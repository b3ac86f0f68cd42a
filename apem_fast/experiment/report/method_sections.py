"""The sections that compare methods and stages, photograph by photograph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas

from apem_fast.experiment.report import figures
from apem_fast.experiment.report import statistics as st
from apem_fast.experiment.report.findings import sign_test, told_apart
from apem_fast.experiment.report.map_pictures import map_picture, photograph_picture
from apem_fast.experiment.report.section import Cell, Pictures, Section, Table, count, number, percent
from apem_fast.experiment.report.subject import Subject, is_baseline

_SHARES = ("better", "equal", "worse", "undecided", "images")


def spread(run: Subject) -> Section:
    """The section on the spread of scores over the photographs."""
    return Section(
        "spread",
        "Spread over the photographs",
        "How much the scores differ from photograph to photograph: a method with a high median may still fail on some.",
        figures=run.by_set(lambda rows: figures.boxplots(rows, run.names, run.stages)),
        caption="One dot for each photograph (where there are no more than 300), the box from the first quartile "
        "to the third with the median across it. A hollow dot is censored. The axes are linear to ±10 and "
        "logarithmic beyond. P1 Figure 3, P2 Figures 4.2, 4.3 and 4.7.",
    )


def comparisons(run: Subject) -> Section | None:
    """The section that compares methods pair by pair, photograph by photograph; None for a single method."""
    tables = {name: st.pairwise(part) for name, part in run.sets.items()}
    if all(table.empty for table in tables.values()):
        return None

    def bars(rows: pandas.DataFrame) -> str:
        table = st.pairwise(rows)
        methods = table[table["first"].isin(run.methods) & table["second"].isin(run.methods)]
        shown = methods if len(methods) else table
        return figures.pairwise_bars(
            {
                stage: [(f"{run.names[row['first']]} : {run.names[row['second']]}", row) for row in records]
                for stage, records in _by(shown, "stage")
            }
        )

    lines = [
        (
            *run.set_cells(name),
            run.stage(row["stage"]),
            Cell(run.names[row["first"]]),
            Cell(run.names[row["second"]]),
            *_shares(row),
        )
        for name, table in tables.items()
        for row in table.to_dict("records")
    ]
    return Section(
        "pairs",
        "Pair by pair",
        "On the same photograph, which of two methods scores higher? This does not depend on how large scores are. "
        "Undecided: censoring hides which.",
        finding=_dominance(run, next(iter(tables.values()))),
        figures=run.by_set(bars),
        caption="Each bar is one pair of methods, first : second, in percent of the photographs: better, the first "
        "scores higher. P1 Figure 4, P2 Figure 4.4."
        + (" The baselines are in the table." if 1 < len(run.methods) < len(run.names) else ""),
        tables=(("All pairs", Table((*run.set_columns, "stage", "first", "second", *_SHARES), tuple(lines))),),
    )


def _dominance(run: Subject, table: pandas.DataFrame) -> str:
    first = table[table["stage"] == run.stages[0]]
    wins = dict.fromkeys(run.names, 0)
    for row in first.to_dict("records"):
        if row["better"] != row["worse"]:
            wins[row["first"] if row["better"] > row["worse"] else row["second"]] += 1
    best = max(wins, key=wins.__getitem__)
    others = [key for key in run.names if key != best]
    tests = [sign_test(run.main, run.stages[0], best, other) for other in others]
    sure = sum(apart and test.better > test.worse for apart, test in zip(told_apart(tests), tests))
    return (
        f"At the {run.stages[0]} stage {run.names[best]} wins more photographs than it loses against "
        f"{wins[best]} of {len(others)} others; chance explains {'all' if not sure else wins[best] - sure or 'none'} "
        "of these (sign test at 5 %, Holm’s procedure)."
    )


def simplification(run: Subject) -> Section | None:
    """The section that compares stages of one method pair by pair; None if the run has one stage."""
    tables = {name: st.pairwise_stages(part) for name, part in run.sets.items()}
    if not any(table["explainer"].isin(run.methods).any() for table in tables.values()):
        return None

    def bars(rows: pandas.DataFrame) -> str:
        table = st.pairwise_stages(rows)
        shown = table[table["explainer"].isin(run.methods)]
        shown = shown.assign(pair=[f"{one} : {other}" for one, other in zip(shown["first"], shown["second"])])
        return figures.pairwise_bars(
            {pair: [(run.names[row["explainer"]], row) for row in records] for pair, records in _by(shown, "pair")}
        )

    lines = [
        (
            *run.set_cells(name),
            Cell(run.names[row["explainer"]]),
            run.stage(row["first"]),
            run.stage(row["second"]),
            *_shares(row),
        )
        for name, table in tables.items()
        for row in table.to_dict("records")
    ]
    columns = (*run.set_columns, "explanation", "first", "second", *_SHARES)
    return Section(
        "simplification",
        "What readability costs",
        "Each stage makes a map easier on the eye. On how many photographs does the easier map of the same method "
        "score lower?",
        figures=run.by_set(bars),
        caption="Each bar compares two stages of one method, in percent of the photographs: better, the earlier "
        "stage scores higher. P1 Table II, P2 Figure 4.7 j–l.",
        tables=(("All methods", Table(columns, tuple(lines))),),
    )


def irrelevance(run: Subject) -> Section | None:
    """The section on epsilon_plus of two methods; None for a single method."""
    pair = _pair(run)
    if pair is None:
        return None
    first, second = pair

    def found(rows: pandas.DataFrame) -> dict[str, dict[str, st.Differences]]:
        return {
            title: {
                stage: st.epsilon_plus_differences(rows, stage, first, second, only_better_minus=only)
                for stage in run.stages
            }
            for title, only in (("all photographs", False), (f"{run.names[first]} has the lower ε⁻", True))
        }

    lines = []
    for name, part in run.sets.items():
        for title, by_stage in found(part).items():
            for stage, one in by_stage.items():
                known = float(np.median(one.exact)) if len(one.exact) else np.nan
                lines.append(
                    (
                        *run.set_cells(name),
                        Cell(title),
                        run.stage(stage),
                        count(one.images),
                        Cell(percent(one.positive_share), one.positive_share),
                        Cell(number(known), known),
                        Cell(f"{one.above} / {one.below}", one.above + one.below),
                        count(one.unknown),
                    )
                )
    columns = (
        *run.set_columns,
        "of them",
        "stage",
        "images",
        "first is greater",
        "median difference",
        "only its sign known, +/−",
        "unknown",
    )
    return Section(
        "irrelevance",
        f"ε⁺ of {run.names[first]} and of {run.names[second]}",
        "A method is also measured by what it calls irrelevant: ε⁺ falls when something that matters was left out. "
        f"To the right of 0 the irrelevance of {run.names[first]} is the better one.",
        figures=run.by_set(lambda rows: figures.differences(found(rows), run.names[first], run.names[second])),
        caption="Histogram of the differences photograph by photograph and its kernel density estimate, where "
        "neither ε⁺ is censored: of all photographs (P1 Figure 8), and of those on which the first has the lower "
        "ε⁻ (P2 Figure 5.1).",
        tables=(("", Table(columns, tuple(lines))),),
        pictures=_irrelevance_pictures(run, pair),
    )


def _irrelevance_pictures(run: Subject, pair: tuple[str, str]) -> Pictures:
    """P2 Figure 3.2: the first photograph that the run kept, a map of it, and what that map calls irrelevant."""
    stage = run.stages[-1]
    for image in run.main["image"].unique():
        photograph = photograph_picture(run.store, image)
        if photograph is not None:
            maps = [
                map_picture(run.store, image, key, stage, f"{run.names[key]}: {what}", irrelevance=inverted)
                for key in pair
                for what, inverted in (("R", False), ("1 − R", True))
            ]
            row = (photograph, *(one for one in maps if one is not None))
            return ((f"What the maps call relevant, and what irrelevant ({stage}; P2 Figure 3.2)", (row,)),)
    return ()


def _pair(run: Subject) -> tuple[str, str] | None:
    """The papers compare LRP with SmoothGrad; without them, the two methods with the highest medians."""
    kinds = {key.split(":")[0]: key for key in reversed(run.methods)}
    if "lrp" in kinds and "smooth-grad" in kinds:
        return kinds["lrp"], kinds["smooth-grad"]
    if len(run.methods) < 2:
        return None
    first = run.main[run.main["stage"] == run.stages[0]]
    medians = first.groupby("explainer")["score"].median().reindex(run.methods)
    best = medians.sort_values(ascending=False, kind="stable").index
    return best[0], best[1]


def flips(run: Subject) -> Section:
    """The section on the share of predictions that have changed up to each epsilon."""
    return Section(
        "flips",
        "How many predictions have changed",
        "The share of the photographs whose prediction has changed by each ε. A good map’s curve rises early along "
        "the relevance (above) and late along the irrelevance (below).",
        figures=run.by_set(
            lambda rows: figures.flip_curves(rows, run.names, run.stages, list(filter(is_baseline, run.names)))
        ),
        caption="Kaplan and Meier’s estimate: a ray without a flip counts as unchanged as far as it was followed. "
        "Baselines are dotted. The axis is linear to 10 and logarithmic beyond.",
    )


def _by(table: pandas.DataFrame, column: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of each value of a column, in the order of first occurrence."""
    for value, part in table.groupby(column, sort=False):
        yield str(value), part.to_dict("records")


def _shares(row: dict[str, Any]) -> tuple[Cell, ...]:
    return (*(Cell(percent(row[name]), row[name]) for name in _SHARES[:-1]), count(row["images"]))
