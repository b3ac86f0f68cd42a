"""The page's section on the randomisation tests that `apem-fast randomise` did (P2 section 2.2)."""

from __future__ import annotations

import pandas
from markupsafe import Markup

from apem_fast.experiment.randomising import EDGES, FILE
from apem_fast.experiment.report.drawing import INK, METHODS, inline_svg, page_style, panels, quiet
from apem_fast.experiment.report.section import Cell, Section, Table, number
from apem_fast.experiment.report.subject import Subject, is_baseline
from apem_fast.explain import explainer_from, imported_by
from apem_fast.measures.randomisation import SIMILARITIES

SHOWN = {
    "rank_correlation": "rank correlation",
    "absolute_rank_correlation": "rank correlation of sizes",
    "structural_similarity": "SSIM",
    "gradient_histograms": "HOG",
}
TESTS = {
    "cascading": "More and more parts (cascading)",
    "independent": "One part at a time (independent)",
    "data": "Trained on permuted labels",
}


def randomisation(run: Subject) -> Section | None:
    """How similar each method's maps stay to the originals; None if the tests were not run."""
    path = run.store.folder / FILE
    if not path.exists():
        return None
    table = pandas.read_csv(path)
    names = {key: _name(run, key) for key in table["explainer"].unique()}
    lines = []
    for test in (test for test in TESTS if (table["test"] == test).any()):
        of_test = table[table["test"] == test]
        last = of_test[of_test["place"] == of_test["place"].max()]
        for key, name in names.items():
            part = last[last["explainer"] == key] if test != "independent" else of_test[of_test["explainer"] == key]
            cells = [Cell(_mean_and_deviation(part[column]), part[column].mean()) for column in SIMILARITIES]
            lines.append((Cell(TESTS[test], is_name=True), Cell(name, is_name=True), *cells))
    methods = table[(table["test"] == "cascading") & ~table["explainer"].map(is_baseline)]
    end = methods[methods["place"] == methods["place"].max()].groupby("explainer")["absolute_rank_correlation"].mean()
    finding = ""
    if len(end):
        kept = end.idxmax()
        finding = (
            f"With the whole network forgotten, most is left of {names[kept]}: a rank correlation of sizes of "
            f"{number(end[kept], 2)} in the mean."
        )
    return Section(
        "randomisation",
        "Do the maps depend on what the network learnt?",
        "Parts of the network are given new random parameters, from the output to the input. A map that stays as it "
        "was (1) does not show what the network learnt; one that has nothing to do with its former self is at 0.",
        finding=finding,
        figures=tuple(
            (TESTS[test], Markup(_curves(table[table["test"] == test], names)))
            for test in ("cascading", "independent")
            if (table["test"] == test).any()
        ),
        caption="Means over the photographs, with one standard deviation to either side. Dotted: an edge detector "
        "and other baselines, which know no network. Maps are compared in one channel, rank correlations of signed and "
        "of absolute values (P2 section 2.2).",
        tables=(
            (
                "",
                Table(("parameters", "explanation", *SHOWN.values()), tuple(lines)),
            ),
        ),
    )


def _name(run: Subject, key: str) -> str:
    """A method's name on the page; the edge detector need not be one of the run."""
    if key in run.names:
        return run.names[key]
    return key if imported_by(key) else explainer_from(key).name


def _mean_and_deviation(values: pandas.Series) -> str:
    deviation = "" if values.count() < 2 else f" ± {number(values.std(), 2)}"
    return number(values.mean(), 2) + deviation


def _curves(rows: pandas.DataFrame, names: dict[str, str]) -> str:
    parts = rows.drop_duplicates("place").sort_values("place")["part"].tolist()
    with page_style():
        figure, axes = panels(1, len(SIMILARITIES), 2.6, 2.6, sharey=True)
        for axis, column in zip(axes[0], SIMILARITIES):
            for number_, (key, name) in enumerate(names.items()):
                of_part = rows[rows["explainer"] == key].groupby("place")[column]
                mean, deviation = of_part.mean(), of_part.std().fillna(0)
                blind = is_baseline(key)
                colour = INK if key == EDGES else METHODS[number_ % len(METHODS)]
                axis.plot(mean.index, mean, ":" if blind else "-", color=colour, linewidth=1.2, label=name)
                axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.1, linewidth=0)
            axis.set_title(SHOWN[column], fontsize=9)
            axis.set_xlabel("part, from the output on", fontsize=7)
            axis.set_xticks(range(len(parts)), parts, rotation=90, fontsize=6)
            quiet(axis)
        axes[0][-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return inline_svg(figure)
