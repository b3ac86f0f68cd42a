"""The explanation filter: sets the least values of a relevance map to 0 while its score does not drop.

P1 section III-B; P2 Algorithm 2 does it one level at a time. `levels` has the norms of a map at each level, and
`level_search` decides which levels must be probed. This file runs the probes through the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.filter.level_ray import LevelMargin, LevelProbe, LevelSearch
from apem_fast.filter.level_search import Filtered, Start, filter_levels
from apem_fast.filter.levels import IRRELEVANCE, Levels, count_levels, levels_of
from apem_fast.filter.results import FilterResult, ScoreCurve
from apem_fast.filter.stopping import Stop, StoppingRule
from apem_fast.metric import Evaluator
from apem_fast.options import EngineOptions, Options, documented
from apem_fast.probing.engine import Progress
from apem_fast.probing.level_prober import GRADIENT_COST, LevelProber
from apem_fast.probing.rays import Rays
from apem_fast.progress import shown
from apem_fast.running.waiting import Waiting, in_turns
from apem_fast.search import CENSORED, Exhaustive, Resumable, warn_of_slow_way

PROBES_PER_LEVEL = 4  # the usual number: two on each ray
# A margin close to 0 is run alone and so does not depend on the batch, but rounding still makes it jump from one level
# to the next. Seen on EfficientNet-Lite0: up to 1e-6 of the greatest logit, a sixteenth of what `PlainRunner.noise`
# allows.
JUMP = 1 / 4
LEVELS_AHEAD = 16  # the most levels of one map in one round, since work beyond the first drop is lost
# Levels are probed ahead only if the batch holds so many times what is needed: on a CPU each probe costs time.
SPARE = 4


@documented()
@said_by("filter_relevance")
def filter_relevance(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    labels: Tensor | None = None,
    levels: int | None = None,
    min_drop: float = 0.0,
    patience: int = 0,
    against: Literal["previous", "start"] = "previous",
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> FilterResult:
    """Sets the least values of each map to 0, level by level, while its score does not drop (P2 Algorithm 2).

    A level is one distinct positive value of the map. The score of each level is compared with that of the level
    before, in whole steps of the grid. The result is the last map before the first drop; if the first level already
    drops, it is the map itself. The level that would empty a map is never taken. Scores of two levels can be compared
    only if the same rays are censored at both; the filter stops where that changes, and says so. P2 section 4.5 filters
    the 1-channel map of the gradient after the clip at the 99th percentile.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) in [0, 1]; none constant.
        labels: the predictions, if known; an error if they are not the model's.
        levels: the number of steps into which each map's levels are grouped, each with equally many distinct values;
            None is the paper's, one value for each step.
        min_drop: a score that falls by no more than this does not count as a drop.
        patience: a lower score counts as a drop only if it stays low for so many further levels. 0 is the paper's: the
            first fall ends the filter.
        against: what a score is compared with. "previous" is the level before, as in the paper: a score may then sink
            by less than `min_drop` again and again, and a fall counts even after a rise. "start" is the original map:
            the filtered map then scores no less than that, up to `min_drop`.
        progress: True for a line on standard error, or a function called with (levels settled, levels in all, probes
            so far) after every round; all levels of an image that has stopped count as settled.
        options: see `apem_fast.options.Options`, except `precision`: levels are always probed in float32. With
            search="exhaustive" every grid point up to the flip is probed at every level; with "isolate" the same flips
            are found, and levels are skipped if bounds show that no flip can change there.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    levels = validation.whole_or_none("levels", levels)
    min_drop = validation.min_drop(min_drop)
    patience = validation.whole("patience", patience, least=0)
    validation.choice("against", against, validation.AGAINST)
    precision = options.get("precision", "float32")
    if precision != "float32":
        raise ValueError(sentence(f'precision must be "float32", the only one that the filter has (got "{precision}")'))
    validation.not_certified(Options.of(**options).policy, "of filtered maps")
    evaluator = Evaluator(model, images, labels=labels, **options)
    validation.relevance(relevance, images)
    validation.contrast(relevance)
    rays = evaluator.rays(relevance.detach(), np.arange(len(relevance)))
    policy = evaluator.options.policy
    if not isinstance(policy, (Resumable, Exhaustive)):  # no warning for the papers' scan: whoever asks for it knows
        warn_of_slow_way(
            "filter_relevance",
            policy,
            "cannot continue from a neighbouring level (it has no `resume` and `finer`)",
            'every level is searched anew; search="isolate" settles most levels without a probe, `levels` groups them',
        )
    with evaluator.probing_exactly(rays) as prober:
        # A quotient like 0.3 / 0.1 is just below the whole number that is meant.
        most_lost = math.floor(min_drop / evaluator.options.step * (1 + 1e-12))
        rule = StoppingRule(evaluator.options.last_step, most_lost, patience, against)
        run = _FilterLoop(evaluator, LevelProber(prober), rays, levels, rule, progress)
        run.until_settled()
    return run.result()


@dataclass
class _Track:
    """One map whose levels are being searched."""

    levels: Levels
    search: LevelSearch[Filtered]
    wanted: list[LevelProbe]


_Wanted = tuple[int, Levels, LevelProbe]
"""A probe that a map's search wants: the map's row, its levels, the probe."""


class _FilterLoop:
    """The loop between the level searches of many maps and the model: each round runs the probes that they want."""

    def __init__(
        self,
        evaluator: Evaluator,
        prober: LevelProber,
        rays: Rays,
        steps: int | None,
        rule: StoppingRule,
        progress: Progress | None,
    ):
        maps = len(rays.relevance)
        self._options, self._labels, self._relevance = evaluator.options, evaluator.labels, rays.relevance
        self._prober, self._rays, self._record = prober, rays, evaluator.record
        self._steps, self._rule, self._progress = steps, rule, progress
        self._waiting = list(range(maps))[::-1]  # rows of relevance that no lane has taken yet
        self._answers: dict[int, _Answer] = {}
        self._settled = np.zeros(maps, np.int64)
        self._levels = np.array([count_levels(values, steps) for values in self._relevance])
        self._probes = np.zeros(maps, np.int64)

    def until_settled(self) -> None:
        in_turns([self._lane() for _ in range(self._prober.lanes)])

    def _lane(self) -> Waiting[None]:
        """Takes as many maps as fill a batch, and replaces those that are done, until none is left."""
        tracks: dict[int, _Track] = {}  # by row of relevance
        while self._waiting or tracks:
            while self._waiting and len(tracks) < max(1, self._prober.size // PROBES_PER_LEVEL):
                self._begin(self._waiting.pop(), tracks)
            yield from self._round(tracks)
            if self._progress is not None:
                self._progress(int(self._settled.sum()), int(self._levels.sum()), int(self._probes.sum()))

    def _begin(self, i: int, tracks: dict[int, _Track]) -> None:
        levels = levels_of(self._relevance[i], self._rays.images.shape[1], self._steps)
        slope = self._rays.slope[2 * i : 2 * i + 2] * self._options.step
        start = Start(float(self._rays.margin[2 * i]), (float(slope[0]), float(slope[1])))

        def settled(level: int) -> None:
            self._settled[i] = level

        def room() -> int:
            """How many levels of each ray fill the next batch."""
            return min(LEVELS_AHEAD, max(1, self._prober.size // (SPARE * PROBES_PER_LEVEL * max(1, len(tracks)))))

        search = filter_levels(self._options.policy, levels, start, self._rule, room, settled)
        tracks[i] = _Track(levels, search, next(search))

    def _round(self, tracks: dict[int, _Track]) -> Waiting[None]:
        """Runs the probes that all these searches want, and sends them the answers."""
        wanted = [(i, track.levels, probe) for i, track in tracks.items() for probe in track.wanted]
        rays, epsilon = self._probed([entry for entry in wanted if not entry[2].gradient])
        answers = yield from self._prober.answers(rays, epsilon)
        np.add.at(self._probes, rays.image, answers.probes)
        gradients = [self._gradient(entry) for entry in wanted if entry[2].gradient]
        if gradients:
            yield
        jumps = (answers.noise * JUMP).tolist()
        measured = map(LevelMargin, answers.margin.tolist(), answers.flipped.tolist(), jumps)
        drifts = map(self._drift, (entry for entry in wanted if entry[2].gradient), gradients)
        margins = [next(drifts) if entry[2].gradient else next(measured) for entry in wanted]
        at = 0
        for i, track in list(tracks.items()):
            end = at + len(track.wanted)
            try:
                track.wanted = track.search.send(margins[at:end])
            except StopIteration as stop:
                del tracks[i]
                self._settled[i] = self._levels[i]
                self._answers[i] = self._answer(track.levels, stop.value)
            at = end

    def _probed(self, entries: Sequence[_Wanted]) -> tuple[Rays, NDArray[np.float64]]:
        """The rays of these probes, one each, and their epsilons."""
        rays = self._prober.rays(
            np.array([i for i, _, _ in entries], np.int64),
            irrelevance=np.array([p.ray == IRRELEVANCE for _, _, p in entries], bool),
            norm=np.array([levels.norm[p.level, p.ray] for _, levels, p in entries], np.float64),
            level=np.array([levels.threshold[p.level] for _, levels, p in entries], np.float64),
        )
        return rays, np.array([p.step for _, _, p in entries], np.float64) * self._options.step

    def _gradient(self, entry: _Wanted) -> Tensor:
        rays, epsilon = self._probed([entry])
        self._probes[rays.image] += GRADIENT_COST
        return self._prober.margin_gradient(rays, float(epsilon[0]))

    def _drift(self, entry: _Wanted, gradient: Tensor) -> LevelMargin:
        """The margin at every other level, as a gradient predicts it."""
        _, levels, probe = entry
        drift = levels.along(gradient.cpu().numpy(), probe.ray) * self._options.step
        return LevelMargin(math.nan, False, 0.0, drift)

    def _answer(self, levels: Levels, filtered: Filtered) -> _Answer:
        level, minus, plus = (torch.tensor(column, device="cpu") for column in zip(*filtered.changes))

        def epsilon(first_flip: Tensor) -> Tensor:
            return (
                torch.where(first_flip == CENSORED, self._options.last_step, first_flip).double() * self._options.step
            )

        curve = ScoreCurve(
            level,
            torch.from_numpy(levels.zeroed)[level],
            torch.from_numpy(levels.removed_share)[level],
            epsilon(minus),
            epsilon(plus),
            minus != CENSORED,
            plus != CENSORED,
        )
        ending = filtered.ending
        kept = int((level <= ending.level).nonzero()[-1])
        return _Answer(
            threshold=float(levels.threshold[ending.level]),
            score_before=float(curve.score[0]),
            score_after=float(curve.score[kept]),
            levels_removed=ending.level,
            removed=int(levels.zeroed[ending.level]),
            removed_share=float(levels.removed_share[ending.level]),
            stop=ending.stop,
            fell=math.nan if ending.fall is None else ending.fall.steps * self._options.step,
            deciding_margin=filtered.margin,
            curve=curve,
        )

    def result(self) -> FilterResult:
        answers = [self._answers[i] for i in range(len(self._relevance))]

        def column(name: str) -> Tensor:
            return torch.tensor([getattr(answer, name) for answer in answers], device="cpu")

        def real(name: str) -> Tensor:
            return torch.tensor([getattr(answer, name) for answer in answers], dtype=torch.float64, device="cpu")

        threshold = real("threshold").to(self._relevance.device, self._relevance.dtype)[:, None, None, None]
        return FilterResult(
            relevance=torch.where(self._relevance <= threshold, 0, self._relevance),
            score_before=real("score_before"),
            score_after=real("score_after"),
            levels=torch.from_numpy(self._levels),
            levels_removed=column("levels_removed"),
            removed=column("removed"),
            removed_share=real("removed_share"),
            probes=torch.from_numpy(self._probes),
            stopped=tuple(answer.stop for answer in answers),
            fell=real("fell"),
            deciding_margin=real("deciding_margin"),
            curves=tuple(answer.curve for answer in answers),
            labels=self._labels.cpu(),
            record=self._record,
        )


@dataclass(frozen=True)
class _Answer:
    """The result of one map."""

    threshold: float  # values up to this one become 0
    score_before: float
    score_after: float
    levels_removed: int
    removed: int
    removed_share: float
    stop: Stop
    fell: float
    deciding_margin: float
    curve: ScoreCurve
