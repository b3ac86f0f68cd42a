"""An audit: some rays, drawn at random, are scanned at every grid point, and the search is compared with the scan.

A search skips grid points, and cannot know what it missed there. A scan of a random sample of rays bounds it: from the
number of rays that differ follows the greatest share of all epsilons that can be wrong (Clopper and Pearson).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.extras import extra
from apem_fast.metric.evaluator import Evaluator
from apem_fast.metric.results import ApemResult
from apem_fast.probing.engine import Progress, find_flips
from apem_fast.search import Exhaustive

CONFIDENCE = 0.95


def most_wrong(rays: int, differ: int, confidence: float = CONFIDENCE) -> float:
    """The upper confidence bound of the share that is wrong, if `differ` of `rays` drawn at random are wrong.

    It is one-sided, by Clopper and Pearson.
    """
    with extra("explain", "the confidence of an audit"):
        from scipy.stats import beta

    return 1.0 if differ >= rays else float(beta.ppf(confidence, differ + 1, rays - differ))


def most_wrong_of(total: int, rays: int, differ: int, confidence: float = CONFIDENCE) -> int:
    """The upper confidence bound of the number wrong among `total`, if `differ` of `rays` drawn from them are wrong.

    This is Clopper and Pearson's bound with the hypergeometric distribution, since rays are drawn without replacement:
    the greatest number of wrong ones of which so few are drawn with a probability above 1 - `confidence`. It is exact,
    and lower than the binomial bound, since the scanned rays themselves are known.
    """
    with extra("explain", "the confidence of an audit"):
        from scipy.stats import hypergeom

    low, high = differ, total - (rays - differ)  # the least and the greatest number that can be wrong
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeom.cdf(differ, total, middle, rays) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Difference:
    """One audited ray for which search and scan differ; an epsilon is None where no flip was found."""

    maps: str
    image: int | str  # its place, or its name in a run
    irrelevance: bool
    found: float | None
    scanned: float | None


@dataclass(frozen=True)
class Audit:
    """The result of an audit: what a scan of some rays says about the search that measured all of them."""

    rays: int  # that were scanned
    of: int  # rays in all
    differences: tuple[Difference, ...]
    probes: int  # model inputs that the scan took

    @property
    def most_wrong(self) -> float:
        """At most this share of the epsilons is wrong, with 95 % confidence; the exact share if all were scanned."""
        if self.rays == self.of:
            return len(self.differences) / self.rays
        return most_wrong(self.rays, len(self.differences))

    def __str__(self) -> str:
        exact = self.rays - len(self.differences)
        if self.rays == self.of:
            return f"{exact} of {self.rays} rays exact: all were audited."
        least = np.floor(1000 * (1 - self.most_wrong)) / 10  # rounded down, so that it is still true
        return (
            f"{exact} of {self.rays} audited rays exact: with 95 % confidence at least {least:.1f} % of these "
            "epsilons are."
        )


@said_by("audit")
def drawn(strata: Mapping[str, int], rays: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Which rays of each stratum are audited: drawn at random, in proportion to the strata's sizes, and sorted.

    Raises:
        ValueError: more rays than there are, or fewer than one.
    """
    total = sum(strata.values())
    rays = validation.whole("rays", rays)
    if rays > total:
        raise ValueError(sentence(f"rays must be at most the {total} that there are (got {rays})"))
    share = dict.fromkeys(strata, 0)
    random = np.random.default_rng(validation.whole("seed", seed, least=0))
    # In proportion to their sizes, so that every ray is equally likely to be drawn: the bound requires it.
    order = random.permutation(np.repeat(np.arange(len(strata)), list(strata.values())))
    quotas = [rays * size // total for size in strata.values()]
    for name, quota in zip(strata, quotas):
        share[name] = quota
    names = list(strata)
    for stratum in order.tolist():
        if sum(share.values()) == rays:
            break
        if share[names[stratum]] == quotas[stratum] and share[names[stratum]] < strata[names[stratum]]:
            share[names[stratum]] += 1
    return {name: np.sort(random.choice(strata[name], share[name], replace=False)) for name in strata}


@said_by("audit")
def audit_maps(
    evaluator: Evaluator,
    relevance: Mapping[str, Tensor] | Tensor,
    results: Mapping[str, ApemResult] | ApemResult | None = None,
    *,
    rays: int = 300,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Scans rays drawn at random at every grid point up to their flips; each set of maps gets its share of them.

    Args:
        evaluator: with the options of the search that is audited.
        relevance: maps by name, or one set, as for `Evaluator.apem`.
        results: what the search found for them; None searches first.
        rays: how many; at most two a map.
        seed: of the draw.
        progress: called with (rays scanned, rays of one set, probes so far).

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    maps = {"relevance": relevance} if isinstance(relevance, Tensor) else dict(relevance)
    for name, one in maps.items():
        validation.relevance(one, evaluator.images, name if len(maps) > 1 else None)
    if results is None:
        results = evaluator.apem(maps)
    found = {"relevance": results} if isinstance(results, ApemResult) else dict(results)
    if set(found) != set(maps):
        raise ValueError(
            sentence(f"results must be of the same maps as relevance, {', '.join(maps)} (got {', '.join(found)})")
        )
    options, images = evaluator.options, len(evaluator.images)
    for result in found.values():
        if len(result.epsilon_minus) != images or (result.step, result.max_epsilon) != (
            options.step,
            options.max_epsilon,
        ):
            raise ValueError(
                sentence(f"results must be of the evaluator's {images} images, step and max_epsilon (got others)")
            )
    chosen = drawn(dict.fromkeys(maps, 2 * images), rays, seed)
    differences, probes = [], 0
    for name, ray in chosen.items():
        if not len(ray):
            continue
        epsilon, flipped = scanned(evaluator, maps[name], ray, progress)
        probes += int(epsilon[1].sum())
        result = found[name]
        its_epsilon = torch.stack([result.epsilon_minus, result.epsilon_plus], dim=1).flatten().numpy()[ray]
        its_flipped = torch.stack([result.flipped_minus, result.flipped_plus], dim=1).flatten().numpy()[ray]
        wrong = (its_flipped != flipped) | (flipped & (its_epsilon != epsilon[0]))
        differences += [
            Difference(
                name,
                int(ray[i]) // 2,
                bool(ray[i] % 2),
                float(its_epsilon[i]) if its_flipped[i] else None,
                float(epsilon[0][i]) if flipped[i] else None,
            )
            for i in np.flatnonzero(wrong)
        ]
    return Audit(rays, 2 * images * len(maps), tuple(differences), probes)


def scanned(
    evaluator: Evaluator, maps: Tensor, ray: NDArray[np.int64], progress: Progress | None = None
) -> tuple[tuple[NDArray[np.float64], NDArray[np.int64]], NDArray[np.bool_]]:
    """Scans some rays of a set of maps: their epsilons, the probes of each, and whether they flip.

    Ray 2m is map m's along the relevance, ray 2m + 1 along the irrelevance. Probes always run in float32, since a scan
    gains nothing from a low-precision screen.
    """
    row, half = np.unique(ray // 2, return_inverse=True)
    all_rays = evaluator.rays(maps[torch.from_numpy(row).to(maps.device)].detach(), row)
    few = all_rays.only(2 * half + ray % 2)
    o = evaluator.options
    with evaluator.probing_exactly(few) as prober:
        flips = find_flips(prober, Exhaustive(), step=o.step, last_step=o.last_step, progress=progress)
    return (flips.step.astype(np.float64) * o.step, flips.probes), flips.flipped
