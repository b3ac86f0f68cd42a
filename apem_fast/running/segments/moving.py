"""Operations that move values without computing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apem_fast.running.segments.values import RULES, SHAPES, OnSegments, refused

SHAPES.update(
    "view _unsafe_view repeat permute transpose t squeeze unsqueeze expand slice select clone contiguous detach alias "
    "lift_fresh split split_with_sizes unbind narrow _reshape_alias reflection_pad2d replication_pad2d "
    "upsample_nearest2d pixel_shuffle".split()
)


def _to_copy(v: OnSegments, *, dtype: torch.dtype | None = None, **kwargs: Any) -> OnSegments:
    if dtype not in (None, torch.float64):
        raise refused(f"a conversion to {str(dtype).removeprefix('torch.')}")
    return OnSegments(*(torch.ops.aten._to_copy(part, **kwargs) for part in (v.offset, v.slope, v.error)))


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> OnSegments:
    def part(name: str) -> Tensor:
        return torch.cat(
            [getattr(t, name) if isinstance(t, OnSegments) else t if name == "offset" else 0 * t for t in tensors], dim
        )

    return OnSegments(part("offset"), part("slope"), part("error"))


def _constant_pad(v: OnSegments, pad: Sequence[int], value: float = 0) -> OnSegments:
    padded = torch.ops.aten.constant_pad_nd
    return OnSegments(padded(v.offset, pad, value), padded(v.slope, pad, 0), padded(v.error, pad, 0))


RULES.update({"_to_copy": _to_copy, "cat": _cat, "constant_pad_nd": _constant_pad})
