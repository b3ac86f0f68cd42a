"""How reliable a measure is: whether it ranks methods in the same way on every image, and as other measures do.

Tomsett et al. 2020, "Sanity checks for saliency metrics" (arXiv:1912.01451), treat it like the agreement of raters:
images are the raters, methods are rated, and Krippendorff's alpha of the ranks says how far they agree. 1 is the same
order on every image, 0 is chance, and below 0 is worse than chance.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apem_fast.extras import extra

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: ArrayLike, level: Level = "ordinal") -> float:
    """Krippendorff's alpha: 1 - observed / expected disagreement.

    See Krippendorff 2011, "Computing Krippendorff's alpha-reliability".

    Args:
        ratings: (raters, units); NaN if a rater did not rate a unit.
        level: the distance of two values: "nominal", whether they are equal; "ordinal", how many ratings lie between
            them; "interval", their squared difference.

    Returns:
        alpha; NaN if no unit was rated by two raters, or all ratings are equal.

    Raises:
        ValueError: ratings are not a table, or the level is unknown.
    """
    table = np.asarray(ratings, np.float64)
    if table.ndim != 2:
        raise ValueError(f"krippendorff_alpha: ratings must have shape (raters, units) (got {table.shape})")
    values = np.unique(table[~np.isnan(table)])
    counts = _counts(table, values)
    return _alpha(counts, counts, _distance(level, values))


def ranks_on_images(scores: ArrayLike, higher_is_better: bool = True) -> NDArray[np.float64]:
    """The rank of each method on each image, (images, methods): 1 for the best, and NaN without a score.

    Methods with equal scores get the mean of their ranks.

    Args:
        scores: (images, methods); NaN if there is none.
        higher_is_better: whether the highest is the best.
    """
    with extra("explain", "a ranking"):
        from scipy.stats import rankdata

    table = np.asarray(scores, np.float64)
    return rankdata(-table if higher_is_better else table, axis=1, nan_policy="omit")


def agreement_of_ranks(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's correlation between the ranks that two measures give the methods, averaged over the images.

    Images on which either measure ranks all methods equally are left out. NaN if no image remains.

    Args:
        first, second: (images, methods), as `ranks_on_images` gives them, without NaN.
    """
    one, other = (np.asarray(ranks, np.float64) for ranks in (first, second))
    one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    ranked = scale > 0
    return float(((one * other).sum(axis=1)[ranked] / scale[ranked]).mean()) if ranked.any() else np.nan


def resampled_alphas(ranks: NDArray[np.float64], seed: int = 0, repetitions: int = 500) -> NDArray[np.float64]:
    """Bootstrap values of alpha, (repetitions,), for a complete table of ranks (images, methods).

    Each draws as many images as there are, with replacement. The same seed draws the same images of any table of that
    length, so that the alphas of two measures can be subtracted draw by draw. NaN if all ranks of a draw are equal.
    """
    values = np.unique(ranks)
    distance = _distance("ordinal", values)
    indicator = (ranks[:, :, None] == values).astype(np.float64)  # (images, methods, values)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(repetitions):
        drawn = np.bincount(generator.integers(len(ranks), size=len(ranks)), minlength=len(ranks)).astype(np.float64)
        # An image that is drawn twice does not agree with itself: pairs are of different images.
        counts, squares = (np.tensordot(weight, indicator, axes=1) for weight in (drawn, drawn**2))
        found.append(_alpha(counts, squares, distance))
    return np.array(found)


def interval_of(draws: NDArray[np.float64], share: float = 0.95) -> tuple[float, float]:
    """The interval that holds this share of the draws, without NaN; NaN if there are none."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [50 * (1 - share), 50 * (1 + share)])
    return float(low), float(high)


def _counts(table: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many raters gave each unit each value: (units, values)."""
    return (table[:, :, None] == values).sum(axis=0).astype(np.float64)


Distance = tuple[Level, NDArray[np.float64]]


def _distance(level: Level, values: NDArray[np.float64]) -> Distance:
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"krippendorff_alpha: level must be nominal, ordinal or interval (got {level!r})")
    return level, values


def _alpha(counts: NDArray[np.float64], squares: NDArray[np.float64], distance: Distance) -> float:
    """Alpha from the weighted number of raters that gave each unit each value, and the sums of squared weights.

    The two are equal if every rater counts once.
    """
    rated = counts.sum(axis=1) ** 2 > squares.sum(axis=1)  # by at least two
    if not rated.any():
        return np.nan
    counts, squares = counts[rated], squares[rated]
    raters = counts.sum(axis=1)
    others = raters - squares.sum(axis=1) / raters  # one less than the raters, if every rater counts once
    # How often two values meet within a unit, in pairs of different raters (the coincidence matrix).
    met = (counts / others[:, None]).T @ counts - np.diag((squares / others[:, None]).sum(axis=0))
    of_value = met.sum(axis=0)
    total = of_value.sum()
    apart = _apart(distance, of_value)
    expected = of_value @ apart @ of_value / (total - 1)
    return 1 - float((met * apart).sum() / expected) if expected > 0 else np.nan


def _apart(distance: Distance, of_value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squared difference of each two values: (values, values)."""
    level, values = distance
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # The ordinal difference counts the ratings from one value to the other, and half of those at either end.
    place = np.cumsum(of_value) - of_value / 2 if level == "ordinal" else values
    return (place[:, None] - place) ** 2
