"""The reliability of each measure of a run, also of APEM: does it rank methods alike on every image, and as others do?

See Tomsett et al. 2020 and `apem_fast.measures.reliability`. Rows are those of `statistics.scored_rows`. All measures
are compared on the same images, for which every method has a value of every measure; a censored score enters as
observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas
from numpy.typing import NDArray

from apem_fast.experiment.run.columns import MEASURES
from apem_fast.measures.reliability import (
    agreement_of_ranks,
    interval_of,
    krippendorff_alpha,
    ranks_on_images,
    resampled_alphas,
)

APEM = "score"
FEWEST_IMAGES, FEWEST_METHODS = 4, 2


@dataclass(frozen=True)
class Reliability:
    """The reliability of one measure at one stage."""

    measure: str  # a column of the rows: "score" for APEM, or a name of `MEASURES`
    alpha: float  # Krippendorff's, of the methods' ranks over the images
    low: float  # 95 % bootstrap interval over the images
    high: float
    less_low: float  # 95 % interval of this alpha minus APEM's, on the same draws; both ends are 0 for APEM
    less_high: float
    images: int
    methods: int

    @property
    def surely_better(self) -> bool:
        """Whether its alpha is above APEM's by more than chance explains."""
        return self.less_low > 0


def title_of(measure: str) -> str:
    return "APEM" if measure == APEM else MEASURES[measure].title


def present_measures(rows: pandas.DataFrame) -> list[str]:
    """The measures that the rows have values of, without APEM."""
    return [name for name in MEASURES if name in rows and rows[name].notna().any()]


def ranks_by_measure(rows: pandas.DataFrame, stage: str, methods: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The ranks (images, methods) of each measure, on the images on which all measures rank all methods.

    Empty if there are fewer than four such images, or fewer than two methods.
    """
    part = rows[(rows["stage"] == stage) & rows["explainer"].isin(methods)]
    tables = {
        name: part.pivot(index="image", columns="explainer", values=name) for name in (APEM, *present_measures(part))
    }
    complete = np.logical_and.reduce([table.notna().all(axis=1) for table in tables.values()])
    if complete.sum() < FEWEST_IMAGES or tables[APEM].shape[1] < FEWEST_METHODS:
        return {}
    return {
        name: ranks_on_images(table[complete].to_numpy(), name == APEM or MEASURES[name].better == "higher")
        for name, table in tables.items()
    }


def reliabilities(ranks: dict[str, NDArray[np.float64]], seed: int = 0) -> list[Reliability]:
    """The reliability of every measure, in descending order of alpha."""
    draws = {name: resampled_alphas(table, seed) for name, table in ranks.items()}
    found = []
    for name, table in ranks.items():
        low, high = interval_of(draws[name])
        less = (0.0, 0.0) if name == APEM else interval_of(draws[name] - draws[APEM])
        found.append(Reliability(name, krippendorff_alpha(table), low, high, *less, *table.shape))
    return sorted(found, key=lambda one: -np.nan_to_num(one.alpha, nan=-np.inf))


def agreements(ranks: dict[str, NDArray[np.float64]]) -> dict[tuple[str, str], float]:
    """For each two measures, Spearman's correlation of their ranks, averaged over the images."""
    return {(a, b): agreement_of_ranks(one, other) for a, one in ranks.items() for b, other in ranks.items()}
