"""What to do instead: the way out that a refusal ends with, for the mistakes that are made most.

Each function returns "" where it knows none, else words to follow the sentence.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def of_no_tensor(name: str, value: object) -> str:
    """For an argument that has to be a tensor."""
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, np.ndarray):
        return f"; torch.from_numpy({name}) is one"
    if kind.__module__.startswith("PIL."):
        return "; the transforms that the model was trained with make one of a picture"
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(one, Tensor) for one in value):
            return f"; torch.stack({name}) is one"
        return f"; torch.tensor({name}) is one" if name == "labels" else ""
    if any(one.__module__ == "apem_fast.explain.explainer" for one in kind.__mro__):
        method = f"{kind.__name__}()" if isinstance(value, type) else name
        return f"; {method}(model, images) is an attribution, and relevance_map makes a map of it"
    if isinstance(value, str):
        return f"; explain.explainer_from({value!r})(model, images) is an attribution, if {value!r} is a method's name"
    return ""


def of_images(images: Tensor) -> str:
    """For images of another number of dimensions."""
    return "; images[None] is a batch of one image" if images.dim() == 3 else ""


def of_dtype(images: Tensor) -> str:
    """For images of whole numbers."""
    if images.is_floating_point():
        return ""
    return "; images.float() / 255, normalised as the model was trained, is what it receives"


def of_maps(name: str, maps: Tensor, images: Tensor) -> str:
    """For maps of another shape than the images'."""
    n, _, height, width = images.shape
    if tuple(maps.shape) == (n, height, width):
        return f"; {name}[:, None] has that shape"
    if tuple(maps.shape) == (height, width) and n == 1:
        return f"; {name}[None, None] has that shape"
    if maps.dim() == 4 and maps.shape[0] == n and maps.shape[1] in (1, images.shape[1]):
        return f"; torch.nn.functional.interpolate({name}, size={(height, width)}) makes maps as large as the images"
    return ""


def of_labels(labels: Tensor, images: int) -> str:
    """For labels that are no classes by number."""
    if labels.dim() == 2 and len(labels) == images:
        return "; labels.argmax(dim=1) are the classes of such rows"
    if labels.shape == (images,) and not labels.is_floating_point() and labels.dtype != torch.bool:
        return "; labels.long() is int64"
    return ""


def of_method(value: object) -> str:
    """For an argument that has to be an explanation method."""
    if isinstance(value, (Tensor, np.ndarray)):
        return "; it explains changed images anew, for which maps that exist will not do"
    if isinstance(value, str):
        return f"; explain.explainer_from({value!r}) is the method of that name"
    return ""
