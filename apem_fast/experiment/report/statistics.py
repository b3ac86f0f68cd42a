"""The statistics of P1 sections IV and V and P2 chapters 4 and 5, from a run's rows, with censored values marked.

Every function takes the data frame that `scored_rows` makes: a row for each image, explainer and stage with a score. It
returns a data frame with a row for each comparison, or a small frozen record. Random draws are seeded, so that the
numbers are the same each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas
from numpy.typing import NDArray
from scipy import stats

from apem_fast.experiment.report.censoring import (
    BETTER,
    EQUAL,
    UNDECIDED,
    WORSE,
    Estimate,
    compared,
    intervals,
    mean_of,
    median_of,
)
from apem_fast.experiment.report.sets import SETS, in_set, with_truth
from apem_fast.experiment.report.summary import has_score
from apem_fast.experiment.run.store import RunStore

REQUIRED = ("image", "explainer", "stage", "epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus")


def scored_rows(store: RunStore) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The rows of a run with a score, together with data of their images; and the rows without a score.

    Returns:
        (scored, flagged): the first also has the images' columns correct (boolean, NA if the class is unknown), loss
        and confidence; in the second, `flag` says why a map has no ray.

    Raises:
        ValueError: the run has no finished results, or lacks a column.
    """
    results = store.results()
    if results.empty:
        raise ValueError(f"{store.folder} holds no finished results yet")
    missing = [name for name in REQUIRED if name not in results]
    if missing:
        raise ValueError(f"{store.folder} was written by another version: its results lack {', '.join(missing)}")
    images = store.images()
    results = with_truth(results, images)
    known = pandas.DataFrame({"image": images["image"]})
    for name in ("loss", "confidence"):
        known[name] = images[name].astype(float) if name in images else np.nan
    results = results.merge(known, on="image", how="left")
    has_ray = has_score(results)
    return results[has_ray].reset_index(drop=True), results[~has_ray].reset_index(drop=True)


def groups(rows: pandas.DataFrame) -> Iterator[tuple[str, str, pandas.DataFrame]]:
    """Each stage, explainer and its rows, in order."""
    for (stage, explainer), part in rows.groupby(["stage", "explainer"], sort=False):
        yield stage, explainer, part


def _columns(name: str, estimate: Estimate) -> dict[str, object]:
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_mark": estimate.mark,
    }


def centres(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and median of the score by stage and explainer (P1 Table II, P2 Tables 4.2 and 4.4), with their bounds."""
    table = []
    for stage, explainer, part in groups(rows):
        scores = intervals(part, "score")
        line: dict[str, object] = {"stage": stage, "explainer": explainer, "images": len(part)}
        table.append(line | _columns("median", median_of(scores)) | _columns("mean", mean_of(scores)))
    return pandas.DataFrame(table)


# -- comparisons of two on the same images ---------------------------------------------------------------------------


def pairwise(rows: pandas.DataFrame) -> pandas.DataFrame:
    """The shares of images on which one explainer's score is better than, equal to or worse than another's.

    P1 Figure 4, P2 Figure 4.4; at the same stage. Undecided means that censoring hides which score is greater.

    Returns:
        stage, first, second, better, equal, worse, undecided (shares of the images that both have), images; each pair
        once, in the order of the explainers.
    """
    return _shares(rows, "explainer", "stage")


def pairwise_stages(rows: pandas.DataFrame) -> pandas.DataFrame:
    """The same between the stages of one explainer (P2 Figure 4.7 j-l).

    The columns are those of `pairwise`, with explainer in place of stage; first and second are stages.
    """
    return _shares(rows, "stage", "explainer")


def _shares(rows: pandas.DataFrame, between: str, within: str) -> pandas.DataFrame:
    columns = [within, "first", "second", BETTER, EQUAL, WORSE, UNDECIDED, "images"]
    table = []
    for group, part in rows.groupby(within, sort=False):
        for first, second in itertools.combinations(part[between].unique(), 2):
            one, other = paired(part, between, first, second)
            if len(one):
                verdicts = compared(intervals(one, "score"), intervals(other, "score"))
                shares = {verdict: float((verdicts == verdict).mean()) for verdict in columns[3:7]}
                table.append({within: group, "first": first, "second": second} | shares | {"images": len(one)})
    return pandas.DataFrame(table, columns=columns)


def paired(rows: pandas.DataFrame, column: str, first: str, second: str) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The rows of `first` and of `second` on the images that have both, in the same order."""
    one, other = (rows[rows[column] == value].set_index("image") for value in (first, second))
    common = one.index[one.index.isin(other.index)]
    return one.loc[common], other.loc[common]


@dataclass(frozen=True)
class Differences:
    """epsilon_plus of one explainer minus that of another, image by image (P1 Figure 8, P2 Figure 5.1)."""

    exact: NDArray[np.float64]  # the differences for which neither ray is censored
    above: int  # images whose difference is only known to be positive: the first's ray is censored
    below: int  # images whose difference is only known to be negative
    unknown: int  # both rays are censored

    @property
    def images(self) -> int:
        return len(self.exact) + self.above + self.below + self.unknown

    @property
    def positive_share(self) -> float:
        """The share of positive differences, of the images whose sign is known."""
        known = self.images - self.unknown
        return (int((self.exact > 0).sum()) + self.above) / known if known else float("nan")


def epsilon_plus_differences(
    rows: pandas.DataFrame, stage: str, first: str, second: str, only_better_minus: bool = False
) -> Differences:
    """The differences of epsilon_plus; positive if the irrelevance of `first` is better.

    Args:
        only_better_minus: only images on which epsilon_minus of `first` is certainly lower, as in P2 Figure 5.1.
    """
    one, other = paired(rows[rows["stage"] == stage], "explainer", first, second)
    if only_better_minus:
        lower = compared(intervals(other, "epsilon_minus"), intervals(one, "epsilon_minus")) == BETTER
        one, other = one[lower], other[lower]
    a, b = intervals(one, "epsilon_plus"), intervals(other, "epsilon_plus")
    verdicts = compared(a, b)
    both = a.exact & b.exact
    return Differences(
        (a.observed - b.observed)[both],
        above=int((~both & (verdicts == BETTER)).sum()),
        below=int((~both & (verdicts == WORSE)).sum()),
        unknown=int((verdicts == UNDECIDED).sum()),
    )


def exceptions(rows: pandas.DataFrame, stage: str, first: str, second: str, most: int = 3) -> pandas.DataFrame:
    """The images on which `second` certainly beats `first` (P2 Table 4.3), the greatest difference first.

    Returns:
        image, and for each of the two (suffixes _first, _second) epsilon_minus, epsilon_plus, score and the flips.
    """
    one, other = paired(rows[rows["stage"] == stage], "explainer", first, second)
    beaten = compared(intervals(one, "score"), intervals(other, "score")) == WORSE
    columns = ["epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus"]
    table = one.loc[beaten, columns].add_suffix("_first").join(other.loc[beaten, columns].add_suffix("_second"))
    order = (table["score_second"] - table["score_first"]).sort_values(ascending=False, kind="stable").index
    return table.loc[order[:most]].rename_axis("image").reset_index()


# -- shuffled maps ---------------------------------------------------------------------------------------------------


def has_shuffles(rows: pandas.DataFrame) -> bool:
    return "shuffled_epsilon_plus" in rows and bool(rows["shuffled_epsilon_plus"].notna().any())


def shuffled(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and median score of the shuffled maps (P2 section 5.2), which should be near 0, and APEM_norm (Table 5.1).

    APEM_norm is the mean of epsilon_plus / shuffled epsilon_plus - epsilon_minus / shuffled epsilon_minus.

    `inexact` counts the images with a censored ray in that quotient: their score_norm is neither exact nor a bound.
    """
    table = []
    for stage, explainer, part in groups(rows):
        part = part[part["shuffled_epsilon_plus"].notna()]
        scores = intervals(part, "score", "shuffled_")
        norm = part["score_norm"].to_numpy(np.float64)
        flips = part[["flipped_minus", "flipped_plus", "shuffled_flipped_minus", "shuffled_flipped_plus"]].astype(bool)
        table.append(
            {"stage": stage, "explainer": explainer, "images": len(part)}
            | _columns("median", median_of(scores))
            | _columns("mean", mean_of(scores))
            | {"norm": float(np.nanmean(norm)) if len(norm) else np.nan, "inexact": int((~flips.all(axis=1)).sum())}
        )
    return pandas.DataFrame(table)


# -- correctness and loss --------------------------------------------------------------------------------------------


def by_correctness(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Scores of correctly classified against misclassified images (P1 Table III, P2 Table 5.2).

    Returns:
        stage, explainer, images_SET, median_SET, mean_SET for both sets; p_value, of a two-sided Mann-Whitney test;
        effect, Cliff's delta in [-1, 1]: the probability that a correct image's score is greater than a misclassified
        one's, minus the probability that it is lower. Both take censored scores as observed; `censored` counts them.
    """
    table = []
    for stage, explainer, part in groups(rows):
        line: dict[str, object] = {"stage": stage, "explainer": explainer}
        scores = [intervals(in_set(part, name), "score") for name in SETS[:2]]
        for name, values in zip(SETS, scores):
            line |= {f"images_{name}": len(values)}
            line |= _columns(f"median_{name}", median_of(values)) | _columns(f"mean_{name}", mean_of(values))
        p_value = effect = np.nan
        if all(map(len, scores)):
            test = stats.mannwhitneyu(scores[0].observed, scores[1].observed)
            p_value, effect = float(test.pvalue), 2 * float(test.statistic) / (len(scores[0]) * len(scores[1])) - 1
        censored = sum(int((~values.exact).sum()) for values in scores)
        table.append(line | {"p_value": p_value, "effect": effect, "censored": censored})
    return pandas.DataFrame(table)


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient, and the probability of one as far from 0 without any association."""

    coefficient: float
    p_value: float
    images: int


FEW_IMAGES, PERMUTATIONS = 500, 4999


def spearman(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> Correlation:
    """Spearman's rank correlation of two (N,) without rows that have NaN; NaN if one of them is constant.

    The p-value is SciPy's from Student's t. Below 500 rows, where that is not accurate, it is from a permutation test
    with 4,999 permutations, or with all permutations for fewer than 8 rows.
    """
    usable = ~(np.isnan(first) | np.isnan(second))
    first, second = first[usable], second[usable]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlation(np.nan, np.nan, len(first))
    coefficient, p_value = map(float, stats.spearmanr(first, second))
    if len(first) < FEW_IMAGES:
        ranks = stats.zscore(stats.rankdata(first)), stats.zscore(stats.rankdata(second))
        test = stats.permutation_test(
            (ranks[1],),
            lambda order, axis: np.abs(order @ ranks[0]) / len(first),
            permutation_type="pairings",
            alternative="greater",
            n_resamples=PERMUTATIONS,
            vectorized=True,
            rng=np.random.default_rng(seed),
        )
        p_value = float(test.pvalue)
    return Correlation(coefficient, p_value, len(first))


def loss_correlation(rows: pandas.DataFrame, seed: int = 0) -> pandas.DataFrame:
    """Spearman's correlation of the score, and of the confidence, with the loss (P1 Table IV, P2 Table 5.3).

    Returns:
        stage, explainer (both "" for the confidence), set ("correct", "misclassified", "all"), coefficient, p_value,
        images. Censored scores enter as observed, since only their order counts.
    """
    table = []

    def add(stage: str, explainer: str, part: pandas.DataFrame, column: str) -> None:
        for name in SETS:
            chosen = in_set(part, name)
            found = spearman(chosen[column].to_numpy(np.float64), chosen["loss"].to_numpy(np.float64), seed)
            table.append({"stage": stage, "explainer": explainer, "set": name} | vars(found))

    for stage, explainer, part in groups(rows):
        add(stage, explainer, part, "score")
    add("", "", rows.drop_duplicates("image"), "confidence")
    return pandas.DataFrame(table)


# -- flips -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlipCurve:
    """The share of the rays whose prediction has changed up to each epsilon, from 0 on (both are (K,))."""

    epsilon: NDArray[np.float64]
    share: NDArray[np.float64]


def flip_curve(rows: pandas.DataFrame, ray: str) -> FlipCurve:
    """One minus Kaplan and Meier's survival curve: a censored ray counts as unflipped up to where it was followed.

    Args:
        rows: of one explainer at one stage.
        ray: "minus" (along the relevance) or "plus" (along the irrelevance).
    """
    values = intervals(rows, f"epsilon_{ray}")
    if not values.exact.any():
        end = values.observed.max() if len(values) else 0.0
        return FlipCurve(np.array([0.0, end]), np.zeros(2))
    curve = stats.ecdf(stats.CensoredData.right_censored(values.observed, ~values.exact)).cdf
    return FlipCurve(np.concatenate([[0.0], curve.quantiles]), np.concatenate([[0.0], curve.probabilities]))
