"""Random numbers that belong to one image or map, so that no batch it comes in can change them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(values: Tensor, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by the contents of one image or map and by `numbers` (a seed, a sample index, ...).

    The same contents and numbers give the same stream on every device, alone or in any batch; torch's global
    generator is neither read nor advanced.

    Args:
        values: one image or map, of any shape, dtype and memory format.
        numbers: any integers.
    """
    contents = values.detach().to("cpu", copy=False).contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.blake2b(memoryview(contents.numpy()), digest_size=8)
    digest.update(repr((str(values.dtype), tuple(values.shape), tuple(int(n) for n in numbers))).encode())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
