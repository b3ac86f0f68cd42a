"""Adversarial attacks on the first image of a pair, or on its embedding: P3's Algorithms 1, 2 and 3 on N pairs at once.

The engine embeds the second images once, runs one forward and one backward pass for each step, and lets go of a pair
as soon as it has arrived. No pair sees another: what is in the batch changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from apem_fast import ops
from apem_fast.siamese.bracketing import meet_target
from apem_fast.siamese.checks import check_pairs, check_region, embed_images
from apem_fast.siamese.networks import Ranker

__all__ = ["AttackOptions", "AttackResult", "attack", "mid_point_attack"]


@dataclass(frozen=True)
class AttackOptions:
    """What an attack was asked to do; the arguments of `attack`, which documents them."""

    steps: int
    step_size: float
    damping: float = 0.0
    tv_force: float = 0.0
    zero_force: float = 0.0
    diff_force: float = 0.0
    space: Literal["input", "embedding"] = "input"
    bounds: tuple[float, float] | None = None
    stop_when_reached: bool = False
    precision: float = 1e-4
    perceptions_at: tuple[int, ...] = ()
    zero_surrogate: Literal["proximal", "none"] = "proximal"

    def __post_init__(self) -> None:
        def require(holds: bool, argument: str, expectation: str) -> None:
            if not holds:
                raise ValueError(f"attack: {argument} must {expectation} (got {getattr(self, argument)!r})")

        require(isinstance(self.steps, int) and self.steps >= 0, "steps", "be an integer of at least 0")
        require(self.step_size > 0 and math.isfinite(self.step_size), "step_size", "be greater than 0")
        require(self.precision > 0, "precision", "be greater than 0")
        for name in ("damping", "tv_force", "zero_force", "diff_force"):
            require(0 <= getattr(self, name) < math.inf, name, "be at least 0")
        require(self.space in ("input", "embedding"), "space", 'be "input" or "embedding"')
        require(self.zero_surrogate in ("proximal", "none"), "zero_surrogate", 'be "proximal" or "none"')
        require(
            all(isinstance(k, int) and 0 <= k <= self.steps for k in self.perceptions_at),
            "perceptions_at",
            f"be steps from 0 to {self.steps}",
        )
        if self.bounds is not None:
            require(len(self.bounds) == 2 and self.bounds[0] < self.bounds[1], "bounds", "be (lower, upper)")
        if self.space == "embedding":
            for name in ("tv_force", "zero_force", "diff_force"):
                require(getattr(self, name) == 0, name, "be 0 in embedding space, which has no pixels")

    @property
    def penalised(self) -> bool:
        return bool(self.tv_force or self.diff_force)


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to N pairs.

    Attributes:
        perturbed: the images A' (N, C, H, W), or in embedding space the embeddings (N, size).
        score: (N, steps + 1), the ranking before the first step and after each; a pair that stopped keeps its last.
        target: (N,), what the ranking was driven to.
        reached: (N,) bool, whether the last score is within `options.precision` of the target.
        steps_taken: (N,) int64; a step that was cut short at the target counts as one.
        distance: (N,), the l2 norm of A' - A, in units of the input (or embedding) space: P3's "distance travelled".
        total_variation, changed_pixels, mean_squared: (N,) float64, the terms of equation 25, exact; None in
            embedding space.
        perceptions: (N, K, C, H, W), the reconstructions after the K steps `options.perceptions_at`; None without.
        options: what was asked.
    """

    perturbed: Tensor
    score: Tensor
    target: Tensor
    reached: Tensor
    steps_taken: Tensor
    distance: Tensor
    total_variation: Tensor | None
    changed_pixels: Tensor | None
    mean_squared: Tensor | None
    perceptions: Tensor | None
    options: AttackOptions

    def __len__(self) -> int:
        return len(self.score)

    @property
    def score_before(self) -> Tensor:
        """(N,)."""
        return self.score[:, 0]

    @property
    def score_after(self) -> Tensor:
        """(N,)."""
        return self.score[:, -1]


def attack(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    target: float | Tensor,
    *,
    steps: int,
    step_size: float,
    damping: float = 0.0,
    tv_force: float = 0.0,
    zero_force: float = 0.0,
    diff_force: float = 0.0,
    region: Tensor | None = None,
    space: Literal["input", "embedding"] = "input",
    bounds: tuple[float, float] | None = None,
    stop_when_reached: bool = False,
    precision: float = 1e-4,
    perceptions_at: Sequence[int] = (),
    zero_surrogate: Literal["proximal", "none"] = "proximal",
    batch_size: int = 64,
    progress: bool = False,
) -> AttackResult:
    """Perturbs each first image until the pair is ranked as `target` says, and records what that took.

    Algorithm 2 as it stands; Algorithm 3 with forces, a region or damping; Algorithm 1 with `space="embedding"`. The
    texts write a plus sign before the gradient of a loss that has to become small, and MSE(A_m, target) where the
    prediction is meant: here the loss is (rank(A', B) - target)^2 + the penalties of equation 25, and each step is
    A' - (step_size * gradient + damping * previous gradient) (equation 26).

    Args:
        ranker: in evaluation mode. It comes back as it was: parameters, their gradients, mode, hooks.
        first, second: the pairs, (N, C, H, W) each. Only `first` is perturbed.
        target: in [0, 1]; one number or (N,).
        steps: at most so many.
        step_size: lambda, in units of the attacked space per unit of the loss's gradient.
        damping: what multiplies the previous gradient.
        tv_force, diff_force: what the total variation and the mean square of A' - A cost (equation 25).
        zero_force: what each changed pixel costs. The count has no gradient, which is why it does nothing in P3
            (section 5.3.8); `zero_surrogate="proximal"` descends it all the same, by its proximal operator: after
            each step, a pixel whose squared perturbation is at most 2 * step_size * zero_force returns to the
            original, exactly. A force that no pixel's step overcomes leaves the image as it was.
            `zero_surrogate="none"` is P3's behaviour.
        region: bool, (H, W), or (N or 1, C or 1, H, W): the pixels that may change. None for all.
        bounds: clamp A' to (lower, upper); P3 does not.
        stop_when_reached: a pair stops at the first step within `precision` of its target. A step that crosses the
            target is cut short where it meets it (by bracketing on that step, so without oscillation); whether the
            target was met is in `reached`.
        precision: of the ranking, on [0, 1].
        perceptions_at: steps (0 for the original) whose perceptions are kept.
        batch_size: pairs that run together; halved, and the run goes on, when memory does not suffice.
        progress: show a progress bar over the pairs.

    Returns:
        AttackResult, on the device of `first`.

    Raises:
        ValueError, TypeError: one sentence naming the argument, what was expected and what came.
    """
    options = AttackOptions(
        steps,
        step_size,
        damping,
        tv_force,
        zero_force,
        diff_force,
        space,
        bounds,
        stop_when_reached,
        precision,
        tuple(perceptions_at),
        zero_surrogate,
    )
    goal = check_pairs("attack", ranker, first, second, target)
    region = check_region("attack", region, first)
    if options.perceptions_at and not ranker.reconstructs:
        raise ValueError(f"attack: perceptions_at must be empty for a ranker without a decoder (got {perceptions_at})")
    if bounds is not None and space == "input" and bool(((first < bounds[0]) | (first > bounds[1])).any()):
        raise ValueError(
            f"attack: first must lie in bounds={bounds} (got min={float(first.min()):g}, max={float(first.max()):g})"
        )
    if space == "embedding" and region is not None:
        raise ValueError("attack: region must be None in embedding space, which has no pixels (got a mask)")

    def run(rows: slice) -> AttackResult:
        mask = region[rows] if region is not None and len(region) > 1 else region
        return _attack_batch(ranker, first[rows], second[rows], goal[rows], mask, options)

    return join_results(in_batches(run, len(first), batch_size, "attack" if progress else None))


def mid_point_attack(ranker: Ranker, first: Tensor, second: Tensor, **options) -> AttackResult:
    """`attack` to 0.5, "on the boundary of the two classes" (P3 section 4.4), stopping there. Arguments as
    `attack`'s."""
    return attack(ranker, first, second, 0.5, **{"stop_when_reached": True} | options)


# -- engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Underway:
    """The pairs of a batch that have not stopped; row i of every tensor belongs to pair `rows[i]`."""

    rows: Tensor
    point: Tensor  # A', or its embedding
    original: Tensor
    other: Tensor  # embedding of B
    target: Tensor
    region: Tensor | None
    gradient: Tensor | None = None  # of the previous step, where there is momentum
    before: Tensor | None = None  # the point and the score one step ago
    score: Tensor | None = None

    def only(self, rows: Tensor) -> _Underway:
        """The pairs in these rows. A region for all of them stays one."""

        def chosen(name: str) -> Tensor | None:
            value = getattr(self, name)
            return value if value is None or len(value) != len(self.rows) else value[rows]

        return _Underway(**{field.name: chosen(field.name) for field in fields(self)})


def _attack_batch(
    ranker: Ranker, first: Tensor, second: Tensor, target: Tensor, region: Tensor | None, options: AttackOptions
) -> AttackResult:
    with torch.inference_mode(False), torch.no_grad():
        in_pixels = options.space == "input"
        start = first.detach().clone() if in_pixels else embed_images("attack", ranker, first)
        embed = ranker.embed if in_pixels else _unchanged
        other = embed_images("attack", ranker, second)
        n, device = len(first), first.device
        pairs = _Underway(torch.arange(n, device=device), start, start, other, target, region)
        score = other.new_empty((n, options.steps + 1))
        final, taken = torch.empty_like(start), torch.zeros(n, dtype=torch.int64, device=device)
        perceived: dict[int, tuple[Tensor, Tensor]] = {}  # step -> rows, perceptions

        for step in range(options.steps + 1):
            is_last = step == options.steps
            with torch.set_grad_enabled(not is_last):
                point = pairs.point.detach().requires_grad_(not is_last)
                embedding = embed(point)
                value = ranker.rank_embeddings(embedding, pairs.other)
            reported = value.detach()
            arrived_at = uncut = point.detach()
            stopping = 0
            if options.stop_when_reached:
                stops, stopping, reported, arrived_at = _stop(
                    ranker, embed, pairs, reported, arrived_at, options.precision
                )
                is_last = is_last or stopping == len(stops)
            score[pairs.rows, step] = reported
            if step in options.perceptions_at:
                shown = embedding.detach() if arrived_at is uncut else embed(arrived_at)
                perceived[step] = pairs.rows, ranker.reconstruct(shown)
            if stopping or is_last:
                done = slice(None) if is_last else stops.nonzero()[:, 0]
                final[pairs.rows[done]], taken[pairs.rows[done]] = arrived_at[done], step
                score[pairs.rows[done], step:] = reported[done][:, None]
            if is_last:
                break
            gradient = _gradient(value, point, pairs, options)
            moved = _step(pairs, arrived_at, gradient, options)
            pairs = _Underway(
                pairs.rows,
                moved,
                pairs.original,
                pairs.other,
                pairs.target,
                pairs.region,
                gradient if options.damping else None,
                arrived_at,
                reported,
            )
            if stopping:
                pairs = pairs.only((~stops).nonzero()[:, 0])

        terms = ops.attack_penalty(final, start, 0.0, 0.0, 0.0)[1].unbind(1) if in_pixels else (None, None, None)
        return AttackResult(
            final,
            score,
            target,
            (score[:, -1] - target).abs() <= options.precision,
            taken,
            torch.linalg.vector_norm((final - start).flatten(1), dim=1),
            *terms,
            _perceptions(ranker, embed, final, perceived, options.perceptions_at),
            options,
        )


def _unchanged(embedding: Tensor) -> Tensor:
    return embedding


def _gradient(value: Tensor, point: Tensor, pairs: _Underway, options: AttackOptions) -> Tensor:
    """Of (prediction - target)^2 + the penalties of equation 25, for each pair on its own."""
    with torch.enable_grad():
        loss = (value - pairs.target).square().sum()
        if options.penalised:
            penalty, _ = ops.attack_penalty(point, pairs.original, options.tv_force, 0.0, options.diff_force)
            loss = loss + penalty.sum()
        return torch.autograd.grad(loss, point)[0]


def _step(pairs: _Underway, point: Tensor, gradient: Tensor, options: AttackOptions) -> Tensor:
    zero = options.zero_force if options.zero_surrogate == "proximal" else 0.0
    lower, upper = options.bounds or (None, None)
    moved = ops.attack_step(
        as_image(point),
        as_image(gradient),
        None if pairs.gradient is None else as_image(pairs.gradient),
        pairs.region,
        options.step_size,
        options.damping,
        lower,
        upper,
        as_image(pairs.original) if zero else None,
        zero,
    )
    return moved.flatten(1) if point.dim() == 2 else moved


def _stop(
    ranker: Ranker, embed: Callable, pairs: _Underway, score: Tensor, point: Tensor, precision: float
) -> tuple[Tensor, int, Tensor, Tensor]:
    """Which pairs stop here, how many these are, and the scores and points of all: where a step crossed the target,
    those at the crossing."""
    near = (score - pairs.target).abs() <= precision
    crossed = torch.zeros_like(near)
    if pairs.score is not None:
        crossed = (score - pairs.target) * (pairs.score - pairs.target) < 0
    # One read for both numbers: it is all that the host waits for in most steps.
    stopping, cutting = torch.stack([(near | crossed).sum(), (crossed & ~near).sum()]).tolist()
    if cutting:
        cut = (crossed & ~near).nonzero()[:, 0]
        point, score = point.clone(), score.clone()
        ends = (pairs.before[cut], point[cut]), (pairs.score[cut], score[cut])
        point[cut], score[cut] = meet_target(ranker, embed, *ends, pairs.other[cut], pairs.target[cut], precision)
    return near | crossed, stopping, score, point


def as_image(point: Tensor) -> Tensor:
    """Embeddings (N, size) as the (N, size, 1, 1) that the operators take."""
    return point[:, :, None, None] if point.dim() == 2 else point


def _perceptions(
    ranker: Ranker, embed: Callable, final: Tensor, perceived: dict[int, tuple[Tensor, Tensor]], at: tuple[int, ...]
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
    results, at = [], 0
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


def join_results(results: list[AttackResult]) -> AttackResult:
    if len(results) == 1:
        return results[0]

    def joined(name: str) -> Tensor | None:
        values = [getattr(result, name) for result in results]
        return None if values[0] is None else torch.cat(values)

    tensors = {field.name: joined(field.name) for field in fields(AttackResult) if field.name != "options"}
    return AttackResult(**tensors, options=results[0].options)
