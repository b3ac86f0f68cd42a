"""Lower bounds of the label's margin on segments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apem_fast.running.segments.values import SLACK, TINY, UNIT, Head, NotBounded, OnSegments

WEIGHTS_AT_ONCE = 2**22  # differences of the last layer's weights in memory


def least_margins(logits: Tensor, labels: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of N segments: a number below every margin of the label on it, and the margin in its middle, both (N,).

    Args:
        logits: (N, classes) of a model that was run on segments.
        labels: (N,) int64.
        above: (N, classes) bool, the classes that take no part; None for none.
    """
    if not isinstance(logits, OnSegments):
        raise NotBounded('search="certified" needs logits that depend on the image (got a constant)')
    out = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device) if above is None else above
    out = out.scatter(1, labels[:, None], True)
    head = logits.head
    if head is None or head.changes != head.inputs.changes[0] or logits.changes[0]:
        offset, slope, error = _differences(logits, labels)
    else:
        offset, slope, error = _differences_of_head(head, labels)
    low = offset - slope.abs() - error
    low = low - 4 * UNIT * (offset.abs() + slope.abs() + error)
    return low.masked_fill(out, math.inf).amin(dim=1), offset.masked_fill(out, math.inf).amin(dim=1)


def _differences(logits: OnSegments, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The label's logit less each one, as differences of bounds."""
    own_offset, own_slope, own_error = (
        part.gather(1, labels[:, None]) for part in (logits.offset, logits.slope, logits.error)
    )
    rounding = 4 * UNIT * (own_offset.abs() + logits.offset.abs() + own_slope.abs() + logits.slope.abs())
    return own_offset - logits.offset, own_slope - logits.slope, own_error + logits.error + rounding


def _differences_of_head(head: Head, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as bounds of differences: closer, since what both logits share falls out. Both logits' own roundings
    count."""
    v, weight = head.inputs, head.weight
    bias = torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias
    terms = weight.shape[1] + 2
    rounding = 2 * (terms + SLACK) * UNIT
    size = v.greatest @ weight.abs().t() + bias.abs()
    size = size + size.gather(1, labels[:, None])
    parts = []
    for rows in torch.arange(len(labels), device=labels.device).split(max(1, WEIGHTS_AT_ONCE // weight.numel())):
        difference = (weight[labels[rows]][:, None] - weight).transpose(1, 2)  # (rows, inputs, classes)
        parts.append(
            torch.stack(
                [
                    (v.offset[rows, None] @ difference)[:, 0] + (bias[labels[rows]][:, None] - bias),
                    (v.slope[rows, None] @ difference)[:, 0],
                    (v.error[rows, None] @ difference.abs())[:, 0] * (1 + rounding),
                ]
            )
        )
    offset, slope, error = torch.cat(parts, dim=1)
    return offset, slope, error + rounding * size + TINY
