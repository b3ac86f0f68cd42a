"""The sections on what a score means: its correlations, and whether it and the ranking can be relied on."""

from __future__ import annotations

from markupsafe import Markup

from apem_fast.experiment.report import figures
from apem_fast.experiment.report import statistics as st
from apem_fast.experiment.report.section import Cell, Section, Table, count, number, probability
from apem_fast.experiment.report.sets import FEWEST, SETS, in_set
from apem_fast.experiment.report.subject import Subject
from apem_fast.experiment.report.trust import ranking_stability, sanity
from apem_fast.explain import BASELINES


def correctness(run: Subject) -> Section | None:
    """Scores of correctly classified against misclassified photographs; None if there are none of one kind."""
    images = {name: in_set(run.rows, name)["image"].nunique() for name in SETS}
    if not images["correct"] or not images["misclassified"]:
        return None
    lines = []
    for row in st.by_correctness(run.rows).to_dict("records"):
        values = [
            Cell(number(row[name], 1, row[f"{name}_mark"]), row[name])
            for name in ("median_correct", "median_misclassified", "mean_correct", "mean_misclassified")
        ]
        effect, p_value = row["effect"], row["p_value"]
        lines.append((*run.named(row), *values, Cell(number(effect, 2), effect), Cell(probability(p_value), p_value)))
    columns = (
        "stage",
        "explanation",
        "median, correct",
        "median, misclassified",
        "mean, correct",
        "mean, misclassified",
        "Cliff’s delta",
        "p",
    )
    wrong = in_set(run.rows, "misclassified")
    # Too few for a boxplot, or drawn above already because the sets are shown separately.
    drawn = images["misclassified"] >= FEWEST and len(run.sets) == 1
    figure = (("", Markup(figures.boxplots(wrong, run.names, run.stages))),) if drawn else ()
    return Section(
        "correctness",
        "Correct and misclassified",
        "An uncertain network is moved by less, so scores of misclassified photographs are expected to be lower, "
        "but the order of the methods the same.",
        finding=f"{images['correct']:,} photographs are classified correctly, {images['misclassified']:,} are not."
        + (" With so few of one kind, take the test lightly." if min(images.values()) < 10 else ""),
        figures=figure,
        caption=("The misclassified photographs alone (P2 Figure 5.3). " if drawn else "")
        + "P1 Table III, P2 Table 5.2. Cliff’s delta is "
        "1 where every correct photograph scores higher than every misclassified one, −1 the other way round; p is "
        "the Mann-Whitney test’s, two-sided. Censored scores enter both as observed.",
        tables=(("", Table(columns, tuple(lines))),),
    )


def loss(run: Subject) -> Section | None:
    """The correlation of score and loss; None if no class is known."""
    table = st.loss_correlation(run.rows, run.seed)
    if not table["coefficient"].notna().any():
        return None
    found = {(row["stage"], row["explainer"], row["set"]): row for row in table.to_dict("records")}
    lines = []
    for stage, explainer in dict.fromkeys(zip(table["stage"], table["explainer"])):
        cells = []
        for which in SETS:
            row = found[stage, explainer, which]
            text = number(row["coefficient"], 3) + ("†" if row["p_value"] < 0.01 else "")
            cells += [Cell(text, row["coefficient"]), Cell(probability(row["p_value"]), row["p_value"])]
        if explainer:
            lines.append((run.stage(stage), Cell(run.names[explainer]), *cells))
        else:
            lines.append((Cell("", len(run.stages), is_name=True), Cell("the network’s confidence"), *cells))
    columns = ("stage", "explanation", *(c for which in SETS for c in (which, "p")))
    sizes = ", ".join(f"{found['', '', which]['images']:,} {which}" for which in SETS)
    return Section(
        "loss",
        "Score and loss",
        "Does a high score go with a low loss? Spearman’s rank correlation: −1, always; 0, no connection. "
        "The network’s confidence is there for comparison.",
        caption=f"Photographs whose truth is known: {sizes}. †: p < 0.01, from Student’s t, or from 4,999 "
        "permutations for fewer than 500 photographs. P1 Table IV, P2 Table 5.3.",
        tables=(("", Table(columns, tuple(lines))),),
    )


def shuffles(run: Subject) -> Section | None:
    """Scores of shuffled maps; None if the run has none."""
    if not st.has_shuffles(run.rows):
        return None
    lines = []
    for name, part in run.sets.items():
        for row in st.shuffled(part).to_dict("records"):
            centre = [Cell(number(row[n], 1, row[f"{n}_mark"]), row[n]) for n in ("median", "mean")]
            norm = Cell(number(row["norm"], 2, "≈" if row["inexact"] else ""), row["norm"])
            lines.append((*run.set_cells(name), *run.named(row), *centre, norm, count(row["inexact"])))
    shown = next((key for key in run.methods if key.split(":")[0] == "gradient"), run.methods[0])
    columns = (
        *run.set_columns,
        "stage",
        "explanation",
        "median, shuffled",
        "mean, shuffled",
        "APEM norm",
        "with a censored ray",
    )
    return Section(
        "shuffled",
        "Shuffled maps",
        "The same values in random order explain nothing, so their scores should lie around 0. APEM norm divides "
        "each ε by that of the shuffled map before the difference is taken.",
        figures=run.by_set(lambda rows: figures.shuffled_histograms(rows, shown, run.stages)),
        caption=f"Scores of the shuffled maps of {run.names[shown]}. P2 section 5.2, Figure 5.2 and Table 5.1.",
        tables=(("", Table(columns, tuple(lines))),),
    )


def trust(run: Subject) -> Section | None:
    """Whether the ranking is stable, and whether maps without information score near 0; None without either."""
    found = [(stage, ranking_stability(run.rows, stage, run.seed)) for stage in run.stages]
    table = sanity(run.rows, BASELINES, run.store.options.step, run.seed)
    stable = tuple(
        (
            run.stage(stage),
            Cell(number(one.tau, 2), one.tau),
            Cell(f"{number(one.low, 2)} to {number(one.high, 2)}", one.low),
            count(one.explainers),
            count(one.images),
        )
        for stage, one in found
        if one is not None
    )
    if not stable and table.empty:
        return None
    tables = []
    if stable:
        columns = ("stage", "Kendall’s tau", "95 % interval", "explanations", "images")
        tables.append(("Ranking of the methods on two random halves", Table(columns, stable)))
    finding = ""
    if not table.empty:
        lines = []
        for row in table.to_dict("records"):
            verdict = ("near 0" if row["near"] else "NOT near 0") if row["expected"] else "not asked"
            name = Cell(run.names[row["explainer"]] + (", shuffled" if row["shuffled"] else ""))
            lines.append(
                (
                    run.stage(row["stage"]),
                    name,
                    Cell(number(row["median"]), row["median"]),
                    Cell(f"{number(row['low'])} to {number(row['high'])}", row["low"]),
                    Cell(verdict),
                )
            )
        columns = ("stage", "map", "median", "95 % interval", "must be near 0")
        tables.append(("Maps that know nothing", Table(columns, tuple(lines))))
        asked = table[table["expected"]]
        if len(asked):
            finding = f"{int(asked['near'].sum())} of {len(asked)} maps that must score near 0 do."
    return Section(
        "trust",
        "Can the ranking be relied on?",
        "Two checks. Do two halves of the photographs rank the methods alike (tau 1: the same order; 0: no "
        "agreement)? And do maps that know nothing score near 0, as they must?",
        finding=finding,
        caption="Tau is the mean over 400 random halvings; its interval also resamples each half. Near 0: the 95 % "
        "bootstrap interval of the median comes within one step of the grid of 0. A baseline multiplied by the "
        "photograph knows the photograph, as do edges and the middle of the picture: of these nothing is asked.",
        tables=tuple(tables),
    )
