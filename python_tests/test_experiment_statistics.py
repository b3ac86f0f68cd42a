"""The statistics of a run against numbers worked out by hand: censored values, flagged rows, ties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from apem_fast.experiment.report import drawing, statistics, trust
from apem_fast.experiment.report.censoring import (
    Estimate,
    Intervals,
    bootstrap_interval,
    compared,
    intervals,
    mean_of,
    median_of,
    quantile_of,
)
from apem_fast.experiment.report.published import (
    BY_CORRECTNESS,
    BY_STAGE,
    EXCEPTIONS,
    LOSS_CORRELATION,
    MEDIAN_BY_NETWORK,
    of_method,
    paper_tables,
)
from apem_fast.experiment.report.summary import _line, interval

INF = math.inf
LIMIT = 100.0


def rows(*entries: tuple, explainer: str = "gradient", stage: str = "3-channel", **columns) -> pandas.DataFrame:
    """Rows of results from (epsilon_minus, epsilon_plus); None is a ray without a flip up to 100."""
    table = []
    for number, (minus, plus) in enumerate(entries):
        epsilons = {"epsilon_minus": LIMIT if minus is None else minus, "epsilon_plus": LIMIT if plus is None else plus}
        table.append(
            {"image": f"image {number}", "explainer": explainer, "stage": stage, **epsilons}
            | {"flipped_minus": minus is not None, "flipped_plus": plus is not None}
            | {"score": epsilons["epsilon_plus"] - epsilons["epsilon_minus"]}
            | {name: values[number] for name, values in columns.items()}
        )
    return pandas.DataFrame(table)


# -- censored values -------------------------------------------------------------------------------------------------


def test_what_is_known_of_a_score():
    found = intervals(rows((10, 30), (10, None), (None, 30), (None, None)), "score")
    assert list(found.observed) == [20, 90, -70, 0]
    assert list(found.low) == [20, 90, -INF, -INF]  # a greater epsilon_minus would lower the score
    assert list(found.high) == [20, INF, -70, INF]
    minus = intervals(rows((10, 30), (None, 30)), "epsilon_minus")
    assert list(minus.low) == [10, 100] and list(minus.high) == [10, INF]


def of_scores(*values: float | tuple[float, str]) -> Intervals:
    """7 is exact, (7, "+") at least 7, (7, "-") at most 7, (7, "?") anything."""
    pairs = [value if isinstance(value, tuple) else (value, "") for value in values]
    return Intervals(
        np.array([value for value, _ in pairs], float),
        np.array([-INF if kind in ("-", "?") else value for value, kind in pairs]),
        np.array([INF if kind in ("+", "?") else value for value, kind in pairs]),
    )


@pytest.mark.parametrize(
    "values, expected, mark",
    [
        ((3, 1, 2), (2, 2, 2), ""),
        ((1, 2, 3, 10), (2.5, 2.5, 2.5), ""),
        ((1, 2, (10, "+")), (2, 2, 2), ""),  # whatever the third is, it is not in the middle
        ((1, 2, 3, (10, "+")), (2.5, 2.5, 2.5), ""),
        ((1, (2, "+"), 3), (2, 2, 3), "≥"),  # 2 or more, but never more than 3
        ((1, (2, "+")), (1.5, 1.5, INF), "≥"),
        (((1, "-"), 2), (1.5, -INF, 1.5), "≤"),
        ((1, (2, "-"), 3), (2, 1, 2), "≤"),
        (((0, "?"), 1, 1), (1, 1, 1), ""),
        (((0, "?"), 1, 2), (1, 1, 2), "≥"),
        (((0, "?"), -1, 1), (0, -1, 1), "≈"),
        (((5, "+"),), (5, 5, INF), "≥"),
        ((), (math.nan,) * 3, ""),
    ],
)
def test_a_median_is_exact_where_the_middle_is(values, expected, mark):
    found = median_of(of_scores(*values))
    assert (found.value, found.low, found.high) == pytest.approx(expected, nan_ok=True)
    assert found.mark == mark


@pytest.mark.parametrize(
    "values, expected, mark",
    [
        ((1, 2, 6), (3, 3, 3), ""),
        ((1, 2, (6, "+")), (3, 3, INF), "≥"),
        ((1, (2, "-"), 6), (3, -INF, 3), "≤"),
        (((1, "+"), (2, "-"), 6), (3, -INF, INF), "≈"),
    ],
)
def test_a_mean_is_a_bound_where_a_value_is(values, expected, mark):
    found = mean_of(of_scores(*values))
    assert (found.value, found.low, found.high) == expected and found.mark == mark


def test_quartiles_are_those_of_numpy_where_all_is_exact():
    values = [3.0, 9.0, 4.0, 1.0, 7.0, 7.0]
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
        assert quantile_of(of_scores(*values), share).value == pytest.approx(np.quantile(values, share))


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.sampled_from(["", "+", "-", "?"])), min_size=1, max_size=9),
    st.data(),
)
def test_no_truth_leads_beyond_a_medians_bounds(values, data):
    found = median_of(of_scores(*values))
    assert found.low <= found.value <= found.high
    truth = []
    for value, kind in values:
        change = data.draw(st.integers(1, 50)) if kind else 0
        truth.append(
            value + {"": 0, "+": change, "-": -change, "?": data.draw(st.sampled_from([-1, 1])) * change}[kind]
        )
    assert found.low <= np.median(truth) <= found.high
    far = [value - 10**6 * (kind in ("-", "?")) for value, kind in values]
    assert found.low == (np.median(far) if np.median(far) > -(10**5) else -INF)  # no bound is wider than it must be


@pytest.mark.parametrize(
    "first, second, verdict",
    [
        (3, 2, "better"),
        (2, 2, "equal"),
        (1, 2, "worse"),
        ((3, "+"), 2, "better"),
        ((2, "+"), 2, "better"),  # more than 2
        ((1, "+"), 2, "undecided"),
        ((1, "-"), 2, "worse"),
        ((2, "-"), 2, "worse"),
        ((3, "-"), 2, "undecided"),
        (2, (2, "+"), "worse"),
        ((1, "+"), (5, "+"), "undecided"),
        ((5, "+"), (5, "-"), "better"),
        ((0, "?"), 0, "undecided"),
    ],
)
def test_comparing_two(first, second, verdict):
    one, other = of_scores(first), of_scores(second)
    assert list(compared(one, other)) == [verdict]
    mirror = {"better": "worse", "worse": "better"}
    assert list(compared(other, one)) == [mirror.get(verdict, verdict)]


def test_a_bootstrap_interval_is_seeded_and_right():
    values = np.random.default_rng(5).normal(10, 1, 400)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    # The median's standard error is 1.2533 sigma / sqrt(n).
    assert low < np.median(values) < high and 2 < (high - low) / (1.2533 / 20) < 6
    assert bootstrap_interval([3.0] * 5) == (3, 3) and np.isnan(bootstrap_interval([])).all()


def test_how_often_an_interval_holds_the_truth():
    """What the page says of fourteen log-normal values, whose mean and median are known."""
    generator = np.random.default_rng(0)
    held = {np.mean: 0, np.median: 0}
    for trial in range(400):
        values = generator.lognormal(size=14)
        for statistic, truth in ((np.mean, math.exp(0.5)), (np.median, 1.0)):
            low, high = bootstrap_interval(values, statistic, seed=trial, resamples=300)
            held[statistic] += low <= truth <= high
    assert 0.80 < held[np.mean] / 400 < 0.90
    assert 0.92 < held[np.median] / 400 < 0.985


@pytest.mark.parametrize("count, there", [(4, False), (5, False), (6, True)])
def test_too_few_values_have_no_interval(count, there):
    """Whatever is between the least and the greatest of five misses a median once in sixteen times."""
    assert (1 - 2 ** (1 - count) >= 0.95) == there
    table = rows(*[(10.0, 20.0 + i) for i in range(count)], attribution_seconds=[0.0] * count)
    line = _line(table.assign(search_seconds=0.0, probes=1, scan_probes=1))
    assert (interval(line, "median") != "–") == there == (not math.isnan(line["mean_ci_high"]))


@pytest.mark.parametrize("verdict", ["better", "worse"])
def test_letters_on_the_bars_can_be_read(verdict):
    """Contrast as the Web Content Accessibility Guidelines have it, for letters of any size at least 4.5."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    lighter, darker = (luminance(colour) + 0.05 for colour in (drawing.VERDICTS[verdict], drawing.ON_BARS))
    assert lighter / darker >= 4.5


# -- comparisons -----------------------------------------------------------------------------------------------------

TWO = pandas.concat(
    [
        #     scores        20        0        > 90     5        < -70
        rows((10, 30), (10, 10), (10, None), (5, 10), (None, 30), explainer="gradient"),
        #     scores        10        0        40       > 60     20
        rows((10, 20), (20, 20), (10, 50), (40, None), (10, 30), explainer="lrp"),
    ],
    ignore_index=True,
)


def test_pairwise_fractions():
    (line,) = statistics.pairwise(TWO).to_dict("records")
    assert line == {
        "stage": "3-channel",
        "first": "gradient",
        "second": "lrp",
        "better": 0.4,
        "equal": 0.2,
        "worse": 0.4,
        "undecided": 0.0,
        "images": 5,
    }


def test_pairwise_takes_only_images_that_both_have():
    table = TWO.drop(index=[0, 6])  # image 0 of the first, image 1 of the second
    (line,) = statistics.pairwise(table).to_dict("records")
    assert (line["images"], line["better"], line["equal"], line["worse"]) == (3, 1 / 3, 0, 2 / 3)
    assert statistics.pairwise(TWO[TWO["explainer"] == "lrp"]).empty


def test_pairwise_between_stages():
    table = pandas.concat(
        [
            rows((1, 5), (1, None)),
            rows((1, 5), (1, 50), stage="1-channel"),
            rows((1, 2), (1, None), stage="times-image"),
        ]
    )
    found = statistics.pairwise_stages(table).set_index(["first", "second"])[["better", "equal", "worse", "undecided"]]
    assert found.loc[("3-channel", "1-channel")].tolist() == [0.5, 0.5, 0, 0]
    assert found.loc[("3-channel", "times-image")].tolist() == [0.5, 0, 0, 0.5]
    assert found.loc[("1-channel", "times-image")].tolist() == [0.5, 0, 0.5, 0]


def test_differences_of_epsilon_plus():
    found = statistics.epsilon_plus_differences(TWO, "3-channel", "gradient", "lrp")
    assert list(found.exact) == [10, -10, 0] and (found.above, found.below, found.unknown) == (1, 1, 0)
    assert found.images == 5 and found.positive_share == 2 / 5
    # epsilon_minus of gradient is lower on images 1 (10 < 20) and 3 (5 < 40); 4 is censored and so not lower
    lower = statistics.epsilon_plus_differences(TWO, "3-channel", "gradient", "lrp", only_better_minus=True)
    assert list(lower.exact) == [-10] and (lower.above, lower.below) == (0, 1)
    both = pandas.concat([rows((1, None)), rows((1, None), explainer="lrp")])
    found = statistics.epsilon_plus_differences(both, "3-channel", "gradient", "lrp")
    assert found.unknown == 1 and not len(found.exact) and math.isnan(found.positive_share)


def test_exceptions_come_with_the_clearest_first():
    found = statistics.exceptions(TWO, "3-channel", "gradient", "lrp")
    assert found["image"].tolist() == ["image 4", "image 3"]  # 20 against < -70, > 60 against 5
    assert found.loc[0, ["epsilon_minus_first", "score_second"]].tolist() == [100, 20]
    assert found.loc[0, "flipped_minus_first"] == False  # noqa: E712
    assert len(statistics.exceptions(TWO, "3-channel", "gradient", "lrp", most=1)) == 1


# -- correctness and loss --------------------------------------------------------------------------------------------


def test_correct_against_misclassified():
    table = rows(
        (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 50), correct=[False] * 3 + [True] * 3 + [pandas.NA]
    )
    (line,) = statistics.by_correctness(table).to_dict("records")
    assert (line["images_correct"], line["images_misclassified"]) == (3, 3)
    assert (line["median_correct"], line["median_misclassified"], line["mean_correct"]) == (5, 2, 5)
    assert line["effect"] == 1 and line["p_value"] == pytest.approx(0.1)  # 2 of the 20 ways to choose 3 of 6
    (line,) = statistics.by_correctness(
        table.assign(correct=[False, True, False, True, False, True, pandas.NA])
    ).to_dict("records")
    scores = {True: (2, 4, 6), False: (1, 3, 5)}
    pairs = [(c > m) - (c < m) for c, m in itertools.product(scores[True], scores[False])]
    assert line["effect"] == pytest.approx(sum(pairs) / 9) and line["censored"] == 0


def test_correct_against_misclassified_where_one_is_missing():
    (line,) = statistics.by_correctness(rows((0, 1), (0, None), correct=[True, True])).to_dict("records")
    assert line["images_misclassified"] == 0 and math.isnan(line["p_value"]) and math.isnan(line["effect"])
    assert line["median_correct_mark"] == "≥" and line["censored"] == 1


def test_spearman_by_hand():
    found = statistics.spearman(np.array([10.0, 20, 30, 40, 50]), np.array([1.0, 3, 2, 5, 4]))
    assert found.coefficient == pytest.approx(1 - 6 * (0 + 1 + 1 + 1 + 1) / (5 * 24)) and found.images == 5
    ordered = statistics.spearman(np.arange(5.0), -(np.arange(5.0) ** 3))
    assert ordered.coefficient == pytest.approx(-1)
    assert ordered.p_value == pytest.approx(2 / 120)  # two of the 120 orders are as extreme
    assert ordered == statistics.spearman(np.arange(5.0), -(np.arange(5.0) ** 3))
    ties = statistics.spearman(np.array([1.0, 1, 2, math.nan]), np.array([5.0, 6, 7, 8]))
    assert ties.images == 3 and ties.coefficient == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(statistics.spearman(np.ones(9), np.arange(9.0)).coefficient)


def test_spearman_of_many_is_scipys():
    generator = np.random.default_rng(1)
    first = generator.normal(size=600)
    second = first + 4 * generator.normal(size=600)
    found, expected = statistics.spearman(first, second), scipy_stats.spearmanr(first, second)
    assert (found.coefficient, found.p_value) == (expected.statistic, expected.pvalue)


def test_loss_correlation_by_sets():
    table = rows(
        *[(0, e) for e in (40, 30, 20, 10, 1, 2, 3, 99)],
        correct=[True] * 4 + [False] * 3 + [pandas.NA],
        loss=[1.0, 2, 3, 4, 10, 11, 12, math.nan],
        confidence=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
    )
    found = {(r["explainer"], r["set"]): r for r in statistics.loss_correlation(table).to_dict("records")}
    assert found["gradient", "correct"]["coefficient"] == pytest.approx(-1)
    assert found["gradient", "misclassified"]["coefficient"] == pytest.approx(1)
    assert found["gradient", "all"]["images"] == 7  # the one without truth is in none
    # ranks 7 6 5 4 1 2 3 against 1..7: the sum of squared differences is 36+16+4+0+16+16+16 = 104
    assert found["gradient", "all"]["coefficient"] == pytest.approx(1 - 6 * 104 / (7 * 48))
    assert found["", "all"]["coefficient"] == pytest.approx(-1)


# -- flips -----------------------------------------------------------------------------------------------------------


def test_a_flip_curve_is_kaplan_and_meiers():
    table = rows((1, 9), (2, 9), (3, 9), (3, 9), (5, 9))
    table.loc[[1, 4], "flipped_minus"] = False  # followed to 2 and to 5 without a flip
    curve = statistics.flip_curve(table, "minus")
    assert curve.epsilon.tolist() == [0, 1, 2, 3, 5]
    # 1 of 5 flips; the one lost at 2 leaves 3 at risk, of whom 2 flip at 3: 1 - 4/5 * 1/3
    assert curve.share.tolist() == pytest.approx([0, 0.2, 0.2, 1 - 4 / 15, 1 - 4 / 15])
    never = statistics.flip_curve(rows((1, None), (1, None)), "plus")
    assert never.share.tolist() == [0, 0] and never.epsilon.tolist() == [0, 100]


# -- shuffles, stability, sanity -------------------------------------------------------------------------------------


def with_shuffles(table: pandas.DataFrame, *entries: tuple) -> pandas.DataFrame:
    other = rows(*entries)
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus"):
        table[f"shuffled_{name}"] = other[name].to_numpy()
    table["score_norm"] = (
        table["epsilon_plus"] / table["shuffled_epsilon_plus"]
        - table["epsilon_minus"] / table["shuffled_epsilon_minus"]
    )
    return table


def test_shuffled_maps():
    table = with_shuffles(rows((10, 30), (10, 40), (10, None)), (20, 20), (20, 40), (20, 50))
    assert statistics.has_shuffles(table) and not statistics.has_shuffles(TWO)
    (line,) = statistics.shuffled(table).to_dict("records")
    assert (line["median"], line["mean"], line["inexact"]) == (20, 50 / 3, 1)  # 0, 20, 30
    assert line["norm"] == pytest.approx(((1.5 - 0.5) + (1 - 0.5) + (2 - 0.5)) / 3)


def ranked(gaps: dict[str, float], images: int = 40, noise: float = 0.0) -> pandas.DataFrame:
    generator = np.random.default_rng(3)
    parts = [
        rows(*[(10.0, 10 + gap + noise * generator.normal()) for _ in range(images)], explainer=key)
        for key, gap in gaps.items()
    ]
    return pandas.concat(parts, ignore_index=True)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=8))
def test_tau_counts_pairs_in_the_same_order_less_the_others(pairs):
    both = [(a - c, b - d) for (a, b), (c, d) in itertools.combinations(pairs, 2)]
    agreement = sum((one > 0) - (one < 0) if other > 0 else (one < 0) - (one > 0) for one, other in both if other)
    ranked_by = [sum(pair[which] != 0 for pair in both) for which in (0, 1)]
    expected = agreement / math.sqrt(math.prod(ranked_by)) if all(ranked_by) else 0
    assert trust.tau(*np.array(pairs, float).T) == pytest.approx(expected)


def test_a_clear_ranking_is_stable():
    found = trust.ranking_stability(ranked({"a": 1, "b": 5, "c": 9}), "3-channel", repetitions=20)
    assert (found.tau, found.low, found.high) == (1, 1, 1) and (found.images, found.explainers) == (40, 3)


def test_a_ranking_by_chance_is_not_stable():
    table = ranked(dict.fromkeys("abcde", 5), noise=3)
    found = trust.ranking_stability(table, "3-channel", seed=1, repetitions=100)
    assert found.low < 0 < found.high and abs(found.tau) < 0.5
    assert found == trust.ranking_stability(table, "3-channel", seed=1, repetitions=100)
    assert found != trust.ranking_stability(table, "3-channel", seed=2, repetitions=100)


def test_stability_needs_something_to_rank():
    assert trust.ranking_stability(ranked({"a": 1}), "3-channel") is None
    assert trust.ranking_stability(ranked({"a": 1, "b": 2}, images=3), "3-channel") is None
    missing = ranked({"a": 1, "b": 5}).drop(index=[0])
    assert trust.ranking_stability(missing, "3-channel", repetitions=5).images == 39


def test_sanity_of_baselines():
    table = pandas.concat(
        [
            rows(*[(10, 10 + d) for d in (-3, -1, 0, 1, 2)], explainer="random"),
            rows(*[(10, 10 + d) for d in (20, 21, 22, 23, 24)], explainer="random:seed=1"),
            rows(*[(10, 10 + d) for d in (20, 21, 22, 23, 24)], explainer="edge"),
            rows(*[(10, 10 + d) for d in (20, 21, 22, 23, 24)], explainer="random", stage="times-image"),
            rows(*[(10, 10 + d) for d in (20, 21, 22, 23, 24)], explainer="random", stage="times-grey"),
            rows(*[(10, 10 + d) for d in (20, 21, 22, 23, 24)]),
        ],
        ignore_index=True,
    )
    found = trust.sanity(table, ("random", "uniform", "edge"), step=1.0)
    assert list(zip(found["explainer"], found["expected"], found["near"])) == [
        ("random", True, True),
        ("random:seed=1", True, False),
        ("edge", False, False),
        ("random", False, False),
        ("random", False, False),
    ]
    assert found["median"].tolist() == [0, 22, 22, 22, 22] and (found["low"] <= found["median"]).all()
    one_step = rows(*[(10, 11)] * 5, explainer="random")
    assert trust.sanity(one_step, ("random",), step=1.0)["near"].all()
    assert not trust.sanity(one_step, ("random",), step=0.5)["near"].any()


def test_sanity_of_shuffled_maps():
    table = with_shuffles(rows((10, 90), (10, 80)), (20, 20), (20, 21))
    (line,) = trust.sanity(table, ("random",), step=1.0).to_dict("records")
    assert line["shuffled"] and line["expected"] and line["near"] and line["median"] == 0.5


# -- what a run hands over -------------------------------------------------------------------------------------------


class Folder:
    """As much of a store as `scored_rows` reads."""

    folder = "here"

    def __init__(self, results: pandas.DataFrame, images: pandas.DataFrame):
        self._results, self._images = results, images

    def results(self) -> pandas.DataFrame:
        return self._results

    def images(self) -> pandas.DataFrame:
        return self._images


IMAGES = pandas.DataFrame(
    {
        "image": [f"image {i}" for i in range(5)],
        "correct": [True, False, None, True, True],
        "loss": [1.0, 2, None, 3, 4],
    }
    | {"confidence": [0.5] * 5}
)


def test_flagged_rows_are_set_aside():
    results = rows((1, 2), (1, 3), (1, 4), flag=["", "the map is 0 throughout", ""])
    scored, flagged = statistics.scored_rows(Folder(results, IMAGES))
    assert scored["image"].tolist() == ["image 0", "image 2"] and flagged["image"].tolist() == ["image 1"]
    assert scored["correct"].tolist() == [True, pandas.NA] and scored["loss"].tolist()[0] == 1
    (line,) = statistics.centres(scored).to_dict("records")
    assert (line["images"], line["median"], line["mean"]) == (2, 2, 2)


def test_runs_of_before_show_what_they_have():
    scored, flagged = statistics.scored_rows(Folder(TWO, IMAGES[["image"]]))
    assert len(scored) == 10 and flagged.empty and scored["loss"].isna().all()
    assert statistics.by_correctness(scored)["images_correct"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="here was written by another version: its results lack flipped_plus"):
        statistics.scored_rows(Folder(TWO.drop(columns="flipped_plus"), IMAGES))
    with pytest.raises(ValueError, match="holds no finished results"):
        statistics.scored_rows(Folder(pandas.DataFrame(), IMAGES))


# -- the papers' tables ----------------------------------------------------------------------------------------------


def test_published_numbers_agree_with_each_other():
    for method, by_stage in BY_STAGE.items():
        assert by_stage[5] == MEDIAN_BY_NETWORK[method][0]  # Table II's last stage is Table I
    for method, (average, _, median, _) in BY_CORRECTNESS.items():
        assert (average, median) == (BY_STAGE[method][2], BY_STAGE[method][5])  # and Table III's correct images
    for cases in EXCEPTIONS.values():
        for one in cases:
            assert one[1] - one[0] == one[2] and one[4] - one[3] == one[5]
    assert LOSS_CORRELATION["gradient"] == ((-0.827, True), (0.069, True), (-0.543, True))


def test_a_runs_numbers_stand_beside_the_papers():
    table = pandas.concat([TWO.assign(stage=stage) for stage in ("3-channel", "times-image")], ignore_index=True)
    table = table.assign(correct=pandas.array([True, True, True, True, False] * 4, "boolean"), loss=1.0, confidence=0.5)
    found = {one.source: one for one in paper_tables(table, "a network")}
    assert list(found) == [
        "P1 Table I",
        "P1 Table II, P2 Tables 4.2 and 4.4",
        "P2 Table 4.3a",
        "P2 Table 4.3b",
        "P1 Table III, P2 Table 5.2",
        "P1 Table IV, P2 Table 5.3",
    ]
    assert dict(found["P1 Table I"].rows)["Gradient"] == (
        ("81.00", ""),
        ("62.00", ""),
        ("", "12.50"),  # of 0 5 20 >90
    )
    assert dict(found["P1 Table I"].rows)["Guided Grad-CAM"] == (("31.00", ""), ("19.00", ""), ("", "–"))
    second = dict(found["P1 Table II, P2 Tables 4.2 and 4.4"].rows)["Gradient"]
    assert second[0] == ("231.76", "≥28.75") and second[1] == ("176.86", "–")  # the run has no 1-channel stage
    third = dict(found["P1 Table III, P2 Table 5.2"].rows)["LRP"]
    assert third == (("66.07", "≥27.50"), ("20.34", "20.00"), ("41.00", "25.00"), ("11.00", "20.00"))
    assert found["P2 Table 4.3a"].rows[0] == (
        "image 1 (image 3)",
        (("2", "5"), ("4", "10"), ("2", "5"), ("1", "40"), ("4", ">100"), ("3", ">60")),
    )
    assert dict(found["P1 Table IV, P2 Table 5.3"].rows)["LRP"][1] == ("0.001", "–")
    assert found["P1 Table IV, P2 Table 5.3"].groups == [("loss", 3)] and found["P1 Table I"].groups == []


def test_estimates_are_marked():
    assert [Estimate(1, *ends).mark for ends in ((1, 1), (1, INF), (-INF, 1), (-INF, INF))] == ["", "≥", "≤", "≈"]


@pytest.mark.parametrize(
    "network, texts",
    [
        ("vgg16", ("12.50", "")),
        ("my.models:VGG_16", ("12.50", "")),
        ("resnet50", ("", "12.50")),
        ("vgg19", ("", "", "12.50")),
        ("efficientnet-lite0", ("", "", "12.50")),
    ],
)
def test_a_run_stands_in_the_column_of_its_own_network(network, texts):
    table = TWO.assign(stage="times-image", correct=pandas.array([True] * 5 * 2, "boolean"), loss=1.0, confidence=0.5)
    table = table[table["image"] != "image 4"]
    first, *others = paper_tables(table, network)
    assert tuple(own for _, own in dict(first.rows)["Gradient"]) == texts
    assert all(("Published: VGG-16" in one.note) == (len(texts) == 3 or texts[0] == "") for one in others)


def test_of_several_of_a_method_the_one_with_the_papers_options_is_compared():
    table = TWO.assign(stage="times-image", correct=pandas.array([True] * 10, "boolean"), loss=1.0, confidence=0.5)
    both = pandas.concat(
        [
            table.assign(explainer=table["explainer"].replace("lrp", key))
            for key in ("smooth-grad:samples=5", "smooth-grad:seed=3")
        ]
    )
    assert of_method(both, "smooth-grad") == "smooth-grad:seed=3"  # a seed is no option of the papers
    assert "Smooth Grad" in dict(paper_tables(both, "vgg16")[0].rows)
    only = both[both["explainer"] != "smooth-grad:seed=3"]
    assert "Smooth Grad (the run’s has samples=5)" in dict(paper_tables(only, "vgg16")[0].rows)
