"""Robustness-S: the least perturbation that flips, confined to the most relevant features or to all others.

Hsieh et al., "Evaluations and methods for explanation through robustness analysis" (ICLR 2021, arXiv:2006.00442). They
search for the least perturbation by an attack in all directions. Here it is searched along one ray: the sign gradient
within the set. So every number is an upper bound of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.measures.removal import ranks_of
from apem_fast.metric import Evaluator
from apem_fast.options import EngineOptions, documented
from apem_fast.probing.engine import Progress
from apem_fast.progress import shown
from apem_fast.results import TableResult, censored, counted
from apem_fast.results.plots import COLOURS, draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessResult(TableResult):
    """Upper bounds of the least perturbations of N images, for K sizes of the set (tensors are on the CPU)."""

    shares: Tensor  # (K,) float64: the share of the image that the set holds, ascending
    relevant: Tensor  # (N, K) float64: l2 norm of the perturbation of the set that flips, or of the last if none does
    complement: Tensor  # (N, K) float64: the same for all other features
    flipped_relevant: Tensor  # (N, K) bool; False: censored
    flipped_complement: Tensor  # (N, K) bool; False: censored
    labels: Tensor  # (N,) int64: the predictions
    probes: Tensor  # (N,) int64: model inputs that were run

    @property
    def area_relevant(self) -> Tensor:
        """Robustness-S, the mean of the curve over the range of shares: (N,) float64; small is good."""
        return self._mean_height(self.relevant)

    @property
    def area_complement(self) -> Tensor:
        """The same for the complement: (N,) float64; large is good."""
        return self._mean_height(self.complement)

    def _mean_height(self, curve: Tensor) -> Tensor:
        if len(self.shares) == 1:
            return curve[:, 0]
        return torch.trapezoid(curve, self.shares, dim=1) / (self.shares[-1] - self.shares[0])

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, both areas, how many of its rays are censored, and probes."""
        return {
            "label": self.labels,
            "robustness_s": self.area_relevant,
            "robustness_complement": self.area_complement,
            "censored": (~self.flipped_relevant).sum(dim=1) + (~self.flipped_complement).sum(dim=1),
            "probes": self.probes,
        }

    def _said(self) -> list[str]:
        means = f"{self.area_relevant.mean():.4g} of the set, {self.area_complement.mean():.4g} of the rest"
        rays = censored(self.flipped_relevant, self.flipped_complement)
        return [counted(len(self.labels), "image"), f"mean areas {means}", rays]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the perturbations of each image, of the most relevant features and of all others, and their means.

        The horizontal axis is the share of the image that the set holds. Without `ax`, into new axes.
        """
        axes = {"xlabel": "share of the image that the set holds", "ylabel": "l2 norm of the perturbation"}
        ax = draw_curves(ax, self.shares, self.relevant, label="the set", colour=COLOURS["epsilon_minus"], **axes)
        draw_curves(ax, self.shares, self.complement, label="the rest", colour=COLOURS["epsilon_plus"], **axes)
        ax.legend(frameon=False, fontsize="small")
        return ax


@documented()
@said_by("robustness_s")
def robustness_s(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    labels: Tensor | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> RobustnessResult:
    """The least perturbation that flips: of the k most relevant features alone, and of all others alone.

    For each share, S is the set of the floor(share * features) most relevant features (at least one, never all). It
    makes a map of zeros and ones, whose two rays are searched as in `apem`: x + epsilon / |S| * sign within S, and the
    same outside of it. The results are l2 norms of perturbations, as in the paper. Since only one ray is searched, they
    are upper bounds of the least perturbation in any direction. Each share of each image takes about 14 probes.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        shares: ascending, in (0, 1).
        labels, progress: as of `apem`.
        options: see `apem_fast.options.Options`; max_epsilon and step are l1 norms of the perturbation.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    evaluator = Evaluator(model, images, labels=labels, **options)
    return robustness_of_sets(evaluator, relevance, shares=shares, progress=progress)


def robustness_of_sets(
    evaluator: Evaluator, relevance: Tensor, *, shares: Sequence[float] = SHARES, progress: Progress | None = None
) -> RobustnessResult:
    """The second half of `robustness_s`, for an evaluator that exists: many maps of its images can share it."""
    images, sign = evaluator.images, evaluator.sign_gradient
    validation.map_of_images("relevance", relevance, images)
    given = [validation.positive("shares", share) for share in shares]
    if not given or any(share >= 1 for share in given) or sorted(set(given)) != given:
        came = ", ".join(f"{share:g}" for share in given)
        raise ValueError(sentence(f"shares must ascend within (0, 1) (got {came})"))
    features = relevance[0].numel()
    if features < 2:
        raise ValueError(sentence("relevance must have at least 2 values a map, or there is no complement (got 1)"))
    rank = ranks_of(relevance)
    sets = {repr(share): (rank < min(max(int(share * features), 1), features - 1)).to(images.dtype) for share in given}
    found = evaluator.apem(sets, progress)
    moved = (sign != 0).double()
    relevant: list[Tensor] = []
    complement: list[Tensor] = []
    for name, inside in sets.items():
        for curve, within, epsilon in (
            (relevant, inside, found[name].epsilon_minus),
            (complement, 1 - inside, found[name].epsilon_plus),
        ):
            size = within.double().expand_as(images).sum(dim=(1, 2, 3)).cpu()
            changed = (within * moved).sum(dim=(1, 2, 3)).cpu()
            curve.append(epsilon / size * changed.sqrt())
    return RobustnessResult(
        torch.tensor(given, dtype=torch.float64, device="cpu"),
        torch.stack(relevant, dim=1),
        torch.stack(complement, dim=1),
        torch.stack([found[name].flipped_minus for name in sets], dim=1),
        torch.stack([found[name].flipped_plus for name in sets], dim=1),
        evaluator.labels.cpu(),
        torch.stack([found[name].probes for name in sets]).sum(dim=0),
    )
