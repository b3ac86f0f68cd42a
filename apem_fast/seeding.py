"""Random numbers that depend on one image or map and not on its batch; and seeded blocks that restore torch's state."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from apem_fast.callers import sentence


def whole_seed(seed: object) -> int:
    """A seed of any integer type as an int. A fraction is refused, since rounding would make it another seed.

    Raises:
        TypeError: it is no integer.
    """
    try:
        return operator.index(seed)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # the last two from tensors of several values
        raise TypeError(sentence(f"seed must be a whole number (got {type(seed).__name__})")) from None


def generators_for(values: Tensor) -> Callable[..., torch.Generator]:
    """`generator_for` as a function of the numbers alone, so that the image or map is read once for many generators.

    Args:
        values: one image or map, of any shape, dtype and memory format.
    """
    contents = values.detach().to("cpu", copy=False).contiguous().reshape(-1).view(torch.uint8)
    of_contents = hashlib.blake2b(contents.numpy().data, digest_size=8)

    def generator(*numbers: int) -> torch.Generator:
        digest = of_contents.copy()
        digest.update(repr((str(values.dtype), tuple(values.shape), tuple(map(whole_seed, numbers)))).encode())
        return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)

    return generator


def generator_for(values: Tensor, *numbers: int) -> torch.Generator:
    """A CPU generator seeded with the content of one image or map and with `numbers` (a seed, a sample index, ...).

    The same contents and numbers give the same stream on every device, alone or in any batch; torch's global
    generator is neither read nor advanced.

    Args:
        values: one image or map, of any shape, dtype and memory format.
        numbers: any integers.
    """
    return generators_for(values)(*numbers)


@contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Seeds torch's random numbers on the CPU and on these devices within the block, and restores their state after it.

    Other devices are not touched.
    """
    seed = whole_seed(seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(sentence(f"seed must lie in [-2^63, 2^64) (got {seed})"))
    gpus = sorted({device.index for device in devices if device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would seed every GPU there is
        for index in gpus:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
