"""The options and the results of an attack, and the words for how each pair ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from apem_fast.results import TableResult, counted
from apem_fast.validation import make_numbers_plain

if TYPE_CHECKING:
    import pandas

__all__ = ["AttackOptions", "AttackResult", "Bounds", "join_results"]

Bounds = tuple[float | tuple[float, ...], float | tuple[float, ...]]
"""(lower, upper) of the attacked values; each one number, or one for each channel."""

LITTLE = 0.01  # a ranking that has come less than this share of the way to the target counts as not moved


@dataclass(frozen=True)
class AttackOptions:
    """The options of an attack: the arguments of `attack`, which documents them."""

    steps: int
    step_size: float | Literal["auto"]
    damping: float = 0.0
    momentum: Literal["gradient", "classical"] = "gradient"
    tv_force: float = 0.0
    zero_force: float = 0.0
    diff_force: float = 0.0
    diff_reduction: Literal["mean", "sum"] = "mean"
    space: Literal["input", "embedding"] = "input"
    bounds: Bounds | None = None
    stop_when_reached: bool = False
    max_distance: float | None = None
    precision: float = 1e-4
    perceptions_at: tuple[int, ...] = ()
    zero_surrogate: Literal["proximal", "none"] = "proximal"

    def __post_init__(self) -> None:
        make_numbers_plain(self)

        def require(holds: bool, argument: str, expectation: str) -> None:
            if not holds:
                raise ValueError(f"attack: {argument} must {expectation} (got {getattr(self, argument)!r})")

        def among(argument: str, *values: str) -> None:
            require(getattr(self, argument) in values, argument, "be " + " or ".join(f'"{value}"' for value in values))

        require(isinstance(self.steps, int) and self.steps >= 0, "steps", "be an integer of at least 0")
        if isinstance(self.step_size, str):
            require(self.step_size == "auto", "step_size", 'be greater than 0, or "auto"')
        else:
            require(0 < self.step_size < math.inf, "step_size", "be greater than 0")
        require(self.precision > 0, "precision", "be greater than 0")
        require(self.max_distance is None or self.max_distance > 0, "max_distance", "be greater than 0, or None")
        for name in ("damping", "tv_force", "zero_force", "diff_force"):
            require(0 <= getattr(self, name) < math.inf, name, "be at least 0")
        among("space", "input", "embedding")
        among("zero_surrogate", "proximal", "none")
        among("momentum", "gradient", "classical")
        among("diff_reduction", "mean", "sum")
        require(
            all(isinstance(k, int) and 0 <= k <= self.steps for k in self.perceptions_at),
            "perceptions_at",
            f"be steps from 0 to {self.steps}",
        )
        if self.space == "embedding":
            for name in ("tv_force", "zero_force", "diff_force"):
                require(getattr(self, name) == 0, name, "be 0 in embedding space, which has no pixels")
        if self.automatic:
            if self.damping and self.momentum == "gradient":
                raise ValueError(
                    'attack: momentum must be "classical" with step_size="auto", because P3\'s formula adds a gradient '
                    f'that no step size scales (got momentum="gradient", damping={self.damping:g})'
                )
            if self.zero_force and self.zero_surrogate == "proximal":
                raise ValueError(
                    f"attack: step_size must be a number with zero_force, whose proximal operator is scaled by it "
                    f'(got "auto", zero_force={self.zero_force:g})'
                )

    @property
    def automatic(self) -> bool:
        return self.step_size == "auto"

    @property
    def penalised(self) -> bool:
        return bool(self.tv_force or self.diff_force)


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult(TableResult):
    """The result of an attack on N pairs.

    Attributes:
        perturbed: the images A' (N, C, H, W), or in embedding space the embeddings (N, size).
        score: (N, steps + 1), the ranking before the first step and after each; a pair that stopped keeps its last.
        distances: (N, steps + 1), the l2 norm of A' - A at the same points, in units of the input (or embedding) space.
        target: (N,), the target of each ranking.
        reached: (N,) bool, whether the last score is within `options.precision` of the target.
        steps_taken: (N,) int64; a step that was cut short at the target counts as one.
        limit: (N,), the distance at which each pair was to stop; infinite without one.
        total_variation, changed_pixels, mean_squared: (N,) float64, the terms of equation 25, exact; None in
            embedding space.
        perceptions: (N, K, C, H, W), the reconstructions after the K steps `options.perceptions_at`; None without.
        options: of the attack.
    """

    perturbed: Tensor
    score: Tensor
    distances: Tensor
    target: Tensor
    reached: Tensor
    steps_taken: Tensor
    limit: Tensor
    total_variation: Tensor | None
    changed_pixels: Tensor | None
    mean_squared: Tensor | None
    perceptions: Tensor | None
    options: AttackOptions

    def __len__(self) -> int:
        return len(self.score)

    @property
    def distance(self) -> Tensor:
        """The last distance of A' from A, P3's "distance travelled": (N,)."""
        return self.distances[:, -1]

    @property
    def score_before(self) -> Tensor:
        """The ranking before the first step: (N,)."""
        return self.score[:, 0]

    @property
    def score_after(self) -> Tensor:
        """The ranking after the last step: (N,)."""
        return self.score[:, -1]

    @property
    def outcome(self) -> tuple[str, ...]:
        """How each pair ended, in a word or two.

        "reached"; "no gradient": nothing moved, because the ranking does not depend on the pixels that may change;
        "limit": it moved as far as it was allowed; "overshoots": the ranking oscillates around the target, so the steps
        are too long; "hardly moves": the ranking came less than a hundredth of the way; "stalls": the last quarter of
        the steps brought it no nearer, so the target may be out of reach; "steps used up": it was still on its way.
        """
        columns = (self.reached, self.distances, self.score, self.target, self.limit)
        reached, distances, score, target, limit = (part.detach().cpu() for part in columns)
        gap = score - target[:, None]
        swings = (gap[:, 1:] * gap[:, :-1] < 0).sum(dim=1)
        # Less than LITTLE of the way, or than the precision, as if a force as strong as the target holds it.
        hardly = gap[:, -1].abs() > (1 - LITTLE) * gap[:, 0].abs()
        late = gap[:, -1 - (gap.shape[1] - 1) // 4].abs() - gap[:, -1].abs() < LITTLE * gap[:, 0].abs()
        moved = distances[:, -1] > 0
        words = []
        for i in range(len(self)):
            if reached[i]:
                words.append("reached")
            elif not moved[i]:
                words.append("no gradient")
            elif distances[i, -1] >= limit[i] * (1 - 1e-6):
                words.append("limit")
            elif swings[i] > 1:
                words.append("overshoots")
            else:
                words.append("hardly moves" if hardly[i] else "stalls" if late[i] else "steps used up")
        return tuple(words)

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        columns: dict[str, Any] = {}
        for name in ("score_before", "score_after", "target", "reached", "outcome", "steps_taken", "distance"):
            columns[name] = getattr(self, name)
        for name in ("total_variation", "changed_pixels", "mean_squared"):
            if getattr(self, name) is not None:
                columns[name] = getattr(self, name)
        return {name: one.detach().cpu() if isinstance(one, Tensor) else one for name, one in columns.items()}

    def _said(self) -> list[str]:
        reached = f"{int(self.reached.sum()):,} reached the target"
        return [counted(len(self), "pair"), reached, f"mean distance {float(self.distance.mean()):.4g}"]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each pair: its rankings, how it ended, and how much was changed."""
        return super().to_dataframe().rename_axis("pair")

    def path(self) -> pandas.DataFrame:
        """One row for each pair and step that it took: pair, step, score, distance."""
        import pandas

        taken = self.steps_taken.tolist()
        score, distances = self.score.detach().cpu().tolist(), self.distances.detach().cpu().tolist()
        rows = [(i, k, score[i][k], distances[i][k]) for i, last in enumerate(taken) for k in range(last + 1)]
        return pandas.DataFrame(rows, columns=["pair", "step", "score", "distance"])


def join_results(results: Sequence[AttackResult]) -> AttackResult:
    """Joins the results of batches into one."""
    if len(results) == 1:
        return results[0]

    def joined(name: str) -> Tensor | None:
        values = [getattr(result, name) for result in results]
        return None if values[0] is None else torch.cat(values)

    tensors: dict[str, Any] = {f.name: joined(f.name) for f in fields(AttackResult) if f.name != "options"}
    return AttackResult(**tensors, options=results[0].options)
