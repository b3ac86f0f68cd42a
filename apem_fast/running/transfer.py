"""From the host to a GPU without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. A copy from pinned memory takes its place in the GPU's queue and returns at
    once, where one from other memory waits for all that is in the queue before it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
