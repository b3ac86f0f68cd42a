"""An explainer's maps of a block of images at every stage, and why a map cannot be measured."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import apem_fast
from apem_fast.explain import Explainer
from apem_fast.explain.adapted import Adapted
from apem_fast.explain.explainer import NotFiniteError
from apem_fast.relevance import STAGES, emptied_by_clip
from apem_fast.running.batching import is_out_of_memory
from apem_fast.validation import without_ray

ImageProgress = Callable[[int, int], None]
"""Called with (images explained, images in all)."""

NO_MAP, NOT_FINITE = "there is no map of this image", "the attribution has NaN or infinity"
"""The flags after which a block is explained one image at a time."""


class ExplainerFailed(ValueError):
    """An explainer raised an exception."""

    @classmethod
    def of(cls, explainer: Explainer, image: str, error: Exception) -> Exception:
        """The error itself if it is from this package or torch; otherwise a sentence with the user's line of code."""
        foreign = isinstance(explainer, Adapted) or not type(explainer).__module__.startswith("apem_fast.")
        if not foreign or is_out_of_memory(error):
            return error
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_of_a_library(frame.filename)]
        lines = "".join(f"\n  {frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}" for frame in frames)
        return cls(f"explainer {explainer.name} on image {image}: {type(error).__name__}: {error}{lines}")


def _is_of_a_library(filename: str) -> bool:
    return "site-packages" in filename or str(PACKAGE) in filename


PACKAGE = Path(apem_fast.__file__).parent


@dataclass(frozen=True)
class Given:
    """The input of an explainer: a model and N images."""

    model: nn.Module
    names: Sequence[str]
    images: Tensor  # (N, C, H, W), as the model receives them
    pixels: Tensor  # (N, 3, H, W) in [0, 1]
    labels: Tensor  # (N,) int64: the predictions


def maps_of(
    explainer: Explainer, given: Given, stages: Sequence[str], percentile: float | None, progress: ImageProgress
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The relevance maps of each stage, and for each map the reason why it leaves no ray, or an empty text."""
    attribution, failed = _attribution(explainer, given, progress)
    with warnings.catch_warnings():  # the flags below say for each map what the warning says for the first
        warnings.filterwarnings("ignore", message="relevance_map: percentile", category=UserWarning)
        maps = {name: STAGES[name](attribution, given.pixels, percentile) for name in stages}
    flags = {
        name: [why or flag for why, flag in zip(failed, flags_of(map_, attribution, percentile))]
        for name, map_ in maps.items()
    }
    return maps, flags


def _attribution(explainer: Explainer, given: Given, progress: ImageProgress) -> tuple[Tensor, list[str]]:
    """The attribution, and for each image the reason why there is none (it is 0 then), or an empty text."""
    model, names, images, labels = given.model, given.names, given.images, given.labels
    lacking = not all(map(explainer.has, names))
    done = [0]

    def counted(images_done: int, images_total: int) -> None:
        done[0] = images_done
        progress(images_done, images_total)

    if not lacking:
        try:
            return explainer.for_images(names)(model, images, labels, progress=counted), [""] * len(images)
        except NotFiniteError:
            pass
        except Exception as error:
            raise ExplainerFailed.of(explainer, names[min(done[0], len(names) - 1)], error) from error
    attributions, failed = [], []
    for n, name in enumerate(names):
        one = images[n : n + 1]
        attribution, why = torch.zeros_like(one), ""
        if not explainer.has(name):
            why = NO_MAP
        else:
            try:
                attribution = explainer.for_images([name])(model, one, labels[n : n + 1])
            except NotFiniteError:
                why = NOT_FINITE
        attributions.append(attribution)
        failed.append(why)
    return torch.cat(attributions), failed


def flags_of(relevance: Tensor, attribution: Tensor, percentile: float | None) -> list[str]:
    """Why each map (N, 1 or C, H, W) has no relevance ray or no irrelevance ray; empty if it has both."""
    zero, one = without_ray(relevance)
    emptied = emptied_by_clip(attribution, relevance, percentile).tolist()
    return [
        f"the clip at percentile {percentile:g} leaves 0 throughout"
        if empty
        else "the map is 0 throughout"
        if is_zero
        else "the map is 1 throughout"
        if is_one
        else ""
        for is_zero, is_one, empty in zip(zero.tolist(), one.tolist(), emptied)
    ]


def with_stand_ins(maps: Mapping[str, Tensor], flags: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Maps that can all be measured: each flagged map becomes 0.5 throughout, and its results are not used.

    Sets in which every map is flagged are left out.
    """
    stood_in = {}
    for name, map_ in maps.items():
        flagged = torch.tensor([bool(flag) for flag in flags[name]], device=map_.device)
        if not bool(flagged.all()):
            stood_in[name] = map_.masked_fill(flagged[:, None, None, None], 0.5) if bool(flagged.any()) else map_
    return stood_in
