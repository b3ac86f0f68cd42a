"""What every attack demands of a ranker and of the pairs it is given."""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.siamese.networks import Ranker


def check_pairs(call: str, ranker: Ranker, first: Tensor, second: Tensor, target: float | Tensor) -> Tensor:
    """Refuses what no attack can work on; gives the target as (N,)."""
    if not isinstance(ranker, Ranker):
        raise TypeError(
            f"{call}: ranker must be a SiameseRanker or ScoreRanker; a network that predicts a number becomes one "
            f"as ScoreRanker(network, low, high) (got {type(ranker).__name__})"
        )
    if any(module.training for module in ranker.modules()):
        raise ValueError(f"{call}: ranker must be in evaluation mode, ranker.eval() (got training mode)")
    for name, images in (("first", first), ("second", second)):
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(
                f"{call}: {name} must be floating images of shape (N, C, H, W) "
                f"(got {images.dtype} {tuple(images.shape)})"
            )
        if not bool(images.isfinite().all()):
            raise ValueError(f"{call}: {name} must be finite (got NaN or infinity)")
    if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
        raise ValueError(
            f"{call}: second must be of the shape, dtype and device of first, {tuple(first.shape)} {first.dtype} "
            f"{first.device} (got {tuple(second.shape)} {second.dtype} {second.device})"
        )
    goal = torch.as_tensor(target, dtype=first.dtype, device=first.device).detach()
    if goal.dim() > 1 or goal.numel() not in (1, len(first)):
        raise ValueError(f"{call}: target must be one number or ({len(first)},) (got shape {tuple(goal.shape)})")
    if not bool(((goal >= 0) & (goal <= 1)).all()):
        raise ValueError(
            f"{call}: target must lie in [0, 1] (got min={float(goal.min()):g}, max={float(goal.max()):g})"
        )
    return goal.reshape(-1).expand(len(first))


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
    return mask.to(images.device)


def embed_images(call: str, ranker: Ranker, images: Tensor) -> Tensor:
    """The embeddings of `images`; a network that refuses their size does so in one sentence."""
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
