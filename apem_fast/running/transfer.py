"""Between the host and a GPU without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. A copy from pinned memory takes its place in the GPU's queue and returns at
    once, where one from other memory waits for all that is in the queue before it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def fetched(values: Tensor) -> Tensor:
    """These values on the way to the host, to be read once the current stream has got so far. They may be overwritten
    by what comes next."""
    if values.device.type != "cuda":
        return values.clone()
    there = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    return there.copy_(values, non_blocking=True)
