"""The page's sections on other measures than APEM: their values for the methods, and their reliability."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas

from apem_fast.experiment.report import figures
from apem_fast.experiment.report import statistics as st
from apem_fast.experiment.report.measure_reliability import (
    APEM,
    Reliability,
    agreements,
    present_measures,
    ranks_by_measure,
    reliabilities,
    title_of,
)
from apem_fast.experiment.report.section import Cell, Section, Table, number
from apem_fast.experiment.report.subject import Subject, is_baseline
from apem_fast.experiment.run.columns import MEASURES
from apem_fast.experiment.run.tables import CURVE


def other_measures(run: Subject) -> Section | None:
    """The values of each measure for each method; None if the run only has APEM."""
    present = present_measures(run.rows)
    if not present:
        return None
    titles = [MEASURES[name].title for name in present]

    def table(statistic: Callable[[pandas.Series], float]) -> Table:
        lines = []
        for which, part in run.sets.items():
            for stage, explainer, of_one in st.groups(part):
                values = [float(statistic(of_one[name])) for name in present]
                names = run.named({"stage": stage, "explainer": explainer})
                lines.append((*run.set_cells(which), *names, *(Cell(number(value, 3), value) for value in values)))
        return Table((*run.set_columns, "stage", "explanation", *titles), tuple(lines))

    meanings = Table(
        ("measure", "good is", "what it is"),
        tuple(
            (
                Cell(MEASURES[name].title, is_name=True),
                Cell(MEASURES[name].better, is_name=True),
                Cell(MEASURES[name].meaning, is_name=True),
            )
            for name in present
        ),
    )
    finding = ""
    if "measure_probes" in run.rows:
        probes = run.rows["measure_probes"].mean(), run.rows["probes"].mean()
        finding = f"They took {number(probes[0], 0)} probes a map on the average; APEM took {number(probes[1], 0)}."
    return Section(
        "measures",
        "Other measures",
        "What other measures of the field say of the same maps, image by image and in the median.",
        finding=finding,
        tables=(
            ("", table(lambda values: values.median())),
            ("Means", table(lambda values: values.mean())),
            ("What they are", meanings),
        ),
    )


def curves(run: Subject) -> Section | None:
    """The curves whose areas are measures; None if the run kept none."""
    kept = {f"{name}{CURVE}": one.title for name, one in MEASURES.items() if f"{name}{CURVE}" in run.rows}
    if not kept:
        return None
    baselines = list(filter(is_baseline, run.names))
    return Section(
        "curves",
        "What the network still sees",
        "The network’s belief in its prediction while features are taken away. Where the most relevant go first "
        "(selectivity, deletion), a good map’s curve falls early; where the least relevant go first (insertion), late.",
        figures=run.by_set(lambda rows: figures.removal_curves(rows, kept, run.names, run.stages, baselines)),
        caption="Means over the photographs. Selectivity turns features grey (P2 Algorithm 1), the others replace them "
        f"({run.store.options.imputation}). Baselines are dotted.",
    )


def reliability(run: Subject) -> Section | None:
    """How far each measure ranks the methods alike on every image; None with too few images or methods."""
    by_stage = {stage: ranks_by_measure(run.main, stage, run.methods) for stage in run.stages}
    by_stage = {stage: ranks for stage, ranks in by_stage.items() if len(ranks) > 1}
    if not by_stage:
        return None
    found = {stage: reliabilities(ranks, run.seed) for stage, ranks in by_stage.items()}
    lines = []
    for stage, of_stage in found.items():
        for one in of_stage:
            less = "" if one.measure == APEM else f"{number(one.less_low, 2)} to {number(one.less_high, 2)}"
            lines.append(
                (
                    run.stage(stage),
                    Cell(title_of(one.measure), is_name=True),
                    Cell(number(one.alpha, 2), one.alpha),
                    Cell(f"{number(one.low, 2)} to {number(one.high, 2)}", one.low),
                    Cell(less, one.less_low),
                    Cell(str(one.images), one.images),
                )
            )
    tables = [
        ("", Table(("stage", "measure", "alpha", "95 % interval", "above APEM by", "images"), tuple(lines))),
    ]
    for stage, ranks in by_stage.items():
        table = agreements(ranks)
        rows = tuple(
            (
                Cell(title_of(one), is_name=True),
                *(Cell(number(table[one, other], 2), table[one, other]) for other in ranks),
            )
            for one in ranks
        )
        tables.append((f"Agreement between measures, {stage}", Table(("measure", *map(title_of, ranks)), rows)))
    return Section(
        "reliability",
        "How reliable are the measures?",
        "Does a measure rank the methods alike on every photograph? Krippendorff’s alpha of the ranks: 1, the same "
        "order everywhere; 0, chance (Tomsett et al. 2020). A measure of little alpha needs many photographs before "
        "its average says anything of one.",
        finding=_standing(found[run.stages[0]] if run.stages[0] in found else next(iter(found.values()))),
        caption="Of the methods without the baselines, on the photographs on which all measures have values of all of "
        "them; censored scores as observed. Intervals: photographs drawn with replacement, 500 times; “above APEM by”: "
        "the difference, draw by draw. Agreement: Spearman’s correlation of the ranks that two measures give on one "
        "photograph, the mean over the photographs; 1 the same order, −1 the reverse.",
        tables=tuple(tables),
    )


def _standing(of_stage: list[Reliability]) -> str:
    """Sentences on APEM's reliability among the measures, including measures that are more reliable."""
    own = next(one for one in of_stage if one.measure == APEM)
    if np.isnan(own.alpha):
        return "APEM ranks nothing here."
    sentences = [f"APEM’s alpha is {number(own.alpha, 2)} ({number(own.low, 2)} to {number(own.high, 2)})"]
    above = [one for one in of_stage if one.alpha > own.alpha]
    if not above:
        return f"{sentences[0]}, the highest of the {len(of_stage)} measures."
    sure = [title_of(one.measure) for one in above if one.surely_better]
    names = _listed([f"{title_of(one.measure)} ({number(one.alpha, 2)})" for one in above])
    verdict = f"chance does not explain it for {_listed(sure)}" if sure else "chance explains all of these differences"
    return f"{sentences[0]}. More reliable here: {names}; {verdict}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
