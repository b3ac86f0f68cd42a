"""Margins at chosen epsilons along the two rays of a relevance map, and the perturbed images there.

The metric reports only where a ray first flips. This module shows the whole ray: how the margin falls, whether it rises
again, and what the model sees. All epsilons are in the space of the model's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.metric import Evaluator
from apem_fast.options import RUNNING, Options, RunningOptions, documented
from apem_fast.probing.prober import answered
from apem_fast.results import Result
from apem_fast.results.plots import COLOURS, GREY, axes_or_new, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class MarginCurve(Result):
    """Margins along both rays of M maps at K epsilons each; float64, on the CPU.

    The margin is the logit of the prediction minus the best other logit. Below 0 the prediction has changed.
    """

    epsilon_minus: Tensor  # (M, K)
    margin_minus: Tensor  # (M, K), along the relevance
    epsilon_plus: Tensor  # (M, K)
    margin_plus: Tensor  # (M, K), along the irrelevance

    def plot(self, ax: Axes | None = None, map: int = 0) -> Axes:
        """Draw the margins along both rays of one map; the prediction changes at 0. Without `ax`, into new axes."""
        ax = axes_or_new(ax)
        for name, way in (("minus", "along the relevance"), ("plus", "along the irrelevance")):
            epsilon, margin = getattr(self, f"epsilon_{name}")[map], getattr(self, f"margin_{name}")[map]
            ax.plot(epsilon.numpy(), margin.numpy(), color=COLOURS[f"epsilon_{name}"], label=way)
        ax.axhline(0, color=GREY, linewidth=1)
        ax.set_xlabel("ε, in l1 of the model's input")
        ax.set_ylabel("margin")
        ax.legend(frameon=False, fontsize="small")
        return quiet(ax, "both")


@documented(RUNNING)
class RayView:
    """Both rays of M relevance maps. The sign gradients are computed once, when it is made.

    Args:
        model, images: as for `apem`.
        relevance: (M, 1, H, W) or (M, C, H, W) in [0, 1]; none all 0 or all 1.
        image_of_map: (M,), the row of `images` that each map is of; None: map i is of image i, and M = N.
        options: those of `apem_fast.options.Options` that say how the model is run; margins are always float32's.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """

    @said_by("RayView")
    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        relevance: Tensor,
        *,
        image_of_map: Tensor | None = None,
        **options: Unpack[RunningOptions],
    ):
        Options.of(RUNNING, **options)
        evaluator = Evaluator(model, images, **options)
        of_map = torch.arange(len(images), device="cpu") if image_of_map is None else image_of_map.cpu()
        if of_map.dim() != 1 or not bool(((of_map >= 0) & (of_map < len(images))).all()):
            raise ValueError(
                sentence(f"image_of_map must name rows of images, 0 to {len(images) - 1} (got {of_map.tolist()})")
            )
        validation.relevance(relevance, images[of_map])
        self._evaluator, self._rays = evaluator, evaluator.rays(relevance.detach(), of_map.numpy())

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the predictions that are explained."""
        return self._rays.labels

    @property
    def margins_at_zero(self) -> Tensor:
        """(M,) float64, on the CPU: the margin of each map's image as it is."""
        return torch.from_numpy(self._rays.margin[::2].copy())

    @said_by("RayView.margins")
    def margins(self, epsilon_minus: Tensor, epsilon_plus: Tensor | None = None) -> MarginCurve:
        """The margin at each epsilon along the relevance rays and along the irrelevance rays.

        Args:
            epsilon_minus: (K,), or (M, K) for epsilons of each map's own; finite, at least 0.
            epsilon_plus: the same for the irrelevance rays; None takes `epsilon_minus`.
        """
        maps = len(self._rays.relevance)
        minus = _epsilons("epsilon_minus", epsilon_minus, maps)
        plus = minus if epsilon_plus is None else _epsilons("epsilon_plus", epsilon_plus, maps)
        margins = []
        with self._evaluator.probing(self._rays) as prober:
            for offset, epsilon in enumerate((minus, plus)):
                ray = np.repeat(2 * np.arange(maps) + offset, epsilon.shape[1])
                answers = answered(prober, ray, epsilon.flatten().numpy())
                margins.append(torch.from_numpy(answers.margin).view(epsilon.shape))
        return MarginCurve(minus, margins[0], plus, margins[1])

    @said_by("RayView.perturbed")
    def perturbed(self, epsilon: Tensor, *, irrelevance: bool = False) -> Tensor:
        """The images x + epsilon * direction, (M, C, H, W), with one epsilon for each map.

        Args:
            epsilon: (M,), finite, at least 0.
            irrelevance: along 1 - R in place of R.
        """
        rays, chosen = self._rays, self._one_each(epsilon)
        maps, device, mine = len(chosen), rays.images.device, slice(int(irrelevance), None, 2)
        return rays.inputs(
            torch.from_numpy(rays.norm[mine].copy()).to(device),
            torch.from_numpy(rays.image[mine].copy()).to(device),
            torch.arange(maps, device=device),
            torch.full((maps,), irrelevance, device=device),
            chosen.to(device),
            torch.zeros(maps, dtype=torch.float64, device=device),
        )

    @said_by("RayView.predictions")
    def predictions(self, epsilon: Tensor, *, irrelevance: bool = False) -> Tensor:
        """The class predicted at those points, (M,) int64 on the CPU, as decided by the answer of record.

        The arguments are those of `perturbed`.
        """
        ray = 2 * np.arange(len(self._rays.relevance)) + int(irrelevance)
        with self._evaluator.probing_exactly(self._rays) as prober:
            return torch.from_numpy(prober.predictions(ray, self._one_each(epsilon).numpy()))

    def _one_each(self, epsilon: Tensor) -> Tensor:
        """(M,) float64 on the CPU."""
        maps = len(self._rays.relevance)
        if epsilon.shape != (maps,):
            raise ValueError(
                sentence(f"epsilon must have shape ({maps},), one for each map (got {tuple(epsilon.shape)})")
            )
        return _epsilons("epsilon", epsilon, 1)[0]


@documented(RUNNING)
@said_by("margin_curve")
def margin_curve(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    epsilon_minus: Tensor,
    epsilon_plus: Tensor | None = None,
    **options: Unpack[RunningOptions],
) -> MarginCurve:
    """The margin at each epsilon along both rays of each map.

    Args:
        options: those of `apem_fast.options.Options` that say how the model is run.

    The other arguments are those of `RayView` and its `margins`.
    """
    return RayView(model, images, relevance, **options).margins(epsilon_minus, epsilon_plus)


def _epsilons(name: str, values: object, maps: int) -> Tensor:
    """(maps, K) float64 on the CPU."""
    if not isinstance(values, Tensor):
        raise TypeError(sentence(f"{name} must be a tensor (got {type(values).__name__})"))
    if values.dim() not in (1, 2) or (values.dim() == 2 and len(values) != maps):
        raise ValueError(sentence(f"{name} must have shape (K,) or ({maps}, K) (got {tuple(values.shape)})"))
    epsilon = values.detach().to("cpu", torch.float64)
    if not bool((epsilon.isfinite() & (epsilon >= 0)).all()):
        raise ValueError(sentence(f"{name} must be finite and at least 0 (got {float(epsilon.min()):g} at the least)"))
    return epsilon.expand(maps, -1).contiguous()
