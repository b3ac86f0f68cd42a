"""What a page says of its methods: image sets apart, the sign test, sentences that claim no more than they show."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apem_fast.experiment.report.findings import SignTest, holm, leader_sentences, sign_test, told_apart
from apem_fast.experiment.report.sets import image_sets


def rows_of(scores: dict[str, list[float]], censored: dict[str, list[bool]] | None = None) -> pandas.DataFrame:
    """One row for each explainer and image: epsilon_minus is 100, epsilon_plus what the score asks for."""
    lines = [
        {
            "image": f"image {i}",
            "explainer": key,
            "stage": "1-channel",
            "epsilon_minus": 100.0,
            "epsilon_plus": 100.0 + score,
            "score": score,
            "flipped_minus": True,
            "flipped_plus": not (censored or {}).get(key, [False] * len(values))[i],
            "correct": True,
        }
        for key, values in scores.items()
        for i, score in enumerate(values)
    ]
    return pandas.DataFrame(lines)


def test_the_sign_test_counts_what_is_sure():
    rows = rows_of({"a": [5, 5, 5, 5, 5], "b": [1, 9, 5, 2, 7]}, {"b": [False, False, False, True, False]})
    # Image 3: b is at least 2, which may be more than 5.
    assert sign_test(rows, "1-channel", "a", "b") == SignTest(better=1, worse=2, images=5)
    assert sign_test(rows, "1-channel", "b", "a") == SignTest(better=2, worse=1, images=5)


@pytest.mark.parametrize("better, worse", [(9, 5), (14, 0), (7, 7), (0, 0), (0, 3)])
def test_its_probability_is_the_coins(better, worse):
    n = better + worse
    coin = [math.comb(n, k) / 2**n for k in range(n + 1)]
    expected = sum(p for p in coin if p <= coin[better] * (1 + 1e-9))
    assert SignTest(better, worse, 20).p_value == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.6, 0.75])
def test_so_many_images_do_tell_them_apart_four_times_in_five(share):
    needed = round(SignTest(round(1000 * share), 1000 - round(1000 * share), 1000).images_needed())
    won = np.arange(needed + 1)
    power = stats.binom.pmf(won, needed, share)[
        [SignTest(int(k), needed - int(k), needed).p_value <= 0.05 for k in won]
    ]
    assert 0.68 < power.sum() < 0.88  # a normal approximation of a test whose levels come in steps


def test_alike_methods_are_never_told_apart_and_undecided_images_cost_more():
    assert SignTest(4, 4, 8).images_needed() == math.inf
    assert SignTest(8, 4, 24).images_needed() == pytest.approx(2 * SignTest(8, 4, 12).images_needed())


def test_holm_stops_at_the_first_that_chance_explains():
    tests = [SignTest(20, 0, 20), SignTest(11, 9, 20), SignTest(16, 4, 20)]
    p = [test.p_value for test in tests]
    assert p[0] < 0.05 / 3 and p[2] < 0.05 / 2 and p[1] > 0.05
    assert told_apart(tests) == [True, False, True]
    assert told_apart([SignTest(15, 5, 20)] * 3) == [False] * 3 and SignTest(15, 5, 20).p_value < 0.05


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferronis(p_values):
    """A test is settled where each set of tests that it belongs to has one that Bonferroni's rule settles."""
    every = range(len(p_values))
    sets = [one for size in range(1, len(p_values) + 1) for one in itertools.combinations(every, size)]
    settled = {one: min(p_values[i] for i in one) <= 0.05 / len(one) for one in sets}
    assert holm(p_values) == [all(settled[one] for one in sets if i in one) for i in every]


def test_the_headline_says_whom_the_images_separate():
    rows = rows_of({"a": list(range(10, 30)), "b": [0] * 20, "c": [x + (1 if x % 2 else -1) for x in range(10, 30)]})
    names, medians = {"a": "A", "b": "B", "c": "C"}, {"a": "19.5", "b": "0", "c": "19.5"}
    first, better, alike = leader_sentences(rows, "1-channel", names, medians, ["a", "c", "b"])
    assert first == "At the 1-channel stage A has the highest median score, 19.5."
    assert better == "On these 20 images it scores higher than B more often than chance explains."
    assert (
        alike == "These 20 images do not separate A from C (higher on 10, lower on 10; as it stands, no number would)."
    )


def test_methods_of_which_the_same_is_said_are_said_together():
    rows = rows_of({"a": [9] * 4, "b": [1, 2, 3, 4], "c": [2] * 4, "d": [10, 2, 2, 2]})
    names = {key: key.upper() for key in "abcd"}
    said = leader_sentences(rows, "1-channel", names, dict.fromkeys("abcd", "9"), list("abcd"))[-1]
    assert said == (
        "These 4 images do not separate A from B and C (each higher on 4, lower on 0; as it stands, some 14 would) and "
        "D (higher on 3, lower on 1; as it stands, some 40 would)."
    )


def test_sets_stand_apart_where_every_truth_is_known():
    rows = pandas.DataFrame({"image": [str(i) for i in range(9)], "correct": [True] * 5 + [False] * 4})
    assert [(name, len(part)) for name, part in image_sets(rows).items()] == [("correct", 5), ("misclassified", 4)]
    few = rows[:8]
    assert list(image_sets(few)) == ["all"]
    unknown = rows.assign(correct=rows["correct"].astype("boolean").mask(rows["image"] == "0"))
    assert len(image_sets(unknown)["all"]) == 9


def test_more_images_than_there_are_would_separate_what_they_do_not():
    """Twelve of fourteen would do for one comparison, not for five at once."""
    assert told_apart([SignTest(12, 2, 14)]) == [True] and not any(told_apart([SignTest(12, 2, 14)] * 5))
    assert SignTest(12, 2, 14).images_needed() < 14 < SignTest(12, 2, 14).images_needed(5)
