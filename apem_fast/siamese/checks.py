"""Checks of a ranker and of pairs, which every attack makes."""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.running.repeated import differing_answers
from apem_fast.running.undisturbed import undisturbed
from apem_fast.siamese.networks import Ranker
from apem_fast.validation import not_plain

TOLERANCE = 1e-4  # how far rounding may carry a ranking outside [0, 1]


def check_pairs(call: str, ranker: Ranker, first: Tensor, second: Tensor, target: float | Tensor) -> Tensor:
    """Raises if ranker, pairs or target cannot be attacked; returns the target as (N,)."""
    if not isinstance(ranker, Ranker):
        raise TypeError(
            f"{call}: ranker must be a SiameseRanker or another Ranker; a network becomes one as "
            f"ScoreRanker(network, low, high) where it predicts a number, Verifier(network, distance=...) where it "
            f"embeds, FusionRanker(network, shape) where it takes the pair at once (got {type(ranker).__name__})"
        )
    if any(module.training for module in ranker.modules()):
        raise ValueError(f"{call}: ranker must be in evaluation mode, ranker.eval() (got training mode)")
    for name, images in (("first", first), ("second", second)):
        _check_images(call, name, images, ranker)
    alike = first.shape[:2] == second.shape[:2] and first.dtype == second.dtype and first.device == second.device
    if not alike:
        raise ValueError(
            f"{call}: second must be as many images as first, of its channels, dtype and device, "
            f"({len(first)}, {first.shape[1]}, H, W) {first.dtype} {first.device} "
            f"(got {tuple(second.shape)} {second.dtype} {second.device})"
        )
    if not len(first):
        raise ValueError(f"{call}: first must hold at least one image (got {tuple(first.shape)})")
    goal = _checked_target(call, target, first)
    if not _check_answers(call, ranker, first[:1].detach(), second[:1].detach()):
        rank_once(call, ranker, first.detach(), second.detach())
    return goal.reshape(-1).expand(len(first))


def _check_images(call: str, name: str, images: Tensor, ranker: Ranker) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"{call}: {name} must be a torch.Tensor (got {type(images).__name__})")
    if came := not_plain(images):
        raise TypeError(f"{call}: {name} must be {came}")
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"{call}: {name} must be floating images of shape (N, C, H, W) (got {images.dtype} {tuple(images.shape)})"
        )
    for parameter in ranker.parameters():
        if parameter.device != images.device:
            raise ValueError(f"{call}: {name} must be on ranker's device, {parameter.device} (got {images.device})")
        if parameter.is_floating_point() and parameter.dtype != images.dtype:
            raise ValueError(f"{call}: {name} must be {parameter.dtype} like ranker (got {images.dtype})")
        break
    if not bool(images.isfinite().all()):
        raise ValueError(f"{call}: {name} must be finite (got NaN or infinity)")


def _checked_target(call: str, target: float | Tensor, first: Tensor) -> Tensor:
    if target is None or isinstance(target, (bool, str)):
        raise TypeError(f"{call}: target must be a number, or one for each pair (got {type(target).__name__})")
    goal = torch.as_tensor(target, dtype=first.dtype, device=first.device).detach()
    if goal.dim() > 1 or goal.numel() not in (1, len(first)):
        raise ValueError(f"{call}: target must be one number or ({len(first)},) (got shape {tuple(goal.shape)})")
    if not bool(((goal >= 0) & (goal <= 1)).all()):
        raise ValueError(
            f"{call}: target must lie in [0, 1] (got min={float(goal.min()):g}, max={float(goal.max()):g})"
        )
    return goal


def _check_answers(call: str, ranker: Ranker, first: Tensor, second: Tensor) -> bool:
    """Raises if a ranker's answer does not depend on the pair alone, or if it changes the user's images; False where it
    does not take this pair."""

    def ranking(a: Tensor, b: Tensor) -> Tensor:
        before = a._version, b._version
        score = ranker.rank(a, b)
        if (a._version, b._version) != before:
            raise _WritesIntoItsInputError
        return score

    try:
        with torch.inference_mode(False), torch.no_grad(), undisturbed(ranker, first, second):
            differs = differing_answers(ranking, [first.clone(), second.clone()])
    except _WritesIntoItsInputError:
        raise ValueError(
            f"{call}: ranker must not write into its images (its network works in place on them, as x.sub_(mean) does, "
            "or a first layer with inplace=True); let its first line be x = x.clone()"
        ) from None
    except Exception:  # noqa: BLE001 - whatever a network raises of these images is said elsewhere
        return False
    if differs is None:
        return True
    if differs.between == "runs":
        raise ValueError(
            f"{call}: ranker must answer the same pair in the same way each time (its rankings differ by "
            f"{differs.by:.2g} between two runs; is dropout, or another random layer, still on?)"
        )
    raise ValueError(
        f"{call}: ranker must answer each pair by itself (its rankings differ by {differs.by:.2g} when another pair is "
        "in the batch, as with batch normalisation that keeps no running statistics)"
    )


class _WritesIntoItsInputError(Exception):
    """A network changed its input."""


def check_region(call: str, region: Tensor | None, images: Tensor) -> Tensor | None:
    """The region as a bool mask (N or 1, C or 1, H, W)."""
    if region is None:
        return None
    mask = region[None, None] if region.dim() == 2 else region
    n, channels, *size = images.shape
    fits = mask.dim() == 4 and mask.shape[0] in (1, n) and mask.shape[1] in (1, channels)
    if not fits or list(mask.shape[2:]) != size or mask.dtype != torch.bool:
        raise ValueError(
            f"{call}: region must be a bool mask of shape {tuple(size)} or (N or 1, C or 1, {size[0]}, {size[1]}) "
            f"(got {region.dtype} {tuple(region.shape)})"
        )
    if not bool(mask.flatten(1).any(dim=1).all()):
        raise ValueError(f"{call}: region must hold at least one pixel that may change (got an empty one)")
    return mask.to(images.device)


def embed_images(call: str, ranker: Ranker, images: Tensor) -> Tensor:
    """The embeddings of `images`; an error of one sentence if the network does not accept their size."""
    try:
        with torch.no_grad():
            return ranker.embed(images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{call}: images must be of a size that ranker takes (got {tuple(images.shape)}: {reason})"
        ) from error


def check_rankings(call: str, score: Tensor, pairs: int, *, differentiable: bool = False) -> None:
    """Raises unless the network's output is a ranking of these pairs."""
    if tuple(score.shape) != (pairs,):
        raise ValueError(f"{call}: ranker must give ({pairs},) rankings (got {tuple(score.shape)})")
    if not bool(((score >= -TOLERANCE) & (score <= 1 + TOLERANCE)).all()):
        raise ValueError(
            f"{call}: ranker must rank in [0, 1], for example by a sigmoid at its end "
            f"(got min={float(score.min()):g}, max={float(score.max()):g})"
        )
    if differentiable:
        require_gradient(call, score)


def require_gradient(call: str, score: Tensor) -> None:
    """Refuses rankings that no image can change."""
    if not score.requires_grad:
        raise ValueError(f"{call}: ranker must be differentiable (got a ranking without a gradient)")


def rank_once(call: str, ranker: Ranker, first: Tensor, second: Tensor) -> None:
    """Ranks one pair; a network that does not take it says so in one sentence."""
    embedded = embed_images(call, ranker, first[:1]), embed_images(call, ranker, second[:1])
    try:
        with torch.no_grad():
            score = ranker.rank_embeddings(*embedded)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{call}: ranker must take the pair (got {type(error).__name__}: {reason})") from error
    check_rankings(call, score, 1)
