"""Sanity checks: an explanation has to change with the model's parameters and with what it learnt (P3 section
5.3.9)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apem_fast.randomised import randomised_stages
from apem_fast.seeding import seeded
from apem_fast.siamese.networks import Ranker, SiameseRanker
from apem_fast.similarity import rank_correlation

__all__ = ["CRITERION", "SanityCheck", "cascading_randomisation", "label_randomisation"]

CRITERION = 0.5
"""The greatest mean rank correlation that still passes: below it, the original map explains less than a quarter of the
variance of the ranks of the other model's map."""

Explanation = Callable[[Ranker, Tensor, Tensor], Mapping[str, Tensor]]
"""(ranker, first, second) -> named maps (N, 1, H, W)."""


@dataclass(frozen=True)
class SanityCheck:
    """Rank correlations between the maps of the model and those of its randomised copies.

    Attributes:
        stages: what was randomised up to each stage, the first one last in the network.
        correlation: for each kind of map (stages, N), Spearman's; NaN where a map is constant.
    """

    stages: tuple[str, ...]
    correlation: Mapping[str, Tensor]

    def mean(self, name: str) -> Tensor:
        """(stages,): the mean over the pairs."""
        return self.correlation[name].nanmean(dim=1)

    def passes(self, name: str, criterion: float = CRITERION) -> bool:
        """Whether the mean correlation is at most the criterion once everything is randomised, by absolute value.

        A map that was constant for every pair has no correlation, and does not pass.
        """
        return bool(self.mean(name)[-1].abs() <= criterion)

    def verdict(self, name: str, criterion: float = CRITERION) -> str:
        """One sentence for a report."""
        mean, outcome = float(self.mean(name)[-1]), "passes" if self.passes(name, criterion) else "fails"
        throughout = len(self.stages) > 1 and bool((self.mean(name).abs() <= criterion).all())
        at_once = " from the first stage on" if throughout else ""
        return (
            f"The {name} map {outcome}{at_once if outcome == 'passes' else ''}: mean rank correlation {mean:.2f} "
            f"with everything randomised (criterion: at most {criterion:.2f})."
        )


def cascading_randomisation(
    ranker: Ranker, first: Tensor, second: Tensor, explain: Explanation, *, seed: int = 0
) -> SanityCheck:
    """Re-initialises the layers that embed, from the deepest up to the first, and explains again after each.

    Args:
        ranker: comes back untouched; copies are randomised. Of a Siamese ranker the branch is, as in P3.
        first, second: the pairs.
        explain: makes the maps, for example by an attack of fixed steps.
        seed: of the new parameters; the caller's random state is left alone.
    """
    reference = explain(ranker, first, second)
    randomised = copy.deepcopy(ranker)
    embedding = randomised.branch if isinstance(randomised, SiameseRanker) else randomised
    stages, collected = [], {name: [] for name in reference}
    with seeded(seed, ranker.device):
        for stage in randomised_stages(embedding, seed=seed):
            stages.append(stage)
            for name, maps in explain(randomised, first, second).items():
                collected[name].append(rank_correlation(reference[name], maps))
    return SanityCheck(tuple(stages), {name: torch.stack(rows) for name, rows in collected.items()})


def label_randomisation(
    ranker: Ranker, relabelled: Ranker, first: Tensor, second: Tensor, explain: Explanation
) -> SanityCheck:
    """Compares with a network of the same architecture that was trained on shuffled attributes.

    `RankedImages.with_shuffled_values` gives what to train `relabelled` on, with the regime that trained `ranker`.
    """
    reference, other = explain(ranker, first, second), explain(relabelled, first, second)
    correlation = {name: rank_correlation(maps, other[name])[None] for name, maps in reference.items()}
    return SanityCheck(("labels",), correlation)
