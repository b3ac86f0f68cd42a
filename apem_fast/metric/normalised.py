"""APEM normalised by shuffled maps: how much better than chance a relevance map is (P2 section 5.2, Table 5.1).

A shuffled map has the same values as the map, but no explanation left, so its epsilons say how easily the image itself
flips. Dividing by them makes scores of different images, models and methods comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.metric.evaluator import Evaluator
from apem_fast.metric.results import ApemResult
from apem_fast.options import EngineOptions, Options, documented
from apem_fast.probing.engine import Progress
from apem_fast.probing.siblings import find_least_flips
from apem_fast.progress import shown
from apem_fast.relevance import shuffled
from apem_fast.results import TableResult, censored, counted
from apem_fast.results.plots import COLOURS, draw_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAPS_AT_ONCE = 64  # shuffled maps in memory: 40 MB of 3 x 224 x 224


# -- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class ShuffledEpsilons(TableResult):
    """The least epsilon over the shuffles of each map (all tensors are (N,), on the CPU)."""

    epsilon_minus: Tensor  # float64: the least at which one of the shuffled maps flips the image
    epsilon_plus: Tensor  # float64: the same for the irrelevance of the same shuffled maps
    flipped_minus: Tensor  # bool; False: censored, no shuffle flips up to max_epsilon
    flipped_plus: Tensor  # bool; False: censored
    probes: Tensor  # int64: model inputs that were run for all of the image's shuffles
    shuffles: int

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        names = ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "probes")
        return {name: getattr(self, name) for name in names}

    def _said(self) -> list[str]:
        rays = censored(self.flipped_minus, self.flipped_plus)
        return [counted(len(self.probes), "image"), counted(self.shuffles, "shuffle"), rays]

    def normalised_score(self, result: ApemResult) -> Tensor:
        """epsilon_plus / epsilon_shuffle_plus - epsilon_minus / epsilon_shuffle_minus, (N,) float64, of the maps that
        were shuffled."""
        return result.epsilon_plus / self.epsilon_plus - result.epsilon_minus / self.epsilon_minus


@dataclass(frozen=True, eq=False, repr=False)
class ApemNormResult(TableResult):
    """The metric of N images, and of shuffles of their maps."""

    apem: ApemResult  # of the maps as they are
    shuffled: ShuffledEpsilons

    @property
    def score(self) -> Tensor:
        """epsilon_plus / epsilon_shuffle_plus - epsilon_minus / epsilon_shuffle_minus, (N,) float64."""
        return self.shuffled.normalised_score(self.apem)

    @property
    def censored(self) -> Tensor:
        """Whether any of the four epsilons is censored, so that the score is not exact: (N,) bool."""
        plain, chance = self.apem, self.shuffled
        return ~(plain.flipped_minus & plain.flipped_plus & chance.flipped_minus & chance.flipped_plus)

    @property
    def mean(self) -> float:
        """APEM_norm, P2 section 5.2: the mean score over the images."""
        return float(self.score.mean())

    @property
    def median(self) -> float:
        """The median score, the mean of the middle two for an even number of images."""
        return float(np.median(self.score.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        shuffles = {f"shuffled_{name}": values for name, values in self.shuffled._columns().items()}
        return {**self.apem._columns(), **shuffles, "score_norm": self.score}

    def _said(self) -> list[str]:
        said = [counted(len(self.score), "image"), f"mean score_norm {self.mean:.5g}", f"median {self.median:.5g}"]
        inexact = f"{int(self.censored.sum()):,} not exact"
        return [*said, inexact, counted(self.shuffled.shuffles, "shuffle"), f"max_epsilon={self.apem.max_epsilon:g}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Both epsilons of each image, and the least ones of its shuffled maps as ticks of the same colours; into new
        matplotlib axes if none are given."""
        chance = (
            ("ε⁻ of shuffled maps", COLOURS["epsilon_minus"], self.shuffled.epsilon_minus),
            ("ε⁺ of shuffled maps", COLOURS["epsilon_plus"], self.shuffled.epsilon_plus),
        )
        return self.apem.plot(draw_ticks(ax, chance, order=self.apem.score))


# -- the measure -------------------------------------------------------------------------------------------------


@documented()
@said_by("apem_norm")
def apem_norm(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    shuffles: int = 10,
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> ApemNormResult:
    """APEM of `relevance` relative to shuffled maps (P2 section 5.2).

    Each map is shuffled `shuffles` times: all its values, across channels too, are put in random order. The shuffle's
    irrelevance is 1 minus the shuffle. An image's shuffled epsilons are the least over its shuffles, and the score is
    epsilon_plus / epsilon_shuffle_plus - epsilon_minus / epsilon_shuffle_minus. A map that is no better than chance
    scores near 0. The least of ten shuffled epsilons is smaller than a typical one, which enlarges the scores.

    Args:
        shuffles: of each map; P2 has ten.
        generator: one number is drawn from it to seed the shuffles; None gives the same shuffles every time. The
            shuffles of a map depend only on the map and that number, not on the other images.
        progress: True for a line on standard error, or a function called with (rays decided, rays in all, probes so
            far), which include the shuffles' rays.

        options: see `apem_fast.options.Options`; shuffles are always probed in float32.

    The other arguments and the errors are those of `apem`. The generator is advanced; nothing else is changed.
    """
    progress = shown(progress)
    validation.whole("shuffles", shuffles)
    validation.not_certified(Options.of(**options).policy, "of shuffled maps")
    seed = _seed_of(generator)
    evaluator = Evaluator(model, images, labels=labels, **options)
    own = 2 * len(images)
    total = own * (1 + shuffles)
    plain = evaluator.apem(
        {"relevance": relevance}, progress and (lambda done, _, probes: progress(done, total, probes))
    )["relevance"]
    before = int(plain.probes.sum())
    chance = shuffled_epsilons(
        evaluator,
        relevance,
        shuffles=shuffles,
        seed=seed,
        progress=progress and (lambda done, _, probes: progress(own + done, total, before + probes)),
    )
    return ApemNormResult(plain, chance)


@said_by("shuffled_epsilons")
def shuffled_epsilons(
    evaluator: Evaluator,
    relevance: Tensor,
    *,
    shuffles: int = 10,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> ShuffledEpsilons:
    """The shuffled epsilons of `apem_norm`, for an evaluator that exists already: many maps of its images can share it.

    A shuffle's ray is searched only up to the nearest flip found on the others, and only a few images' shuffles are in
    memory at a time.

    Args:
        evaluator: of the images.
        relevance: (N, 1, H, W) or (N, C, H, W) in [0, 1]; none all 0 or all 1.
        shuffles: of each map.
        seed: of the shuffles, any integer.
        progress: True for a line on standard error, or a function called with (rays decided, rays in all, probes so
            far).
    """
    progress = shown(progress)
    validation.whole("shuffles", shuffles)
    validation.not_certified(evaluator.options.policy, "of shuffled maps")
    validation.relevance(relevance, evaluator.images)
    maps, options = relevance.detach(), evaluator.options
    count, per_image = len(maps), 2 * shuffles
    step, flipped = np.zeros((count, 2), np.int64), np.zeros((count, 2), bool)
    probes = np.zeros((count, 2), np.int64)
    for chunk in _chunks(count, max(1, MAPS_AT_ONCE // shuffles)):
        here = chunk.stop - chunk.start
        rays = evaluator.rays(
            torch.cat([shuffled(maps[chunk], seed, k) for k in range(shuffles)]),
            np.tile(np.arange(chunk.start, chunk.stop), shuffles),
        )
        rays = replace(
            rays,
            images=rays.images[chunk],
            labels=rays.labels[chunk],
            sign=rays.sign[chunk],
            above=None if rays.above is None else rays.above[chunk],
            image=rays.image - chunk.start,
        )

        def report(
            done: int, _: int, probes_here: int, start: int = chunk.start, before: int = int(probes.sum())
        ) -> None:
            if progress is not None:
                progress(start * per_image + done, count * per_image, before + probes_here)

        with evaluator.probing_exactly(rays) as prober:
            least = find_least_flips(
                prober,
                2 * rays.image + rays.irrelevance,
                options.policy,
                step=options.step,
                last_step=options.last_step,
                progress=report,
            )
        for table, column in ((step, least.step), (flipped, least.flipped), (probes, least.probes)):
            table[chunk] = column.reshape(here, 2)
    epsilon = torch.from_numpy(step * options.step)
    seen = torch.from_numpy(flipped)
    return ShuffledEpsilons(
        epsilon[:, 0], epsilon[:, 1], seen[:, 0], seen[:, 1], torch.from_numpy(probes.sum(axis=1)), shuffles
    )


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _seed_of(generator: torch.Generator | None) -> int:
    if generator is None:
        return 0
    if not isinstance(generator, torch.Generator):
        raise TypeError(sentence(f"generator must be a torch.Generator or None (got {type(generator).__name__})"))
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
