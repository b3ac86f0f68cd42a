"""Checks of a user's arguments. Each error is one sentence: the argument, what was expected, and what came.

Nothing is guessed, and nothing is converted except numbers.
"""

from apem_fast.validation.numbers import choice, make_numbers_plain, number, plain, positive, whole, whole_or_none
from apem_fast.validation.options import (
    AGAINST,
    PRECISIONS,
    RECORDS,
    bounds,
    grid_steps,
    min_drop,
    not_certified,
    on_bad_map,
    precision,
)
from apem_fast.validation.tensors import (
    LOOKS_LIKE_BYTES,
    contrast,
    direction,
    images,
    labels,
    map_of_images,
    maps_by_name,
    maps_without_rays,
    model,
    moving,
    not_plain,
    relevance,
    takes_one_image,
    target,
    within_bounds,
    without_ray,
)
from apem_fast.validation.versions import Versions, unchanged, versions_of

__all__ = [
    "AGAINST",
    "LOOKS_LIKE_BYTES",
    "PRECISIONS",
    "RECORDS",
    "Versions",
    "bounds",
    "choice",
    "contrast",
    "direction",
    "grid_steps",
    "images",
    "labels",
    "make_numbers_plain",
    "map_of_images",
    "maps_by_name",
    "maps_without_rays",
    "min_drop",
    "model",
    "moving",
    "not_certified",
    "not_plain",
    "number",
    "on_bad_map",
    "plain",
    "positive",
    "precision",
    "relevance",
    "takes_one_image",
    "target",
    "unchanged",
    "versions_of",
    "whole",
    "whole_or_none",
    "within_bounds",
    "without_ray",
]
