"""Adversarial attacks on the first image of a pair, or on its embedding: P3's Algorithms 1, 2 and 3 on N pairs at once.

The engine embeds the second images once, runs one forward and one backward pass for each step, and lets go of a pair
as soon as it has arrived. No pair sees another: what is in the batch changes nothing but rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from apem_fast import ops
from apem_fast.siamese.automatic import Stride, sizes
from apem_fast.siamese.bounds import Limit, check_bounds, held, within
from apem_fast.siamese.bracketing import meet_target
from apem_fast.siamese.checks import check_pairs, check_rankings, check_region, embed_images
from apem_fast.siamese.layout import channels_last_on_cpu, usual_batch
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.results import AttackOptions, AttackResult, join_results

__all__ = ["attack", "mid_point_attack"]


def attack(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    target: float | Tensor,
    *,
    steps: int = 100,
    step_size: float | Literal["auto"] = "auto",
    damping: float = 0.0,
    momentum: Literal["gradient", "classical"] = "gradient",
    tv_force: float = 0.0,
    zero_force: float = 0.0,
    diff_force: float = 0.0,
    diff_reduction: Literal["mean", "sum"] = "mean",
    region: Tensor | None = None,
    space: Literal["input", "embedding"] = "input",
    bounds: tuple[Limit, Limit] | None = None,
    stop_when_reached: bool = False,
    max_distance: float | None = None,
    precision: float = 1e-4,
    perceptions_at: Sequence[int] = (),
    zero_surrogate: Literal["proximal", "none"] = "proximal",
    batch_size: int | None = None,
    progress: bool = False,
) -> AttackResult:
    """Perturbs each first image until the pair is ranked as `target` says, and records what that took.

    Algorithm 2 as it stands; Algorithm 3 with forces, a region or damping; Algorithm 1 with `space="embedding"`. The
    texts write a plus sign before the gradient of a loss that has to become small, and MSE(A_m, target) where the
    prediction is meant: here the loss is (rank(A', B) - target)^2 + the penalties of equation 25, and each step is
    A' - (step_size * gradient + damping * previous gradient) (equation 26).

    Args:
        ranker: in evaluation mode. It comes back as it was: parameters, their gradients, mode, hooks.
        first, second: the pairs, (N, C, H, W) each; of two sizes, where the network takes both. Only `first` is
            perturbed; `wrapped.Swapped(ranker)` with the images the other way round perturbs the other.
        target: in [0, 1]; one number or (N,).
        steps: at most so many.
        step_size: lambda, in units of the attacked space per unit of the loss's gradient: P3's. A number that suits
            one network does nothing on another. "auto" finds the length of each step of each pair from the gradient
            (`automatic.py`), on any network, along the same gradients.
        damping: what multiplies the previous gradient, or the previous step.
        momentum: P3's formula and its prose disagree. "gradient" is the formula, equation 26 and Algorithm 3: the
            previous gradient times `damping`, whatever the step size. "classical" is the prose, "a fraction of the
            previous variation that was applied": the previous change of A' times `damping`, which gathers from step
            to step and reaches farther. With "auto", a step along the gradient takes its length before this is added.
        tv_force, diff_force: what the total variation and the mean square of A' - A cost (equation 25).
        diff_reduction: "mean" is equation 25's word; "sum" takes the sum of squares over the image instead, which is
            how P3 defines MSE for images where it trains (section 4.7): C * H * W times as much.
        zero_force: what each changed pixel costs. The count has no gradient, which is why it does nothing in P3
            (section 5.3.8); `zero_surrogate="proximal"` descends it all the same, by its proximal operator: after
            each step, a pixel whose squared perturbation is at most 2 * step_size * zero_force returns to the
            original, exactly. A force that no pixel's step overcomes leaves the image as it was.
            `zero_surrogate="none"` is P3's behaviour.
        region: bool, (H, W), or (N or 1, C or 1, H, W): the pixels that may change. None for all.
        bounds: clamp A' to (lower, upper), each one number or one for each channel, in the space of `first`:
            `bounds.normalised_bounds(mean, std)` are those of pixels in [0, 1] for a network that takes normalised
            images. P3 does not clamp.
        stop_when_reached: a pair stops at the first step within `precision` of its target. A step that crosses the
            target is cut short where it meets it (by bracketing on that step, so without oscillation); whether the
            target was met is in `reached`.
        max_distance: a pair also stops at the first step that takes it at least so far from A, in the l2 norm: P3's
            criterion "based on how much the result deviates from the original" (section 5.3.3). None is no limit for a
            numeric step size, and for "auto" the norm of A: as much change as there is image.
        precision: of the ranking, on [0, 1].
        perceptions_at: steps (0 for the original) whose perceptions are kept.
        batch_size: pairs that run together; halved, and the run goes on, when memory does not suffice. None for what
            suits the images' size.
        progress: show a progress bar over the pairs.

    Returns:
        AttackResult, on the device of `first`. Its `outcome` says how each pair ended.

    Raises:
        ValueError, TypeError: one sentence naming the argument, what was expected and what came.

    Warns:
        UserWarning: a numeric step size overshoots, or hardly moves the ranking, on some of the pairs.
    """
    goal = check_pairs("attack", ranker, first, second, target)
    limits = check_bounds("attack", bounds, first if space == "input" else first.flatten(1))
    options = AttackOptions(
        steps=steps,
        step_size=step_size,
        damping=damping,
        momentum=momentum,
        tv_force=tv_force,
        zero_force=zero_force,
        diff_force=diff_force,
        diff_reduction=diff_reduction,
        space=space,
        bounds=limits,
        stop_when_reached=stop_when_reached,
        max_distance=max_distance,
        precision=precision,
        perceptions_at=tuple(perceptions_at),
        zero_surrogate=zero_surrogate,
    )
    mask = check_region("attack", region, first)
    if options.perceptions_at and not ranker.reconstructs:
        raise ValueError(f"attack: perceptions_at must be empty for a ranker without a decoder (got {perceptions_at})")
    if space == "embedding" and mask is not None:
        raise ValueError("attack: region must be None in embedding space, which has no pixels (got a mask)")

    with torch.inference_mode(False), channels_last_on_cpu(ranker, first, second) as memory_format:

        def run(rows: slice) -> AttackResult:
            part = mask[rows] if mask is not None and len(mask) > 1 else mask
            a, b = (each[rows].detach().contiguous(memory_format=memory_format) for each in (first, second))
            return _attack_batch(ranker, a, b, goal[rows], part, options)

        size = usual_batch(first) if batch_size is None else batch_size
        result = join_results(in_batches(run, len(first), size, "attack" if progress else None))
    _warn_of_step_size(result)
    return result


def mid_point_attack(ranker: Ranker, first: Tensor, second: Tensor, **options: Any) -> AttackResult:
    """`attack` to 0.5, "on the boundary of the two classes" (P3 section 4.4), stopping there. Arguments as
    `attack`'s."""
    return attack(ranker, first, second, 0.5, **({"stop_when_reached": True} | options))


def _warn_of_step_size(result: AttackResult) -> None:
    options = result.options
    if options.automatic or options.steps < 2:
        return
    outcome = result.outcome
    for word, why in (("overshoots", "is too long for"), ("hardly moves", "is too short for")):
        if word in outcome:
            warnings.warn(
                f"attack: step_size={options.step_size:g} {why} {outcome.count(word)} of {len(outcome)} pairs: the "
                f'ranking {"swings around the target" if word == "overshoots" else "hardly moves"}; step_size="auto" '
                f"finds one for each",
                stacklevel=3,
            )


# -- engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Underway:
    """The pairs of a batch that have not stopped; row i of every tensor belongs to pair `rows[i]`."""

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
        """The pairs in these rows. A region for all of them stays one."""

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return value if value is None or len(value) != len(self.rows) else value[rows]

        return _Underway(**{field.name: chosen(field.name) for field in fields(self)})


@dataclass(frozen=True)
class _Record:
    """What is known of all N pairs so far."""

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
        """These pairs end at their points; their rankings and distances stay what they were kept as."""
        self.final[rows], self.taken[rows] = point, step
        for values in (self.score, self.distances):
            values[rows, step:] = values[rows, step, None]


def _attack_batch(
    ranker: Ranker, first: Tensor, second: Tensor, target: Tensor, region: Tensor | None, options: AttackOptions
) -> AttackResult:
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
                check_rankings("attack", value, len(first))
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
            pairs = _Underway(
                pairs.rows,
                moved,
                pairs.original,
                pairs.other,
                pairs.target,
                pairs.limit,
                pairs.region,
                previous,
                arrived_at,
                reported,
            )
            if stopping:
                going = (~stopped.pairs).nonzero()[:, 0]
                pairs = pairs.only(going)
                stride = None if stride is None else stride.only(going)

        final, score = record.final, record.score
        tv, changed, mean_squared = (
            ops.attack_penalty(final, start, 0.0, 0.0, 0.0)[1].unbind(1) if in_pixels else (None, None, None)
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
    """Of (prediction - target)^2 + the penalties of equation 25, for each pair on its own.

    For automatic steps it is divided by 2 * |prediction - target|, which is the gradient of that distance and does not
    vanish on the way.
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
    """The gradient of what may change: within the region, and not against the bounds."""
    if region is not None:
        gradient = torch.where(region, gradient, 0)
    stuck = held(options.bounds, point, gradient)
    return gradient if stuck is None else torch.where(stuck, 0, gradient)


def _step(pairs: _Underway, point: Tensor, gradient: Tensor, options: AttackOptions) -> Tensor:
    zero = options.zero_force if options.zero_surrogate == "proximal" else 0.0
    lower, upper = options.bounds or (None, None)
    by_channel = isinstance(lower, tuple) or isinstance(upper, tuple)
    moved = ops.attack_step(
        as_image(point),
        as_image(gradient),
        None if pairs.previous is None else as_image(pairs.previous),
        pairs.region,
        1.0 if isinstance(options.step_size, str) else options.step_size,
        options.damping,
        None if isinstance(lower, tuple) else lower,
        None if isinstance(upper, tuple) else upper,
        as_image(pairs.original) if zero else None,
        zero,
    )
    moved = moved.flatten(1) if point.dim() == 2 else moved
    if by_channel:
        clamped = within(options.bounds, moved)
        moved = clamped if pairs.region is None else torch.where(pairs.region, clamped, moved)
    return moved


@dataclass(frozen=True)
class _Stopped:
    """Which of the pairs underway stop at a step, how many, and where all of them are: at the crossing of the target,
    where a step crossed it."""

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
        assert pairs.before is not None
        assert pairs.score is not None
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


def as_image(point: Tensor) -> Tensor:
    """Embeddings (N, size) as the (N, size, 1, 1) that the operators take."""
    return point[:, :, None, None] if point.dim() == 2 else point


def _perceptions(
    ranker: Ranker,
    embed: Callable[[Tensor], Tensor],
    final: Tensor,
    perceived: dict[int, tuple[Tensor, Tensor]],
    at: tuple[int, ...],
) -> Tensor | None:
    """(N, K, C, H, W): the perceptions kept on the way; a pair that had stopped by then shows where it stopped."""
    if not at:
        return None
    ends = ranker.reconstruct(embed(final))
    kept = ends[:, None].repeat(1, len(at), *[1] * (ends.dim() - 1))
    for column, step in enumerate(at):
        if step in perceived:
            rows, images = perceived[step]
            kept[rows, column] = images
    return kept


def in_batches(
    run: Callable[[slice], AttackResult], count: int, batch_size: int, progress: str | None
) -> list[AttackResult]:
    """`run` over consecutive rows. Out of memory halves the batch and goes on; nothing computed is lost."""
    if batch_size < 1:
        raise ValueError(f"attack: batch_size must be at least 1 (got {batch_size})")
    results: list[AttackResult] = []
    at = 0
    with tqdm(total=count, desc=progress, disable=progress is None, leave=False) as bar:
        while at < count or not results:
            rows = slice(at, min(at + batch_size, count))
            try:
                results.append(run(rows))
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            bar.update(rows.stop - at)
            at = rows.stop
    return results
