"""Shuffled maps beside each map: how far a map with the same values and no explanation left gets (P2 section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apem_fast.metric import ApemResult, Evaluator
from apem_fast.relevance import shuffled


@dataclass(frozen=True)
class ShuffledResult:
    """The least epsilons over the shuffles of each image's map (all tensors are (N,), on the CPU): a flip of any of
    them sets the epsilon."""

    epsilon_minus: Tensor  # float64, on the shuffled relevance's ray; max_epsilon where none flips
    epsilon_plus: Tensor  # float64, on the shuffled irrelevance's ray
    flipped_minus: Tensor  # bool: whether any shuffle flips
    flipped_plus: Tensor  # bool
    probes: Tensor  # int64, of all shuffles

    def normalised_score(self, result: ApemResult) -> Tensor:
        """epsilon_plus / its shuffled value - epsilon_minus / its shuffled value, (N,): a term of APEM_norm."""
        return result.epsilon_plus / self.epsilon_plus - result.epsilon_minus / self.epsilon_minus


def shuffled_results(
    evaluator: Evaluator,
    maps: Mapping[str, Tensor],
    shuffles: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, ShuffledResult]:
    """`shuffles` shuffles of each set of maps, measured; one shuffle of all sets is in memory at a time.

    Args:
        evaluator: of the maps' images.
        maps: by name, as `Evaluator.apem` takes them.
        shuffles: at least 1.
        seed: of the shuffles; a map's shuffles depend on nothing else but the map.
        progress: called with (shuffles measured, probes so far).
    """
    found: dict[str, ShuffledResult] = {}
    for shuffle in range(shuffles):
        results = evaluator.apem({name: shuffled(map_, seed, shuffle) for name, map_ in maps.items()})
        for name, result in results.items():
            one = ShuffledResult(
                result.epsilon_minus, result.epsilon_plus, result.flipped_minus, result.flipped_plus, result.probes
            )
            found[name] = _least(found[name], one) if name in found else one
        if progress is not None:
            progress(shuffle + 1, sum(int(one.probes.sum()) for one in found.values()))
    return found


def _least(a: ShuffledResult, b: ShuffledResult) -> ShuffledResult:
    return ShuffledResult(
        torch.minimum(a.epsilon_minus, b.epsilon_minus),
        torch.minimum(a.epsilon_plus, b.epsilon_plus),
        a.flipped_minus | b.flipped_minus,
        a.flipped_plus | b.flipped_plus,
        a.probes + b.probes,
    )
