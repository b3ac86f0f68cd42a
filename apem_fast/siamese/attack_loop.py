"""The loop of P3's attacks: Algorithms 1, 2 and 3 on all pairs of a batch at once.

It embeds the second images once, runs one forward and one backward pass for each step, and removes a pair from the
batch as soon as it is done. Pairs do not affect one another: the rest of the batch only changes the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from apem_fast import ops
from apem_fast.siamese.automatic import Stride, sizes
from apem_fast.siamese.bounds import held, within
from apem_fast.siamese.bracketing import meet_target
from apem_fast.siamese.checks import check_rankings, embed_images
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.results import AttackOptions, AttackResult


@dataclass(frozen=True)
class _Underway:
    """The pairs of a batch that are not done; row i of every tensor belongs to pair `rows[i]`."""

    rows: Tensor
    point: Tensor  # A', or its embedding
    original: Tensor
    other: Tensor  # embedding of B
    target: Tensor
    limit: Tensor  # distance at which it stops
    region: Tensor | None
    previous: Tensor | None = None  # what damping multiplies, where there is momentum
    before: Tensor | None = None  # the point and the score one step ago
    score: Tensor | None = None

    def only(self, rows: Tensor) -> _Underway:
        """The pairs in these rows. A region that all pairs share is kept."""

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return value if value is None or len(value) != len(self.rows) else value[rows]

        return _Underway(**{field.name: chosen(field.name) for field in fields(self)})


@dataclass(frozen=True)
class _Record:
    """The rankings, distances and ends of all N pairs so far."""

    score: Tensor  # (N, steps + 1)
    distances: Tensor  # (N, steps + 1)
    final: Tensor
    taken: Tensor
    perceived: dict[int, tuple[Tensor, Tensor]]  # step -> rows, perceptions

    @classmethod
    def begin(cls, start: Tensor, steps: int, dtype: torch.dtype) -> _Record:
        score = start.new_zeros((len(start), steps + 1), dtype=dtype)
        taken = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        return cls(score, torch.zeros_like(score), torch.empty_like(start), taken, {})

    def keep(self, step: int, rows: Tensor, score: Tensor, travelled: Tensor) -> None:
        self.score[rows, step], self.distances[rows, step] = score, travelled.to(score.dtype)

    def finish(self, step: int, rows: Tensor, point: Tensor) -> None:
        """Ends these pairs at their points; their last rankings and distances are repeated to the end."""
        self.final[rows], self.taken[rows] = point, step
        for values in (self.score, self.distances):
            values[rows, step:] = values[rows, step, None]


def attack_batch(
    ranker: Ranker, first: Tensor, second: Tensor, target: Tensor, region: Tensor | None, options: AttackOptions
) -> AttackResult:
    """The attack on the pairs of one batch. The arguments are those of `attack`, already checked."""
    with torch.inference_mode(False), torch.no_grad():
        in_pixels = options.space == "input"
        start = first.detach().clone() if in_pixels else embed_images("attack", ranker, first)
        embed = ranker.embed if in_pixels else _unchanged
        other = embed_images("attack", ranker, second)
        limit = _limit(start, options)
        rows = torch.arange(len(first), device=first.device)
        pairs = _Underway(rows, start, start, other, target, limit, region)
        record = _Record.begin(start, options.steps, other.dtype)
        stride: Stride | None = None

        for step in range(options.steps + 1):
            is_last = step == options.steps
            with torch.set_grad_enabled(not is_last):
                point = pairs.point.detach().requires_grad_(not is_last)
                embedding = embed(point)
                value = ranker.rank_embeddings(embedding, pairs.other)
            if step == 0:
                check_rankings("attack", value, len(first), differentiable=not is_last)
            stopped = _stop(ranker, embed, pairs, value.detach(), point.detach(), options)
            reported, arrived_at, stopping = stopped.score, stopped.point, stopped.count
            is_last = is_last or stopping == len(pairs.rows)
            record.keep(step, pairs.rows, reported, stopped.travelled)
            if step in options.perceptions_at:
                shown = embed(arrived_at) if stopped.moved else embedding.detach()
                record.perceived[step] = pairs.rows, ranker.reconstruct(shown)
            if is_last:
                record.finish(step, pairs.rows, arrived_at)
                break
            if stopping:
                done = stopped.pairs.nonzero()[:, 0]
                record.finish(step, pairs.rows[done], arrived_at[done])
            gradient = _gradient(value, point, pairs, options)
            if options.automatic:
                if stride is None:
                    stride = Stride.begin(pairs.original, reported, pairs.target, options.steps)
                else:
                    assert pairs.score is not None  # of the step before
                    stride.learn(pairs.score, reported, pairs.target)
                gradient = _free(gradient, arrived_at, pairs.region, options)
                gradient = stride.along(gradient, reported, pairs.target)
            moved = _step(pairs, arrived_at, gradient, options)
            previous = None
            if options.damping:
                previous = gradient if options.momentum == "gradient" else arrived_at - moved
            pairs = replace(pairs, point=moved, previous=previous, before=arrived_at, score=reported)
            if stopping:
                going = (~stopped.pairs).nonzero()[:, 0]
                pairs = pairs.only(going)
                stride = None if stride is None else stride.only(going)

        return _result(ranker, embed, record, start, target, limit, options)


def _result(
    ranker: Ranker,
    embed: Callable[[Tensor], Tensor],
    record: _Record,
    start: Tensor,
    target: Tensor,
    limit: Tensor,
    options: AttackOptions,
) -> AttackResult:
    """The result of a finished attack, with the penalties of its last images."""
    final, score = record.final, record.score
    tv, changed, mean_squared = (
        ops.attack_penalty(final, start, 0.0, 0.0, 0.0)[1].unbind(1) if options.space == "input" else (None, None, None)
    )
    return AttackResult(
        final.contiguous(),
        score,
        record.distances,
        target,
        (score[:, -1] - target).abs() <= options.precision,
        record.taken,
        limit,
        tv,
        changed,
        mean_squared,
        _perceptions(ranker, embed, final, record.perceived, options.perceptions_at),
        options,
    )


def _unchanged(embedding: Tensor) -> Tensor:
    return embedding


def _limit(start: Tensor, options: AttackOptions) -> Tensor:
    if options.max_distance is None and options.automatic:
        return sizes(start)
    return start.new_full((len(start),), math.inf if options.max_distance is None else options.max_distance)


def _gradient(value: Tensor, point: Tensor, pairs: _Underway, options: AttackOptions) -> Tensor:
    """The gradient of (prediction - target)^2 + the penalties of equation 25, for each pair separately.

    For automatic steps it is divided by 2 * |prediction - target|. This is the gradient of that distance, which does
    not vanish near the target.
    """
    with torch.enable_grad():
        gap = value - pairs.target
        loss = gap.abs().sum() if options.automatic else gap.square().sum()
        if options.penalised:
            force = options.diff_force * (point[0].numel() if options.diff_reduction == "sum" else 1)
            penalty, _ = ops.attack_penalty(point, pairs.original, options.tv_force, 0.0, force)
            if options.automatic:
                penalty = penalty / (2 * gap.detach().abs()).clamp(min=options.precision)
            loss = loss + penalty.sum()
        return torch.autograd.grad(loss, point)[0]


def _free(gradient: Tensor, point: Tensor, region: Tensor | None, options: AttackOptions) -> Tensor:
    """The gradient of the pixels that may change: those in the region, and not those that bounds hold."""
    if region is not None:
        gradient = torch.where(region, gradient, 0)
    stuck = held(options.bounds, point, gradient)
    return gradient if stuck is None else torch.where(stuck, 0, gradient)


def _step(pairs: _Underway, point: Tensor, gradient: Tensor, options: AttackOptions) -> Tensor:
    zero = options.zero_force if options.zero_surrogate == "proximal" else 0.0
    lower, upper = options.bounds or (None, None)
    by_channel = isinstance(lower, tuple) or isinstance(upper, tuple)
    moved = ops.attack_step(
        _as_image(point),
        _as_image(gradient),
        None if pairs.previous is None else _as_image(pairs.previous),
        pairs.region,
        1.0 if isinstance(options.step_size, str) else options.step_size,
        options.damping,
        None if isinstance(lower, tuple) else lower,
        None if isinstance(upper, tuple) else upper,
        _as_image(pairs.original) if zero else None,
        zero,
    )
    moved = moved.flatten(1) if point.dim() == 2 else moved
    if by_channel:
        clamped = within(options.bounds, moved)
        moved = clamped if pairs.region is None else torch.where(pairs.region, clamped, moved)
    return moved


@dataclass(frozen=True)
class _Stopped:
    """The pairs that stop at a step, their number, and the points of all pairs.

    If a step crossed the target, the point is the crossing.
    """

    pairs: Tensor
    count: int
    score: Tensor
    point: Tensor
    travelled: Tensor
    moved: bool = False  # some points are not those that were ranked


def _stop(
    ranker: Ranker,
    embed: Callable[[Tensor], Tensor],
    pairs: _Underway,
    score: Tensor,
    point: Tensor,
    options: AttackOptions,
) -> _Stopped:
    travelled = _distance(point, pairs.original)
    far = travelled >= pairs.limit
    if not options.stop_when_reached:
        count = int(far.sum()) if options.automatic or options.max_distance is not None else 0
        return _Stopped(far, count, score, point, travelled)
    near = (score - pairs.target).abs() <= options.precision
    crossed = torch.zeros_like(near)
    if pairs.score is not None:
        crossed = (score - pairs.target) * (pairs.score - pairs.target) < 0
    stops = near | crossed | far
    # One read for both numbers: it is all that the host waits for in most steps.
    count, cutting = torch.stack([stops.sum(), (crossed & ~near).sum()]).tolist()
    if cutting:
        cut = (crossed & ~near).nonzero()[:, 0]
        point, score = point.clone(), score.clone()
        assert pairs.before is not None and pairs.score is not None  # there was a step to cross the target in
        ends = (pairs.before[cut], point[cut]), (pairs.score[cut], score[cut])
        point[cut], score[cut] = meet_target(
            ranker, embed, *ends, pairs.other[cut], pairs.target[cut], options.precision
        )
        travelled = _distance(point, pairs.original)
    return _Stopped(stops, count, score, point, travelled, bool(cutting))


def _distance(point: Tensor, original: Tensor) -> Tensor:
    return torch.linalg.vector_norm((point - original).flatten(1), dim=1)


def _as_image(point: Tensor) -> Tensor:
    """Embeddings (N, size) as the (N, size, 1, 1) that the operators take."""
    return point[:, :, None, None] if point.dim() == 2 else point


def _perceptions(
    ranker: Ranker,
    embed: Callable[[Tensor], Tensor],
    final: Tensor,
    perceived: dict[int, tuple[Tensor, Tensor]],
    at: tuple[int, ...],
) -> Tensor | None:
    """The perceptions kept during the attack, (N, K, C, H, W); for a pair that had stopped, its last one."""
    if not at:
        return None
    ends = ranker.reconstruct(embed(final))
    kept = ends[:, None].repeat(1, len(at), *[1] * (ends.dim() - 1))
    for column, step in enumerate(at):
        if step in perceived:
            rows, images = perceived[step]
            kept[rows, column] = images
    return kept
