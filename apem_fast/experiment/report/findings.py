"""Sentences on a run's methods, which claim no difference that its images cannot show.

Two methods are compared image by image, as in P1 Figure 4, with the sign test: among the images on which one of the two
certainly scores higher, is it the same one more often than by chance? An image that censoring leaves undecided counts
for neither, and nothing is assumed about the distribution of scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas
from scipy import stats

from apem_fast.experiment.report.censoring import BETTER, WORSE, compared, intervals
from apem_fast.experiment.report.statistics import paired

LEVEL = 0.05
POWER = 0.8
MANY = 1_000_000  # if more images would be needed to tell two methods apart, they count as equal


@dataclass(frozen=True)
class SignTest:
    """How often the first of two methods scores higher on the same images, and whether chance explains it."""

    better: int
    worse: int
    images: int  # including equal and undecided ones

    @property
    def p_value(self) -> float:
        """The two-sided, exact p-value; 1 if no image decides."""
        decided = self.better + self.worse
        return float(stats.binomtest(self.better, decided).pvalue) if decided else 1.0

    def images_needed(self, comparisons: int = 1) -> float:
        """About how many images would tell the two apart if the shares stay the same; infinite if they are equal.

        This is for a two-sided test with a power of 80 %.

        Args:
            comparisons: how many comparisons share the 5 %.
        """
        decided = self.better + self.worse
        if self.better == self.worse:
            return math.inf
        share = max(self.better, self.worse) / decided
        # If all images agree, the share's variance would be 0, so a pseudo-count of one half is added.
        share = min(share, (decided + 0.5) / (decided + 1))
        chance, other = (
            stats.norm.isf(LEVEL / comparisons / 2) / 2,
            stats.norm.isf(1 - POWER) * math.sqrt(share * (1 - share)),
        )
        return ((chance + other) / (share - 0.5)) ** 2 * self.images / decided


def sign_test(rows: pandas.DataFrame, stage: str, first: str, second: str) -> SignTest:
    """Compares two explainers at one stage, on the images for which both have a score.

    Args:
        rows: see `statistics.scored_rows`.
    """
    one, other = paired(rows[rows["stage"] == stage], "explainer", first, second)
    if one.empty:
        return SignTest(0, 0, 0)
    verdicts = compared(intervals(one, "score"), intervals(other, "score"))
    return SignTest(int((verdicts == BETTER).sum()), int((verdicts == WORSE).sum()), len(one))


def told_apart(tests: Sequence[SignTest]) -> list[bool]:
    """Which of several comparisons chance does not explain."""
    return holm([test.p_value for test in tests])


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several tests chance does not explain, by Holm's procedure at 5 % for all of them together."""
    apart = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > LEVEL / (len(p_values) - rank):
            break
        apart[index] = True
    return apart


def leader_sentences(
    rows: pandas.DataFrame, stage: str, names: dict[str, str], medians: dict[str, str], order: Sequence[str]
) -> list[str]:
    """Which method leads at a stage, and from which others the images distinguish it.

    Args:
        rows: of the images that are spoken of.
        names: the explainers' names.
        medians: the median of each with its interval, as text.
        order: the explainers with a score, in descending order of their medians.
    """
    best, *others = order
    sentences = [f"At the {stage} stage {names[best]} has the highest median score, {medians[best]}."]
    if not others:
        return sentences
    tests = {other: sign_test(rows, stage, best, other) for other in others}
    apart = dict(zip(tests, told_apart(list(tests.values())), strict=True))
    lower = [names[other] for other in others if apart[other] and tests[other].better > tests[other].worse]
    higher = [names[other] for other in others if apart[other] and tests[other].better < tests[other].worse]
    images = f"{rows['image'].nunique():,} images"
    if lower:
        sentences.append(f"On these {images} it scores higher than {listed(lower)} more often than chance explains.")
    if higher:
        sentences.append(f"But {listed(higher)} scores higher than it on most images, in spite of the lower median.")
    alike = [(other, tests[other]) for other in others if not apart[other]]
    if alike:
        sentences.append(
            f"These {images} do not separate {names[best]} from {listed(_apart(alike, names, len(tests)))}."
        )
    return sentences


def _apart(alike: Iterable[tuple[str, SignTest]], names: dict[str, str], comparisons: int) -> list[str]:
    of: dict[str, list[str]] = {}  # methods by what is said of them
    for other, test in alike:
        needed = max(test.images_needed(comparisons), test.images + 1)
        rough = "no number would" if needed > MANY else f"some {_roughly(needed):,} would"
        of.setdefault(f"higher on {test.better}, lower on {test.worse}; as it stands, {rough}", []).append(names[other])
    return [f"{listed(some)} ({'each ' if len(some) > 1 else ''}{said})" for said, some in of.items()]


def _roughly(value: float) -> int:
    """A number with two significant digits, which is all that such an estimate supports."""
    digits = max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(math.ceil(value / 10**digits) * 10**digits)


def listed(words: Sequence[str]) -> str:
    """Texts as a list in a sentence: "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
