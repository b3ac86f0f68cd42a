"""Close-ups of a run's first images: margins along the rays of each map, and the perturbed images at the flips.

They need the network and the explainers again, so they are made for only a few images, and kept in the run's folder:

    closeups/EXPLAINER/IMAGE.json       by stage: {"minus": {...}, "plus": {...}}, see `_closeups_of`
    closeups/EXPLAINER/STAGE/IMAGE.minus.png, .plus.png     the perturbed image at the flip
    closeups/EXPLAINER/STAGE/IMAGE.minus-change.png, ...    how it differs from the photograph, amplified, around grey
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from torch import Tensor

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.run.pictures import kept_picture
from apem_fast.experiment.run.store import RunStore, file_name_of
from apem_fast.explain import explainer_from
from apem_fast.files.checksums import Damaged, checked_json, json_with_checksum
from apem_fast.files.pictures import png_of
from apem_fast.margin_curve import RayView
from apem_fast.relevance import STAGES

RAYS = ("minus", "plus")
POINTS, TO_THE_FLIP = 8, 6
"""The number of points of a curve after its start, and how many of these up to the flip: it ends a third beyond."""


def closeup_record(store: RunStore, explainer: str, image: str) -> Path:
    return store.inside("closeups", file_name_of(explainer), f"{image}.json")


def closeup_picture(store: RunStore, explainer: str, stage: str, image: str, ray: str) -> Path:
    return store.inside("closeups", file_name_of(explainer), stage, f"{image}.{ray}.png")


def read_closeup(store: RunStore, explainer: str, image: str) -> dict[str, Any]:
    """The close-up by stage; empty if there is none.

    Raises:
        ValueError: the record is damaged.
    """
    path = closeup_record(store, explainer, image)
    try:
        return checked_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to have the close-up made again") from None


def missing_closeups(store: RunStore, rows: pandas.DataFrame, images: list[str]) -> dict[str, list[str]]:
    """For each image, the explainers that have scored rows of it but not yet a close-up of all their stages."""
    missing = {}
    for name in images:
        scored = rows[rows["image"] == name].groupby("explainer", sort=False)["stage"].agg(set)
        keys = [key for key, stages in scored.items() if stages - set(read_closeup(store, key, name))]
        if keys:
            missing[name] = keys
    return missing


def make_closeups(
    store: RunStore,
    network: Network,
    rows: pandas.DataFrame,
    images: list[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Makes those close-ups of `images` that the run's folder lacks.

    Args:
        store: a run.
        network: the run's network, on the device to use.
        rows: the run's scored rows.
        images: names of images.
        progress: called with (images done, in all).
    """
    missing = missing_closeups(store, rows, images)
    for done, (name, keys) in enumerate(missing.items()):
        progress(done, len(missing))
        of_image = rows[(rows["image"] == name) & rows["explainer"].isin(keys)]
        _closeups_of(store, network, name, of_image.reset_index(drop=True))
    progress(len(missing), len(missing))


def _closeups_of(store: RunStore, network: Network, name: str, rows: pandas.DataFrame) -> None:
    pixels = _pixels(store, name).to(next(network.model.parameters()).device)[None]
    image = network.normalised(pixels)
    maps = []
    for key, part in rows.groupby("explainer", sort=False):
        attribution = explainer_from(key).for_images([name])(network.model, image, None)
        maps += [STAGES[stage](attribution, pixels, store.options.percentile) for stage in part["stage"]]
    # All at once, so that the sign gradient is computed once: maps without channels are repeated for each channel.
    view = RayView(
        network.model,
        image,
        torch.cat([map_.expand(image.shape) for map_ in maps]),
        image_of_map=torch.zeros(len(maps), dtype=torch.int64),
        record=store.options.record,
        bounds=network.bounds(store.options.bounds),
    )
    share = torch.arange(1, POINTS + 1, dtype=torch.float64) / TO_THE_FLIP
    flips = {ray: torch.tensor(rows[f"epsilon_{ray}"].to_list(), dtype=torch.float64) for ray in RAYS}
    curve = view.margins(*(flips[ray][:, None] * share for ray in RAYS))
    margin = float(view.margins_at_zero[0])  # of the one image
    records: dict[str, dict[str, Any]] = {}
    for ray in RAYS:
        seen = view.perturbed(flips[ray], irrelevance=ray == "plus")
        predicted = view.predictions(flips[ray], irrelevance=ray == "plus").tolist()
        for i, (key, stage) in enumerate(zip(rows["explainer"], rows["stage"])):
            perturbed = network.pixels_of(seen[i])
            change = perturbed - pixels[0]
            gain = 0.5 / max(float(change.abs().quantile(0.99)), 1e-12)
            store.write_file(closeup_picture(store, key, stage, name, ray), png_of(perturbed))
            store.write_file(closeup_picture(store, key, stage, name, f"{ray}-change"), png_of(0.5 + gain * change))
            records.setdefault(key, {}).setdefault(stage, {})[ray] = {
                "epsilon": [0.0, *getattr(curve, f"epsilon_{ray}")[i].tolist()],
                "margin": [margin, *getattr(curve, f"margin_{ray}")[i].tolist()],
                "prediction": network.categories[predicted[i]],
                "gain": gain,
                "mean_change": float(change.abs().mean()),
            }
    for key, record in records.items():  # after its pictures: what has a record is complete
        store.write_file(closeup_record(store, key, name), json_with_checksum(record))


def _pixels(store: RunStore, name: str) -> Tensor:
    """The pixels that the run evaluated, (3, H, W) float32 in [0, 1]; the kept picture has them exactly, in 8 bits."""
    picture = kept_picture(store.photograph(name)).convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255
