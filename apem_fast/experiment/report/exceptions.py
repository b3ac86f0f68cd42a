"""Photographs on which the better method scores lower, found by the papers' rules and shown with their maps.

P1 section V-B and Figure 9: the leading method scores below 0 while the others do better. P2 Table 4.3 and Figure 4.5:
a method is beaten by the next one in the order. The methods are the papers' three, Gradient, LRP and SmoothGrad, in
that order, if a run has them, and otherwise the three with the highest medians. Only differences that are certain in
spite of censoring count, on the images of the papers' figures, at the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas

from apem_fast.experiment.report import statistics as st
from apem_fast.experiment.report.censoring import WORSE, compared, intervals, median_of
from apem_fast.experiment.report.map_pictures import map_picture, photograph_picture
from apem_fast.experiment.report.published import of_method
from apem_fast.experiment.report.section import Cell, Picture, Section, Table, number
from apem_fast.experiment.report.subject import Subject
from apem_fast.experiment.run.store import RunStore

ORDER = ("gradient", "lrp", "smooth-grad")  # "the Gradient is the greatest one, followed by the LRP" (P2 Table 4.3)
MOST = 3  # the most photographs for each rule, as in P2 Table 4.3


@dataclass(frozen=True)
class Exceptional:
    """The photographs that one rule finds.

    Args:
        source: the passage that has the rule.
        title: the rule, with the methods' names.
        methods: the explainers to show, with those that do better first.
        images: the names of all such photographs, the clearest first.
        of: how many photographs have all of these methods.
    """

    source: str
    title: str
    methods: tuple[str, ...]
    images: tuple[str, ...]
    of: int


def leading(run: Subject, rows: pandas.DataFrame) -> tuple[str, ...]:
    """At most three methods, with the one that should lead first.

    Args:
        rows: of one stage.
    """
    methods = [key for key in run.methods if key in set(rows["explainer"])]
    papers = [of_method(rows, method) for method in ORDER]
    if None not in papers:
        return tuple(key for key in papers if key is not None)
    medians = {key: median_of(intervals(rows[rows["explainer"] == key], "score")).value for key in methods}
    return tuple(sorted(methods, key=lambda key: -medians[key])[: len(ORDER)])


def exceptional(run: Subject) -> list[Exceptional]:
    """What each rule finds; empty if there are fewer than two methods."""
    stage = run.stages[-1]
    rows = run.main[run.main["stage"] == stage]
    order = leading(run, rows)
    if len(order) < 2:
        return []
    found = [_below_zero(run, rows, order)]
    for better, beaten in zip(order[1:], order):
        # The papers show the Gradient beside the pair "to serve as a basis for comparison".
        images = st.exceptions(rows, stage, beaten, better, most=len(rows))["image"]
        both = st.paired(rows, "explainer", beaten, better)[0]
        others = tuple(key for key in order if key not in (better, beaten))
        title = f"{run.names[better]} beats {run.names[beaten]}"
        methods = (better, beaten, *others)
        found.append(Exceptional("P2 Table 4.3 and Figure 4.5", title, methods, tuple(images), len(both)))
    return found


def _below_zero(run: Subject, rows: pandas.DataFrame, order: tuple[str, ...]) -> Exceptional:
    """Photographs on which the leader is certainly below 0 and below each of the others, the lowest score first."""
    leader, *others = order
    leads = rows[rows["explainer"] == leader].set_index("image")
    having = set.intersection(*(set(rows.loc[rows["explainer"] == key, "image"]) for key in order))
    leads = leads[leads.index.isin(having)]
    scores = intervals(leads, "score")
    is_one = scores.high < 0
    for key in others:
        other = rows[rows["explainer"] == key].set_index("image").loc[leads.index]
        is_one &= compared(scores, intervals(other, "score")) == WORSE
    images = leads.loc[is_one, "score"].sort_values(kind="stable").index
    names = " and ".join(run.names[key] for key in others)
    title = f"{run.names[leader]} below 0, while {names} {'do' if len(others) > 1 else 'does'} better"
    return Exceptional("P1 section V-B and Figure 9", title, order, tuple(images), len(having))


def exceptional_images(store: RunStore) -> list[str]:
    """The photographs that the page shows as exceptions. A run keeps their pictures even if they are not its first."""
    if store.results().empty:
        return []
    rows, _ = st.scored_rows(store)
    if rows.empty:
        return []
    found = exceptional(Subject(store, rows, 0))
    return list(dict.fromkeys(image for one in found for image in one.images[:MOST]))


def exceptions(run: Subject) -> Section | None:
    """The section on exceptions: their number, their scores, and their maps if the run has kept them."""
    found = exceptional(run)
    if not found:
        return None
    stage = run.stages[-1]
    rows = run.main[run.main["stage"] == stage].set_index(["image", "explainer"])
    lines = [
        (
            Cell(one.title),
            Cell(image),
            Cell(run.names[key]),
            *(_value(rows.loc[(image, key)], name) for name in ("epsilon_minus", "epsilon_plus", "score")),
        )
        for one in found
        for image in one.images[:MOST]
        for key in one.methods
        if (image, key) in rows.index
    ]
    counts = "; ".join(f"{one.title}: {len(one.images):,} of {one.of:,}" for one in found)
    columns = ("what is unexpected", "photograph", "explanation", "ε⁻", "ε⁺", "score")
    pictures = tuple((f"{one.title} ({one.source})", _rows_of_pictures(run, one, rows)) for one in found if one.images)
    return Section(
        "exceptions",
        "Exceptions",
        "Photographs on which the method that should lead does worse, by the papers’ rules; at most three of each, the "
        f"clearest first, {stage}.",
        finding=f"{counts}.",
        caption="Only what is sure in spite of censoring counts. A map is brighter where it says relevant.",
        tables=(("Their scores", Table(columns, tuple(lines))),) if lines else (),
        pictures=tuple((title, lines) for title, lines in pictures if lines),
    )


def _value(row: pandas.Series, name: str) -> Cell:
    """A quantity of one image, with a mark if a ray is censored."""
    return Cell(number(row[name], 1, _mark(row, name)), row[name])


def _mark(row: pandas.Series, name: str) -> str:
    return median_of(intervals(pandas.DataFrame([row]), name)).mark


def _rows_of_pictures(run: Subject, one: Exceptional, rows: pandas.DataFrame) -> tuple[tuple[Picture, ...], ...]:
    """A row for each photograph whose picture was kept: the photograph and the methods' maps of it."""
    lines = []
    for image in one.images[:MOST]:
        line = [photograph_picture(run.store, image)]
        for key in one.methods if line[0] is not None else ():
            if (image, key) in rows.index:
                row = rows.loc[(image, key)]
                caption = f"{run.names[key]}: {number(row['score'], 1, _mark(row, 'score'))}"
                line.append(map_picture(run.store, image, key, run.stages[-1], caption))
        lines.append(tuple(picture for picture in line if picture is not None))
    return tuple(filter(None, lines))
