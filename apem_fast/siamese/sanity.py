"""Sanity checks: an explanation should depend on the model's parameters and on its training labels (P3 5.3.9)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apem_fast.randomised import randomised_stages
from apem_fast.results import Result
from apem_fast.seeding import seeded
from apem_fast.siamese.networks import Ranker, SiameseRanker
from apem_fast.similarity import rank_correlation
from apem_fast.validation import number

__all__ = ["CRITERION", "SanityCheck", "cascading_randomisation", "label_randomisation"]

CRITERION = 0.127
"""The greatest absolute mean rank correlation that passes: the greatest that P3 calls "not significant" (eq. 38)."""

Explanation = Callable[[Ranker, Tensor, Tensor], Mapping[str, Tensor]]
"""(ranker, first, second) -> named maps (N, 1, H, W)."""


@dataclass(frozen=True, eq=False, repr=False)
class SanityCheck(Result):
    """Rank correlations between the maps of the model and those of its randomised copies.

    Attributes:
        stages: what was randomised up to each stage, the first one last in the network.
        correlation: for each kind of map, Spearman's correlation, (stages, N); NaN if a map is constant.
    """

    stages: tuple[str, ...]
    correlation: Mapping[str, Tensor]

    def mean(self, name: str) -> Tensor:
        """(stages,): the mean over the pairs."""
        return self.correlation[name].nanmean(dim=1)

    def passes(self, name: str, criterion: float = CRITERION) -> bool:
        """Whether the mean correlation is at most the criterion, by absolute value, at every stage: P3 finds "no
        significant correlation between the original saliency map and the ones generated after randomization, even at
        the first step" (section 5.3.9).

        A map that was constant for every pair has no correlation, and does not pass.
        """
        return bool((self.mean(name).abs() <= number("criterion", criterion)).all())

    def verdict(self, name: str, criterion: float = CRITERION) -> str:
        """One sentence for a report."""
        means, criterion = self.mean(name), number("criterion", criterion)
        if bool(means.isnan().any()):
            stage = self.stages[int(means.isnan().nonzero()[0])]
            return f"The {name} map fails: after {stage} it is constant for every pair, so nothing can be compared."
        within = means.abs() <= criterion
        asked = f"(criterion, as in P3: at most {criterion:.3f} after every stage)"
        if bool(within.all()):
            worst = float(means.abs().max())
            return f"The {name} map passes: mean rank correlations of at most {worst:.2f} {asked}."
        worst = int(means.abs().argmax())
        return (
            f"The {name} map fails: mean rank correlation {float(means[worst]):.2f} after {self.stages[worst]}, "
            f"{float(means[-1]):.2f} with everything randomised {asked}."
        )


def cascading_randomisation(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    explain: Explanation,
    *,
    layers: Literal["all", "branch"] = "all",
    seed: int = 0,
) -> SanityCheck:
    """Re-initialises the layers that a ranking goes through, from the last up to the first, and explains after each.

    Args:
        ranker: is not changed; copies are randomised.
        first, second: the pairs.
        explain: makes the maps, for example by an attack of fixed steps.
        layers: for a Siamese ranker, "all" begins with the tail, and "branch" with the last layer of the branch, as in
            P3 ("flatten"). The decoder is not randomised, as in P3. For any other ranker all layers are.
        seed: of the new parameters; the caller's random state is not changed.
    """
    if layers not in ("all", "branch"):
        raise ValueError(f'cascading_randomisation: layers must be "all" or "branch" (got {layers!r})')
    reference = explain(ranker, first, second)
    randomised = copy.deepcopy(ranker)
    ranking: nn.Module = randomised
    if isinstance(randomised, SiameseRanker):
        has_tail = layers == "all" and any(True for _ in randomised.tail.parameters())
        ranking = randomised.branch
        if has_tail:
            ranking = nn.ModuleDict({"branch": randomised.branch, "tail": randomised.tail})
    stages: list[str] = []
    collected: dict[str, list[Tensor]] = {name: [] for name in reference}
    with seeded(seed, ranker.device):
        for stage in randomised_stages(ranking, seed=seed):
            stages.append(stage)
            for name, maps in explain(randomised, first, second).items():
                collected[name].append(rank_correlation(reference[name], maps))
    return SanityCheck(tuple(stages), {name: torch.stack(rows) for name, rows in collected.items()})


def label_randomisation(
    ranker: Ranker,
    relabelled: Ranker,
    first: Tensor,
    second: Tensor,
    explain: Explanation,
    *,
    kind: str = "randomised targets",
) -> SanityCheck:
    """Compares the maps with those of a network of the same architecture that was trained on shuffled targets.

    Train `relabelled` with the regime of `ranker`, on `RankedImages.with_shuffled_targets` as in P3, or on
    `with_shuffled_values`, which is a second kind. `kind` names the only stage.
    """
    reference, other = explain(ranker, first, second), explain(relabelled, first, second)
    correlation = {name: rank_correlation(maps, other[name])[None] for name, maps in reference.items()}
    return SanityCheck((kind,), correlation)
