"""What P1 and P2 claim of explanation methods, claim by claim, and whether a run bears it out.

A claim is reproduced where the run's images show it beyond chance (5 %, Holm's procedure where it is about several
methods or stages), contradicted where they show the opposite beyond chance, and undecided otherwise. Order claims are
put to the sign test image by image, which heeds censoring; claims about a spread or a ranking to a bootstrap over the
images. All are of correctly classified images at the run's last stage, as in the papers, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas
from scipy import stats

from apem_fast.experiment.report import statistics as st
from apem_fast.experiment.report.censoring import BETTER, WORSE, compared, intervals
from apem_fast.experiment.report.findings import LEVEL, SignTest, holm, sign_test
from apem_fast.experiment.report.published import METHODS, of_method
from apem_fast.experiment.report.section import Cell, Section, Table
from apem_fast.experiment.report.sets import FEWEST, in_set
from apem_fast.experiment.report.trust import sanity, tau
from apem_fast.relevance import STAGES, USUAL_STAGES

Verdict = Literal["reproduced", "contradicted", "undecided", "not in this run"]
RESAMPLES = 2000
RANKED_AGAIN = 500  # resamples for statistics that rank all images again in each
WITHOUT_COLOUR = "grad-cam"  # the same in every channel: summing them changes nothing, and P1 Table II shows no decline


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        source: the passage that makes it.
        statement: what it says, in one sentence.
        verdict: of this run.
        figure: what was found, with its interval or probability; "" where the run lacks what it takes.
    """

    source: str
    statement: str
    verdict: Verdict
    figure: str = ""


@dataclass(frozen=True)
class _Test:
    """One comparison: whether it came out as claimed (+1), the other way (-1) or neither (0), by chance or not."""

    direction: int
    p_value: float
    text: str


def verdict_of(tests: Sequence[_Test]) -> Verdict:
    """The verdict on a claim whose comparisons all have to hold: one that chance does not explain and that goes the
    other way contradicts it."""
    if not tests:
        return "not in this run"
    sure = holm([test.p_value for test in tests])
    if any(apart and test.direction < 0 for apart, test in zip(sure, tests, strict=True)):
        return "contradicted"
    all_hold = all(apart and test.direction > 0 for apart, test in zip(sure, tests, strict=True))
    return "reproduced" if all_hold else "undecided"


def claims(rows: pandas.DataFrame, step: float, seed: int = 0) -> list[Claim]:
    """All claims, in the order of the papers.

    Args:
        rows: a run's scored rows, see `statistics.scored_rows`.
        step: the grid's step: a median within one of 0 is 0.
        seed: of the bootstrap.
    """
    run = _Claims(rows, step, seed)
    return [
        run.claim("P1 IV-B, Figure 4", "The gradient scores higher than every other method.", run.gradient_leads()),
        run.claim(
            "P2 4.3, Figure 4.3", "The gradient has the lowest ε⁻ and the highest ε⁺ of all.", run.gradient_leads_both()
        ),
        run.claim("P1 IV-B, Table I", "LRP scores higher than SmoothGrad.", run.higher("lrp", "smooth-grad")),
        run.claim("P1 IV-B", "LRP's scores spread more than SmoothGrad's.", run.spreads("lrp", "smooth-grad")),
        run.claim("P1 IV-C, Table II", "A method's score falls from stage to stage.", run.declines()),
        run.claim(
            "P1 V-A, Figure 8", "LRP's ε⁺ is lower than SmoothGrad's.", run.higher("smooth-grad", "lrp", "epsilon_plus")
        ),
        run.claim("P1 V-C, Table III", "Misclassified images score lower, with every method.", run.misclassified()),
        run.claim("P1 V-C, Table III", "Misclassified images rank the methods in the same order.", run.same_order()),
        run.claim("P1 V-D, Table IV", "Score and loss go opposite ways on correct images.", run.falls_with_loss()),
        run.claim("P1 V-D, Table IV", "They do so less on misclassified images.", run.weaker_when_wrong()),
        run.claim(
            "P1 V-D, Table IV",
            "Of two methods, the one that scores higher goes with the loss more.",
            run.follows_score(),
        ),
        run.claim("P2 5.2, Figure 5.2", "The median score of shuffled maps is 0.", run.shuffles_are_blind()),
        run.claim("P2 5.2, Table 5.1", "Normalised by them, methods rank in the same order.", run.norm_keeps_order()),
    ]


class _Claims:
    def __init__(self, rows: pandas.DataFrame, step: float, seed: int):
        self.rows, self.step, self.seed = rows, step, seed
        correct = in_set(rows, "correct")
        self.main = correct if len(correct) else rows
        self.wrong = in_set(rows, "misclassified")
        present = [stage for stage in STAGES if stage in set(self.main["stage"])]
        self.last = present[-1]
        self.stages = [stage for stage in USUAL_STAGES if stage in present]
        found = {method: of_method(self.main, method) for method in METHODS}
        self.keys = {method: key for method, key in found.items() if key is not None}

    @staticmethod
    def claim(source: str, statement: str, tests: Iterable[_Test]) -> Claim:
        tests = list(tests)
        return Claim(source, statement, verdict_of(tests), "; ".join(test.text for test in tests))

    def gradient_leads(self) -> Iterable[_Test]:
        for method in self.keys:
            if method != "gradient":
                yield from self.higher("gradient", method)

    def gradient_leads_both(self) -> Iterable[_Test]:
        for method in self.keys:
            if method != "gradient":
                for first, second, quantity in (
                    (method, "gradient", "epsilon_minus"),
                    ("gradient", method, "epsilon_plus"),
                ):
                    yield from self.higher(first, second, quantity)

    def higher(self, first: str, second: str, quantity: str = "score") -> Iterable[_Test]:
        """Whether a quantity of `first` is the greater on more images."""
        if first not in self.keys or second not in self.keys:
            return
        pair = self.keys[first], self.keys[second]
        test = sign_test(self.main, self.last, *pair) if quantity == "score" else self._signs(quantity, *pair)
        of = {"score": "", "epsilon_minus": "ε⁻ of ", "epsilon_plus": "ε⁺ of "}[quantity]
        yield _of_signs(test, f"{of}{METHODS[first]} against {METHODS[second]}")

    def _signs(self, quantity: str, first: str, second: str) -> SignTest:
        one, other = st.paired(self.main[self.main["stage"] == self.last], "explainer", first, second)
        verdicts = compared(intervals(one, quantity), intervals(other, quantity))
        return SignTest(int((verdicts == BETTER).sum()), int((verdicts == WORSE).sum()), len(one))

    def spreads(self, first: str, second: str) -> Iterable[_Test]:
        if first not in self.keys or second not in self.keys:
            return
        at_last = self.main[self.main["stage"] == self.last]
        one, other = st.paired(at_last, "explainer", self.keys[first], self.keys[second])
        a, b = one["score"].to_numpy(np.float64), other["score"].to_numpy(np.float64)
        if len(a) < 2:
            return
        yield self._resampled(
            len(a), lambda draw: float(a[draw].std() - b[draw].std()), "difference of the standard deviations"
        )

    def declines(self) -> Iterable[_Test]:
        for method, key in self.keys.items():
            rows = self.main[self.main["explainer"] == key]
            for earlier, later in zip(self.stages, self.stages[1:], strict=False):
                if method == WITHOUT_COLOUR and (earlier, later) == ("3-channel", "1-channel"):
                    continue
                one, other = st.paired(rows, "stage", earlier, later)
                if one.empty:
                    continue
                verdicts = compared(intervals(one, "score"), intervals(other, "score"))
                test = SignTest(int((verdicts == BETTER).sum()), int((verdicts == WORSE).sum()), len(one))
                yield _of_signs(test, f"{METHODS[method]}, {earlier} against {later}")

    def misclassified(self) -> Iterable[_Test]:
        for method, right, wrong in self._both():
            test = stats.mannwhitneyu(right, wrong)
            direction = int(np.sign(test.statistic - len(right) * len(wrong) / 2))
            text = f"{METHODS[method]}: median {np.median(right):.4g} against {np.median(wrong):.4g}, {_p(test.pvalue)}"
            yield _Test(direction, float(test.pvalue), text)

    def _both(self) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
        """By method, the scores of correct and of misclassified images at the last stage."""
        for method, key in self.keys.items():
            right, wrong = (
                part[(part["stage"] == self.last) & (part["explainer"] == key)]["score"].to_numpy(np.float64)
                for part in (in_set(self.rows, "correct"), self.wrong)
            )
            if len(right) and len(wrong):
                yield method, right, wrong

    def same_order(self) -> Iterable[_Test]:
        tables = [
            part[part["stage"] == self.last].pivot(index="image", columns="explainer", values="score")
            for part in (in_set(self.rows, "correct"), self.wrong)
        ]
        keys = [key for key in self.keys.values() if all(key in table for table in tables)]
        right, wrong = (table[keys].dropna().to_numpy() for table in tables) if len(keys) > 1 else ([], [])
        if not len(right) or not len(wrong):
            return
        generator = np.random.default_rng(self.seed)
        observed = tau(np.median(right, axis=0), np.median(wrong, axis=0))
        taus = [
            tau(*(np.median(part[generator.integers(len(part), size=len(part))], axis=0) for part in (right, wrong)))
            for _ in range(RESAMPLES)
        ]
        yield _of_bootstrap(observed, taus, "Kendall's tau")

    def falls_with_loss(self) -> Iterable[_Test]:
        for method, key in self.keys.items():
            found = self._correlation(in_set(self.rows, "correct"), key)
            if not np.isnan(found.coefficient):
                text = f"{METHODS[method]}: {found.coefficient:.3f}, {_p(found.p_value)}"
                yield _Test(int(-np.sign(found.coefficient)), found.p_value, text)

    def weaker_when_wrong(self) -> Iterable[_Test]:
        for method, key in self.keys.items():
            right, wrong = (self._correlation(part, key) for part in (in_set(self.rows, "correct"), self.wrong))
            if np.isnan(right.coefficient + wrong.coefficient) or min(right.images, wrong.images) < 5:
                continue
            # Fisher's z of two independent coefficients, with Spearman's variance (1.06; Fieller and others, 1957).
            size = [np.arctanh(min(abs(one.coefficient), 1 - 1e-9)) for one in (right, wrong)]
            z = (size[0] - size[1]) / np.sqrt(1.06 / (right.images - 3) + 1.06 / (wrong.images - 3))
            p_value = float(2 * stats.norm.sf(abs(z)))
            text = f"{METHODS[method]}: {right.coefficient:.3f} against {wrong.coefficient:.3f}, {_p(p_value)}"
            yield _Test(int(np.sign(z)), p_value, text)

    def follows_score(self) -> Iterable[_Test]:
        """Kendall's tau of the methods' medians and the sizes of their correlations with the loss."""
        correct = in_set(self.rows, "correct")
        correct = correct[(correct["stage"] == self.last) & correct["loss"].notna()]
        table = correct.pivot(index="image", columns="explainer", values="score")
        keys = [key for key in self.keys.values() if key in table]
        scores = table[keys].dropna()
        if len(keys) < 2 or len(scores) < FEWEST:
            return
        loss = correct.drop_duplicates("image").set_index("image")["loss"].loc[scores.index].to_numpy(np.float64)
        values = scores.to_numpy(np.float64)

        def agreement(draw: np.ndarray) -> float:
            ranks = stats.rankdata(np.column_stack([values[draw], loss[draw]]), axis=0)
            ranks -= ranks.mean(axis=0)
            spread = np.sqrt((ranks**2).sum(axis=0))
            with np.errstate(invalid="ignore", divide="ignore"):
                coefficients = np.abs(ranks[:, :-1].T @ ranks[:, -1] / (spread[:-1] * spread[-1]))
            return tau(np.median(values[draw], axis=0), np.nan_to_num(coefficients))

        yield self._resampled(len(values), agreement, "Kendall's tau of median and correlation", RANKED_AGAIN)

    def norm_keeps_order(self) -> Iterable[_Test]:
        """Kendall's tau of the methods' APEM and their APEM_norm, as P2 Table 5.1 has it against Table 4.4."""
        if not st.has_shuffles(self.main):
            return
        at_last = self.main[self.main["stage"] == self.last]
        tables = [at_last.pivot(index="image", columns="explainer", values=name) for name in ("score", "score_norm")]
        keys = [key for key in self.keys.values() if key in tables[0] and tables[1][key].notna().any()]
        both = pandas.concat([table[keys] for table in tables], axis=1).dropna().to_numpy(np.float64)
        if len(keys) < 2 or len(both) < FEWEST:
            return

        def agreement(draw: np.ndarray) -> float:
            means = both[draw].mean(axis=0)
            return tau(means[: len(keys)], means[len(keys) :])

        yield self._resampled(len(both), agreement, "Kendall's tau of the means", RANKED_AGAIN)

    def _correlation(self, rows: pandas.DataFrame, key: str) -> st.Correlation:
        part = rows[(rows["stage"] == self.last) & (rows["explainer"] == key)]
        return st.spearman(part["score"].to_numpy(np.float64), part["loss"].to_numpy(np.float64), self.seed)

    def shuffles_are_blind(self) -> Iterable[_Test]:
        if not st.has_shuffles(self.main):
            return
        for row in sanity(self.main, (), self.step, self.seed).to_dict("records"):
            method = next((name for name, key in self.keys.items() if key == row["explainer"]), None)
            if method is None:
                continue
            # The claim is that there is none: an interval within a step of 0 shows it, one beyond refutes it.
            inside = -self.step <= row["low"] and row["high"] <= self.step
            direction = 1 if inside else 0 if row["near"] else -1
            text = f"{METHODS[method]}, {row['stage']}: {row['median']:g} ({row['low']:g} to {row['high']:g})"
            yield _Test(direction, 0.0 if direction else 1.0, text)

    def _resampled(
        self, count: int, statistic: Callable[[np.ndarray], float], name: str, resamples: int = RESAMPLES
    ) -> _Test:
        generator = np.random.default_rng(self.seed)
        values = [statistic(generator.integers(count, size=count)) for _ in range(resamples)]
        return _of_bootstrap(statistic(np.arange(count)), values, name)


def _of_signs(test: SignTest, what: str) -> _Test:
    direction = int(np.sign(test.better - test.worse))
    return _Test(direction, test.p_value, f"{what}: {test.better} to {test.worse}, {_p(test.p_value)}")


def _of_bootstrap(observed: float, values: Sequence[float], name: str) -> _Test:
    """Whether a statistic is above 0, as claimed; the probability is twice the share of resamples on the other side."""
    low, high = np.percentile(values, [100 * LEVEL / 2, 100 - 100 * LEVEL / 2])
    beyond = np.mean(np.asarray(values) <= 0) if observed > 0 else np.mean(np.asarray(values) >= 0)
    p_value = min(1.0, 2 * max(float(beyond), 1 / len(values)))
    return _Test(int(np.sign(observed)), p_value, f"{name} {observed:.3g} (95 % interval {low:.3g} to {high:.3g})")


def _p(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)


def claims_section(found: Sequence[Claim]) -> Section:
    """The claims as a section of the page."""
    counts = ", ".join(
        f"{sum(one.verdict == verdict for one in found)} {verdict}"
        for verdict in ("reproduced", "contradicted", "undecided", "not in this run")
    )
    lines = tuple((Cell(one.source), Cell(one.statement), Cell(one.verdict), Cell(one.figure)) for one in found)
    return Section(
        "claims",
        "The papers’ claims",
        "What P1 and P2 claim, and whether this run shows it beyond chance (5 %, Holm’s procedure where a claim is "
        "about several methods): reproduced, contradicted by a difference the other way, or undecided by these "
        "photographs.",
        finding=f"Of {len(found)} claims: {counts}.",
        tables=(("", Table(("passage", "claim", "verdict", "figure"), lines)),),
    )
