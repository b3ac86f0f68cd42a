"""The choice of a run's images: all, or a number that the network classifies correctly or not, drawn with a seed.

The draw sorts the images by a hash of the seed and each image's name. They are classified one after the other in that
order, with one in memory at a time, until there are enough. So the choice only depends on the images' names, the seed
and the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from apem_fast.experiment.inputs.image_folders import LeftOut
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.running.clean import predictions_of

_KINDS: dict[str, tuple[str, ...]] = {
    "all": ("readable",),
    "correct": ("correct",),
    "misclassified": ("misclassified",),
}
_KINDS["both"] = _KINDS["correct"] + _KINDS["misclassified"]


@dataclass(frozen=True)
class Selection:
    """The names of the chosen images, in their original order."""

    names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    note: str = ""
    """One sentence if there were fewer images than asked for; else empty."""


def select(
    photographs: Sequence[Photograph],
    network: Network,
    device: str | torch.device,
    *,
    selection: str = "all",
    count: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Choose among the photographs.

    Args:
        photographs: to choose from.
        network: whose predictions decide what is correct.
        device: where its model is.
        selection: "all", "correct", "misclassified" or "both"; images of unknown class are only in "all".
        count: how many; for "both", of each kind; None for all.
        seed: of the draw.
        progress: called with (images chosen, images looked at).

    Raises:
        ValueError: no image has a known class, or none is of the wanted kind.
    """
    if selection == "all" and count is None:
        return Selection(tuple(one.name for one in photographs))
    if selection != "all":
        photographs = [one for one in photographs if network.accepted(one)]
        if not photographs:
            raise ValueError(
                f"selection {selection} needs images of known classes: a folder for each class, or --ground-truth FILE"
            )
    order = photographs if count is None else sorted(photographs, key=lambda one: _lot(seed, one.name))
    kinds = _KINDS[selection]
    chosen: dict[str, set[str]] = {kind: set() for kind in kinds}
    left_out: list[LeftOut] = []
    for looked_at, one in enumerate(order, start=1):
        try:
            kind = _kind(one, network, device, selection)
        except OSError as error:
            left_out.append(LeftOut(one.source, str(error)))
            continue
        if kind in kinds and (count is None or len(chosen[kind]) < count):
            chosen[kind].add(one.name)
        if progress is not None:
            progress(sum(map(len, chosen.values())), looked_at)
        if count is not None and all(len(names) == count for names in chosen.values()):
            break
    taken = set().union(*chosen.values())
    if not taken:
        raise ValueError(f"selection {selection}: none of the {len(photographs)} images is {' or '.join(kinds)}")
    few = [f"{len(names)} {kind}" for kind, names in chosen.items() if count is not None and len(names) < count]
    note = f"Fewer images than the {count} asked for: {' and '.join(few)} among {len(photographs)}." if few else ""
    return Selection(tuple(one.name for one in photographs if one.name in taken), tuple(left_out), note)


def _lot(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()


def _kind(one: Photograph, network: Network, device: str | torch.device, selection: str) -> str:
    pixels = network.read(one)
    if selection == "all":
        return "readable"
    images = network.normalised(pixels[None].to(device))
    with torch.no_grad():
        label = int(predictions_of(network.model, images))
    return "correct" if label in network.accepted(one) else "misclassified"
