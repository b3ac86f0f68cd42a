"""The statistical sections of a run's page: tables as plain cells, figures as SVG, and a sentence on what each says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas
from markupsafe import Markup

from apem_fast.experiment.report import figures
from apem_fast.experiment.report import statistics as st
from apem_fast.experiment.report.findings import sign_test, told_apart
from apem_fast.experiment.report.sets import FEWEST, SETS, TITLES, image_sets, in_set
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import BASELINES
from apem_fast.relevance import STAGES


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by (itself where None); a name stands to the left, a number right."""

    text: str
    value: float | None = None
    is_name: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by any column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        key: its anchor.
        title: its heading.
        reading: one sentence or two on what it shows and how to read it.
        finding: what it says of this run; "" if nothing.
        figures: (title, SVG), the first open and the others folded.
        caption: below the first figure.
        tables: shown below, the first open, each further one folded under its heading.
    """

    key: str
    title: str
    reading: str
    finding: str = ""
    figures: tuple[tuple[str, Markup], ...] = ()
    caption: str = ""
    tables: tuple[tuple[str, Table], ...] = field(default=())


def number(value: float, digits: int = 1, mark: str = "") -> str:
    """For reading: thousands parted, a real minus, – for nothing."""
    # Adding 0 turns a negative zero, which rounding leaves of small numbers, into 0.
    return "–" if np.isnan(value) else mark + f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def probability(value: float) -> str:
    if np.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"


def explainer_names(store: RunStore) -> dict[str, str]:
    """What to call each explainer: its name, with its options where two of the run have the same name."""
    names = {key: one["name"] for key, one in store.record["explainers"].items()}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {
        key: f"{name} ({key.partition(':')[2] or 'default'})" if name in twice else name for key, name in names.items()
    }


def is_baseline(key: str) -> bool:
    return key.split(":", maxsplit=1)[0] in BASELINES


def sections(store: RunStore, rows: pandas.DataFrame, seed: int = 0) -> list[Section]:
    """Every section that the run has numbers for, in the order of the page.

    Args:
        store: the run.
        rows: its scored rows, see `statistics.scored_rows`.
        seed: of everything that draws at random.
    """
    run = _Run(store, rows, seed)
    made = (
        run.spread(),
        run.comparisons(),
        run.simplification(),
        run.irrelevance(),
        run.flips(),
        run.correctness(),
        run.loss(),
        run.shuffles(),
        run.trust(),
        run.other_measures(),
    )
    return [section for section in made if section is not None]


class _Run:
    """What all sections share."""

    def __init__(self, store: RunStore, rows: pandas.DataFrame, seed: int):
        self.store, self.seed = store, seed
        self.names = {key: name for key, name in explainer_names(store).items() if key in set(rows["explainer"])}
        self.stages = [stage for stage in STAGES if stage in set(rows["stage"])]
        self.rows = rows.sort_values("stage", key=lambda column: column.map(self.stages.index), kind="stable")
        self.sets = image_sets(self.rows)
        self.main = next(iter(self.sets.values()))  # the papers' figures are of correctly classified images
        self.methods = [key for key in self.names if not is_baseline(key)] or list(self.names)

    def named(self, row: dict[str, Any]) -> tuple[Cell, Cell]:
        """The first two cells of most tables."""
        return self.stage(row["stage"]), Cell(self.names[row["explainer"]])

    def stage(self, name: str) -> Cell:
        """A stage sorts by its place."""
        return Cell(name, self.stages.index(name), is_name=True)

    def by_set(self, draw: Callable[[pandas.DataFrame], str]) -> tuple[tuple[str, Markup], ...]:
        """A figure of each set of images, under its name where there are two."""
        return tuple((TITLES[name], Markup(draw(part))) for name, part in self.sets.items())

    def set_cells(self, name: str) -> tuple[Cell, ...]:
        """The first cell of a table's row: which images it is of, where there are two sets."""
        return (Cell(TITLES[name]),) if len(self.sets) > 1 else ()

    @property
    def set_columns(self) -> tuple[str, ...]:
        return ("photographs",) if len(self.sets) > 1 else ()

    def spread(self) -> Section:
        return Section(
            "spread",
            "Spread over the photographs",
            "How much the scores differ from photograph to photograph: a method with a high median may still fail on "
            "some.",
            figures=self.by_set(lambda rows: figures.boxplots(rows, self.names, self.stages)),
            caption="One dot for each photograph (where there are no more than 300), the box from the first quartile "
            "to the third with the median across it. A hollow dot is censored. The axes are linear to ±10 and "
            "logarithmic beyond. P1 Figure 3, P2 Figures 4.2, 4.3 and 4.7.",
        )

    def comparisons(self) -> Section | None:
        tables = {name: st.pairwise(part) for name, part in self.sets.items()}
        if all(table.empty for table in tables.values()):
            return None

        def bars(rows: pandas.DataFrame) -> str:
            table = st.pairwise(rows)
            methods = table[table["first"].isin(self.methods) & table["second"].isin(self.methods)]
            shown = methods if len(methods) else table
            return figures.pairwise_bars(
                {
                    stage: [(f"{self.names[row['first']]} : {self.names[row['second']]}", row) for row in records]
                    for stage, records in _by(shown, "stage")
                }
            )

        lines = [
            (
                *self.set_cells(name),
                self.stage(row["stage"]),
                Cell(self.names[row["first"]]),
                Cell(self.names[row["second"]]),
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
            finding=self._dominance(next(iter(tables.values()))),
            figures=self.by_set(bars),
            caption="Each bar is one pair of methods, first : second, in percent of the photographs: better, the first "
            "scores higher. P1 Figure 4, P2 Figure 4.4."
            + (" The baselines are in the table." if 1 < len(self.methods) < len(self.names) else ""),
            tables=(("All pairs", Table((*self.set_columns, "stage", "first", "second", *_SHARES), tuple(lines))),),
        )

    def _dominance(self, table: pandas.DataFrame) -> str:
        first = table[table["stage"] == self.stages[0]]
        wins = dict.fromkeys(self.names, 0)
        for row in first.to_dict("records"):
            if row["better"] != row["worse"]:
                wins[row["first"] if row["better"] > row["worse"] else row["second"]] += 1
        best = max(wins, key=wins.__getitem__)
        others = [key for key in self.names if key != best]
        tests = [sign_test(self.main, self.stages[0], best, other) for other in others]
        sure = sum(apart and test.better > test.worse for apart, test in zip(told_apart(tests), tests))
        return (
            f"At the {self.stages[0]} stage {self.names[best]} wins more photographs than it loses against "
            f"{wins[best]} of {len(others)} others; chance does not explain {sure} of these "
            "(sign test at 5 %, Holm’s procedure)."
        )

    def simplification(self) -> Section | None:
        tables = {name: st.pairwise_stages(part) for name, part in self.sets.items()}
        if not any(table["explainer"].isin(self.methods).any() for table in tables.values()):
            return None

        def bars(rows: pandas.DataFrame) -> str:
            table = st.pairwise_stages(rows)
            shown = table[table["explainer"].isin(self.methods)]
            shown = shown.assign(pair=[f"{one} : {other}" for one, other in zip(shown["first"], shown["second"])])
            return figures.pairwise_bars(
                {pair: [(self.names[row["explainer"]], row) for row in records] for pair, records in _by(shown, "pair")}
            )

        lines = [
            (
                *self.set_cells(name),
                Cell(self.names[row["explainer"]]),
                self.stage(row["first"]),
                self.stage(row["second"]),
                *_shares(row),
            )
            for name, table in tables.items()
            for row in table.to_dict("records")
        ]
        columns = (*self.set_columns, "explanation", "first", "second", *_SHARES)
        return Section(
            "simplification",
            "What readability costs",
            "Each stage makes a map easier on the eye. On how many photographs does the easier map of the same method "
            "score lower?",
            figures=self.by_set(bars),
            caption="Each bar compares two stages of one method, in percent of the photographs: better, the earlier "
            "stage scores higher. P1 Table II, P2 Figure 4.7 j–l.",
            tables=(("All methods", Table(columns, tuple(lines))),),
        )

    def irrelevance(self) -> Section | None:
        pair = self._pair()
        if pair is None:
            return None
        first, second = pair

        def found(rows: pandas.DataFrame) -> dict[str, dict[str, st.Differences]]:
            return {
                title: {
                    stage: st.epsilon_plus_differences(rows, stage, first, second, only_better_minus=only)
                    for stage in self.stages
                }
                for title, only in (("all photographs", False), (f"{self.names[first]} has the lower ε⁻", True))
            }

        lines = []
        for name, part in self.sets.items():
            for title, by_stage in found(part).items():
                for stage, one in by_stage.items():
                    known = float(np.median(one.exact)) if len(one.exact) else np.nan
                    lines.append(
                        (
                            *self.set_cells(name),
                            Cell(title),
                            self.stage(stage),
                            _count(one.images),
                            Cell(percent(one.positive_share), one.positive_share),
                            Cell(number(known), known),
                            Cell(f"{one.above} / {one.below}", one.above + one.below),
                            _count(one.unknown),
                        )
                    )
        columns = (
            *self.set_columns,
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
            f"ε⁺ of {self.names[first]} and of {self.names[second]}",
            "A method is also measured by what it calls irrelevant: ε⁺ falls when something that matters was left out. "
            f"To the right of 0 the irrelevance of {self.names[first]} is the better one.",
            figures=self.by_set(lambda rows: figures.differences(found(rows), self.names[first], self.names[second])),
            caption="Histogram of the differences photograph by photograph and its kernel density estimate, where "
            "neither ε⁺ is censored: of all photographs (P1 Figure 8), and of those on which the first has the lower "
            "ε⁻ (P2 Figure 5.1).",
            tables=(("", Table(columns, tuple(lines))),),
        )

    def _pair(self) -> tuple[str, str] | None:
        """The papers compare LRP with SmoothGrad; without them, the two methods with the highest medians."""
        kinds = {key.split(":")[0]: key for key in reversed(self.methods)}
        if "lrp" in kinds and "smooth-grad" in kinds:
            return kinds["lrp"], kinds["smooth-grad"]
        if len(self.methods) < 2:
            return None
        first = self.main[self.main["stage"] == self.stages[0]]
        medians = first.groupby("explainer")["score"].median().reindex(self.methods)
        best = medians.sort_values(ascending=False, kind="stable").index
        return best[0], best[1]

    def flips(self) -> Section:
        return Section(
            "flips",
            "How many predictions have changed",
            "The share of the photographs whose prediction has changed by each ε. A good map’s curve rises early along "
            "the relevance (above) and late along the irrelevance (below).",
            figures=self.by_set(
                lambda rows: figures.flip_curves(rows, self.names, self.stages, list(filter(is_baseline, self.names)))
            ),
            caption="Kaplan and Meier’s estimate: a ray without a flip counts as unchanged as far as it was followed. "
            "Baselines are dotted. The axis is linear to 10 and logarithmic beyond.",
        )

    def correctness(self) -> Section | None:
        images = {name: in_set(self.rows, name)["image"].nunique() for name in SETS}
        if not images["correct"] or not images["misclassified"]:
            return None
        lines = []
        for row in st.by_correctness(self.rows).to_dict("records"):
            values = [
                Cell(number(row[name], 1, row[f"{name}_mark"]), row[name])
                for name in ("median_correct", "median_misclassified", "mean_correct", "mean_misclassified")
            ]
            effect, p_value = row["effect"], row["p_value"]
            lines.append(
                (*self.named(row), *values, Cell(number(effect, 2), effect), Cell(probability(p_value), p_value))
            )
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
        wrong = in_set(self.rows, "misclassified")
        # A box of fewer says nothing; where the sets stand apart anyway, they are drawn above.
        drawn = images["misclassified"] >= FEWEST and len(self.sets) == 1
        figure = (("", Markup(figures.boxplots(wrong, self.names, self.stages))),) if drawn else ()
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

    def loss(self) -> Section | None:
        table = st.loss_correlation(self.rows, self.seed)
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
                lines.append((self.stage(stage), Cell(self.names[explainer]), *cells))
            else:
                lines.append((Cell("", len(self.stages), is_name=True), Cell("the network’s confidence"), *cells))
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

    def shuffles(self) -> Section | None:
        if not st.has_shuffles(self.rows):
            return None
        lines = []
        for name, part in self.sets.items():
            for row in st.shuffled(part).to_dict("records"):
                centre = [Cell(number(row[n], 1, row[f"{n}_mark"]), row[n]) for n in ("median", "mean")]
                norm = Cell(number(row["norm"], 2, "≈" if row["inexact"] else ""), row["norm"])
                lines.append((*self.set_cells(name), *self.named(row), *centre, norm, _count(row["inexact"])))
        shown = next((key for key in self.methods if key.split(":")[0] == "gradient"), self.methods[0])
        columns = (
            *self.set_columns,
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
            figures=self.by_set(lambda rows: figures.shuffled_histograms(rows, shown, self.stages)),
            caption=f"Scores of the shuffled maps of {self.names[shown]}. P2 section 5.2, Figure 5.2 and Table 5.1.",
            tables=(("", Table(columns, tuple(lines))),),
        )

    def trust(self) -> Section | None:
        found = [(stage, st.ranking_stability(self.rows, stage, self.seed)) for stage in self.stages]
        table = st.sanity(self.rows, BASELINES, self.store.options.step, self.seed)
        stable = tuple(
            (
                self.stage(stage),
                Cell(number(one.tau, 2), one.tau),
                Cell(f"{number(one.low, 2)} to {number(one.high, 2)}", one.low),
                _count(one.explainers),
                _count(one.images),
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
                name = Cell(self.names[row["explainer"]] + (", shuffled" if row["shuffled"] else ""))
                lines.append(
                    (
                        self.stage(row["stage"]),
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

    def other_measures(self) -> Section | None:
        present = [
            name for name in ("selectivity", "continuity") if name in self.rows and self.rows[name].notna().any()
        ]
        if not present:
            return None
        lines = []
        for stage, explainer, part in st.groups(self.rows):
            cells = [(part[name].mean(), part[name].median()) for name in present]
            row = {"stage": stage, "explainer": explainer}
            lines.append((*self.named(row), *(Cell(number(v, 3), v) for pair in cells for v in pair)))
        columns = ("stage", "explanation", *(f"{which} {name}" for name in present for which in ("mean", "median")))
        return Section(
            "measures",
            "Other measures",
            "Selectivity: the area under the network’s output while the most relevant features are taken away, the "
            "lower the better (P2 Algorithm 1). Continuity: how much a map changes at most where the photograph hardly "
            "does, the lower the better, to be compared at the same stage only (P2 section 2.3.1).",
            tables=(("", Table(columns, tuple(lines))),),
        )


def _by(table: pandas.DataFrame, column: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of each value of a column, in the order in which the values come."""
    for value, part in table.groupby(column, sort=False):
        yield str(value), part.to_dict("records")


_SHARES = ("better", "equal", "worse", "undecided", "images")


def _shares(row: dict[str, Any]) -> tuple[Cell, ...]:
    return (*(Cell(percent(row[name]), row[name]) for name in _SHARES[:-1]), _count(row["images"]))
