"""Checks of options: precision, grid, bounds, and the options of the filter and of bad maps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from apem_fast.callers import sentence, warn
from apem_fast.search import Certified
from apem_fast.validation.numbers import choice, dtype_name, number

PRECISIONS = ("float32", "bfloat16", "float16", "tf32")


def precision(value: str, images: Tensor | None = None) -> None:
    """Raises unless the value is a known precision and, with `images`, one that can be used for them."""
    choice("precision", value, PRECISIONS)
    if images is None or value == "float32":
        return
    if images.dtype != torch.float32:
        raise ValueError(sentence(f'precision="{value}" goes with float32 images (got {dtype_name(images)})'))
    if value == "tf32" and images.device.type != "cuda":
        raise ValueError(sentence(f'precision="tf32" needs images on a CUDA device (got {images.device.type})'))


RECORDS = ("float64", "float32")
AGAINST = ("previous", "start")


def min_drop(value: object) -> float:
    converted = number("min_drop", value)
    if not 0 <= converted < math.inf:
        raise ValueError(sentence(f"min_drop must be at least 0 and finite (got {converted:g})"))
    return converted


def not_certified(search: object, epsilons: str) -> None:
    """Raises if the search is "certified", which does not prove these epsilons."""
    if isinstance(search, Certified):
        raise ValueError(  # noqa: TRY004 - of the option's value: by its name it is a string
            sentence(
                f'search must be another one than "certified", which proves epsilons of maps and not {epsilons}; '
                '"careful" is the safest of the others'
            )
        )


def on_bad_map(value: object) -> None:
    if value not in ("raise", "flag"):
        raise ValueError(sentence(f'on_bad_map must be "raise" or "flag" (got {value!r})'))


MOST_STEPS = 2**53  # above it, not every whole number of steps is a float64
MANY_STEPS = 10**7  # above it, a scan never ends, and steps are lost in the rounding of float32 images


def grid_steps(max_epsilon: float, step: float) -> int:
    """The last step of the grid: the greatest k with k * step <= max_epsilon.

    A quotient like 0.3 / 0.1 is just below the whole number that is meant, and counts as that number.
    """
    if max_epsilon < step:
        raise ValueError(sentence(f"max_epsilon must be at least step={step:g} (got {max_epsilon:g})"))
    if not max_epsilon / step <= MOST_STEPS:
        raise ValueError(
            sentence(
                f"max_epsilon / step must be at most 2^53, beyond which steps are no longer told apart (got "
                f"max_epsilon={max_epsilon:g}, step={step:g})"
            )
        )
    last = math.floor(max_epsilon / step)
    last += (last + 1) * step <= max_epsilon * (1 + 2.0**-50)
    if last > MANY_STEPS:
        warn(
            f"max_epsilon={max_epsilon:g} with step={step:g} is a grid of {last:,} steps; each ray takes many "
            "more probes on so fine a grid, and float32 images can hardly tell its steps apart"
        )
    return last


def bounds(value: object) -> tuple[float | tuple[float, ...] | None, float | tuple[float, ...] | None]:
    """The pair (lower, upper), each as None, a float, or a tuple of floats, one for each channel."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(sentence(f"bounds must be a pair (lower, upper) (got {value!r})"))
    lower, upper = _bound(value[0]), _bound(value[1])
    if any(bound is not None and np.isnan(bound).any() for bound in (lower, upper)):
        raise ValueError(sentence("bounds must be numbers or None (got NaN)"))
    if lower is not None and upper is not None:
        least, greatest = np.asarray(lower), np.asarray(upper)
        if least.ndim and greatest.ndim and len(least) != len(greatest):
            raise ValueError(sentence(f"bounds must be of as many channels (got {len(least)} and {len(greatest)})"))
        if not bool((least < greatest).all()):
            words = ", ".join(f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (lower, upper))
            raise ValueError(sentence(f"bounds must have lower < upper (got {words})"))
    return lower, upper


def _bound(value: object) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.reshape(-1).tolist() if value.ndim else value.item()
    if isinstance(value, (tuple, list)):
        return tuple(number("bounds", one) for one in value)
    return number("bounds", value)
