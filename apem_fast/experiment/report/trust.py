"""Whether a run's ranking is stable, and whether maps without information score near 0, as they must.

Rows are those of `statistics.scored_rows`. Random draws are seeded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas
from numpy.typing import NDArray
from scipy import stats

from apem_fast.experiment.report.censoring import bootstrap_interval, intervals
from apem_fast.experiment.report.statistics import groups, has_shuffles
from apem_fast.relevance import STAGES


@dataclass(frozen=True)
class Stability:
    """Kendall's tau between the explainers' rankings on two random halves of the images."""

    tau: float  # the mean over random halvings
    low: float  # 95 % bootstrap interval
    high: float
    images: int
    explainers: int


def ranking_stability(rows: pandas.DataFrame, stage: str, seed: int = 0, repetitions: int = 400) -> Stability | None:
    """The stability of the ranking by median score: 1 if two halves of the images agree, 0 without agreement.

    Each repetition halves the images at random; tau is the mean over the repetitions. The interval resamples each half
    with replacement before ranking, so that no image is ever in both. Censored scores enter as observed. Only images
    that every explainer scored are used; None if there are fewer than two explainers or four such images.
    """
    scores = rows[rows["stage"] == stage].pivot(index="image", columns="explainer", values="score").dropna()
    images, explainers = scores.shape
    if explainers < 2 or images < 4:
        return None
    values = scores.to_numpy()
    generator = np.random.default_rng(seed)
    taus, resampled = [], []
    for _ in range(repetitions):
        order = generator.permutation(images)
        halves = order[: images // 2], order[images // 2 :]
        taus.append(tau(*(np.median(values[half], axis=0) for half in halves)))
        again = (generator.choice(half, len(half)) for half in halves)
        resampled.append(tau(*(np.median(values[half], axis=0) for half in again)))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Stability(float(np.mean(taus)), float(low), float(high), images, explainers)


def tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Kendall's tau-b; 0 if one of the two has only equal ranks."""
    found = float(stats.kendalltau(first, second).statistic)
    return 0.0 if np.isnan(found) else found


BLIND = ("random", "uniform")
"""Baselines that use neither the network nor the photograph, so that their score must be near 0."""


def sanity(rows: pandas.DataFrame, baselines: tuple[str, ...], step: float, seed: int = 0) -> pandas.DataFrame:
    """The median score of the baseline maps, with its 95 % bootstrap interval.

    Near 0 means that the interval comes within one grid step of 0. It is required only of maps without information:
    random and uniform ones that are not multiplied by the photograph, and shuffled maps if the run has them. Censored
    scores enter as observed.

    Returns:
        stage, explainer, shuffled (bool), images, median, low, high, expected (bool: must be near 0), near (bool).
    """
    table = []

    def add(stage: str, explainer: str, scores: NDArray[np.float64], is_shuffled: bool, expected: bool) -> None:
        low, high = bootstrap_interval(scores, seed=seed)
        table.append(
            {
                "stage": stage,
                "explainer": explainer,
                "shuffled": is_shuffled,
                "images": len(scores),
                "median": float(np.median(scores)),
                "low": low,
                "high": high,
                "expected": expected,
                "near": bool(low <= step and high >= -step),
            }
        )

    for stage, explainer, part in groups(rows):
        kind = explainer.split(":")[0]
        if kind in baselines:
            add(stage, explainer, part["score"].to_numpy(), False, kind in BLIND and not STAGES[stage].times_image)
    if has_shuffles(rows):
        for stage, explainer, part in groups(rows):
            part = part[part["shuffled_epsilon_plus"].notna()]
            if explainer.split(":")[0] not in baselines and len(part):
                add(stage, explainer, intervals(part, "score", "shuffled_").observed, True, True)
    return pandas.DataFrame(table)
