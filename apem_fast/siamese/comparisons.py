"""Do the explanations agree with each other and with the model? P3's comparisons of section 5.3, measured.

Maps are compared by Spearman's rank correlation and perturbations by the angle between them, for each pair on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apem_fast.ops import saliency_map
from apem_fast.results import Result
from apem_fast.running.undisturbed import no_autocast
from apem_fast.siamese.attacking import attack, mid_point_attack
from apem_fast.siamese.checks import check_pairs, embed_images
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.one_step import one_step_attack
from apem_fast.siamese.results import AttackResult
from apem_fast.siamese.saliency import superpixel_maximum
from apem_fast.similarity import rank_correlation

__all__ = [
    "AttackComparison",
    "angle",
    "compare_kinds",
    "compare_mid_point_and_boundary",
    "compare_one_and_many_steps",
    "irrelevant_inputs",
    "masking_agreement",
    "masking_importance",
    "mid_point_sensitivity",
]


def angle(first: Tensor, second: Tensor) -> Tensor:
    """(N, ...), (N, ...) -> (N,) float64: degrees between perturbations; NaN where one of them is 0."""
    u, v = first.double().flatten(1), second.double().flatten(1)
    u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
    v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True)
    # Not the arc cosine of the product: near 0 degrees it keeps half of the digits.
    half = torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1)
    return torch.rad2deg(2 * torch.atan2(*half))


@dataclass(frozen=True, eq=False, repr=False)
class AttackComparison(Result):
    """Two attacks on the same N pairs.

    Attributes:
        first, second: the attacks.
        angle: (N,) float64 on the CPU, degrees between the two perturbations.
        correlation: (N,) float64 on the CPU, Spearman's, between the two saliency maps.
    """

    first: AttackResult
    second: AttackResult
    angle: Tensor
    correlation: Tensor

    @property
    def mean_angle(self) -> float:
        return float(self.angle.nanmean())

    @property
    def mean_correlation(self) -> float:
        return float(self.correlation.nanmean())


def _compare(images: Tensor, first: AttackResult, second: AttackResult) -> AttackComparison:
    maps = [saliency_map(images, result.perturbed) for result in (first, second)]
    turned = angle(first.perturbed - images, second.perturbed - images).cpu()
    return AttackComparison(first, second, turned, rank_correlation(*maps))


def compare_one_and_many_steps(
    ranker: Ranker, first: Tensor, second: Tensor, target: float, *, steps: int, **options: Any
) -> AttackComparison:
    """A many-step attack, and the one-step attack of the same length (P3 section 5.3.4). The options are `attack`'s.

    The difference between the two depends on the distance: the first gradient is right for a small change, and the path
    bends as the ranking approaches its target. On the digits ranker the angle is 3 degrees when the ranking has moved
    by 0.01, 20 at 0.1, and 60 at the end of a 300-step attack to 0. P3 gives 14 degrees without a distance; figures can
    be compared only at the same distance.
    """
    many = attack(ranker, first, second, target, steps=steps, **options)
    return _compare(first, one_step_attack(ranker, first, second, target, distance=many.distance), many)


def compare_mid_point_and_boundary(
    ranker: Ranker, first: Tensor, second: Tensor, *, steps: int, **options: Any
) -> AttackComparison:
    """The mid-point attack, and the attack to the end of the range beyond the mid-point (P3 section 5.3.6)."""
    middle = mid_point_attack(ranker, first, second, steps=steps, **options)
    beyond = (middle.score_before < 0.5).to(first.dtype)
    return _compare(first, middle, attack(ranker, first, second, beyond, steps=steps, **options))


def compare_kinds(ranker: Ranker, first: Tensor, second: Tensor, *, steps: int, **options: Any) -> dict[str, Tensor]:
    """The perturbed images of the four attacks that P3 section 5.3.6 relates (Figure 46), (N, C, H, W) each.

    They are many steps (m) and one step (m') to the mid-point, many steps to the boundary beyond it (b), and one step
    of the same length (s). P3 claims that the maps of all four may be used for that of m', "the unspoiled source of
    explanation": m' and s lie on one line, so that their maps are equal unless values are clamped, and m lies on the
    way to b.
    """
    middle = mid_point_attack(ranker, first, second, steps=steps, **options)
    beyond = (middle.score_before < 0.5).to(first.dtype)
    boundary = attack(ranker, first, second, beyond, steps=steps, **options)
    return {
        "mid-point, one step": one_step_attack(ranker, first, second, 0.5).perturbed,
        "mid-point, many steps": middle.perturbed,
        "boundary, one step": one_step_attack(ranker, first, second, beyond, distance=boundary.distance).perturbed,
        "boundary, many steps": boundary.perturbed,
    }


def irrelevant_inputs(
    ranker: Ranker, perturbed: Tensor, second: Tensor, *, values: int = 5, batch_size: int = 256
) -> Tensor:
    """The inputs that cannot change a mid-point ranking at all (P3 section 5.3.5, second part).

    "For features for which the gradient is zero, we should check, for every other possible value assignment, if there
    exists a configuration such that the prediction switches class." If there is one, the sample was at a stationary
    point, and the feature belongs to the explanation.

    Args:
        perturbed: the images of a mid-point attack, (N, C, H, W).
        second: the other images of the pairs.
        values: how many values are tried for each input without a gradient, evenly spaced from 0 to 1.

    Returns:
        (N, C, H, W) bool: the inputs without a gradient for which no value changes the ranking.
    """
    without = ~mid_point_sensitivity(ranker, perturbed, second)
    result = torch.zeros_like(without)
    levels = torch.linspace(0, 1, values, dtype=perturbed.dtype, device=perturbed.device)
    with torch.no_grad():
        other = ranker.embed(second)
        score = ranker.rank_embeddings(ranker.embed(perturbed), other)
        for i in range(len(perturbed)):
            places = without[i].flatten().nonzero()[:, 0]
            for part in places.split(max(1, batch_size // values)):
                tried = perturbed[i].flatten().repeat(len(part) * values, 1)
                rows = torch.arange(len(tried), device=tried.device)
                tried[rows, part.repeat_interleave(values)] = levels.repeat(len(part))
                embedded = ranker.embed(tried.view(-1, *perturbed.shape[1:]))
                changed = ranker.rank_embeddings(embedded, other[i].expand(len(tried), -1)) != score[i]
                result[i].view(-1)[part] = ~changed.view(-1, values).any(dim=1)
    return result


def mid_point_sensitivity(ranker: Ranker, perturbed: Tensor, second: Tensor) -> Tensor:
    """The inputs that the ranking depends on at the mid-point: P3's global explanation (section 5.3.5).

    Args:
        perturbed: the images of a mid-point attack, (N, C, H, W).
        second: the other images of the pairs.

    Returns:
        (N, C, H, W) bool, the values with a non-zero gradient. Its mean over an image is the share that P3 finds to be
        "almost every feature".
    """
    check_pairs("mid_point_sensitivity", ranker, perturbed, second, 0.5)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast():
        other = embed_images("mid_point_sensitivity", ranker, second)
        point = perturbed.detach().clone().requires_grad_()
        score = ranker.rank_embeddings(ranker.embed(point), other)
        (gradient,) = torch.autograd.grad(score.sum(), point)
    return gradient != 0


@torch.no_grad()
def masking_importance(
    ranker: Ranker, first: Tensor, second: Tensor, labels: Tensor, *, fill: float | Tensor = 0.0, batch_size: int = 256
) -> list[Tensor]:
    """How much the ranking changes when a region of the first image is blacked out (P3 section 6.3).

    Args:
        labels: (N, H, W) int64 from 0, the regions of each first image: super-pixels, or your own.
        fill: the value that fills a region: a number, or (1, C, 1, 1) for one number for each channel.

    Returns:
        For each pair, |ranking after - before| of each of its regions: (its regions,), on the CPU.
    """
    check_pairs("masking_importance", ranker, first, second, 0.5)
    if tuple(labels.shape) != (len(first), *first.shape[2:]):
        expected = (len(first), *first.shape[2:])
        raise ValueError(f"masking_importance: labels must have shape {expected} (got {tuple(labels.shape)})")
    before = ranker.rank(first, second)
    other = ranker.embed(second)
    importance = []
    for i, label in enumerate(labels.to(first.device)):
        scores = []
        for regions in torch.arange(int(label.max()) + 1, device=first.device).split(batch_size):
            masked = torch.where((label == regions[:, None, None])[:, None], fill, first[i])
            scores.append(ranker.rank_embeddings(ranker.embed(masked), other[i].expand(len(regions), -1)))
        importance.append((torch.cat(scores) - before[i]).abs().cpu())
    return importance


def masking_agreement(
    ranker: Ranker, first: Tensor, second: Tensor, saliency: Tensor, labels: Tensor, *, fill: float | Tensor = 0.0
) -> Tensor:
    """Spearman's correlation of the regions' greatest saliency with their importance: (N,), on the CPU.

    These are two independent measures of the same quantity: one follows the gradient, the other only uses rankings.
    """
    importance = masking_importance(ranker, first, second, labels, fill=fill)
    maxima = superpixel_maximum(labels, saliency)
    return torch.cat([rank_correlation(a[None], b[None]) for a, b in zip(importance, maxima, strict=True)])
