"""Makes the missing pictures of chosen images of a finished run: photographs and maps.

Blocks keep the pictures of a run's first images. Which others are worth a look is known only when all results are
there; these few are read and explained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.run.block import digest_of
from apem_fast.experiment.run.explaining import Given, maps_of
from apem_fast.experiment.run.progress import ProgressKeeper
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import Explainer, explainer_from, imported_by
from apem_fast.files.pictures import png_of


def keep_pictures(
    store: RunStore,
    network: Network,
    photographs: Mapping[str, Photograph],
    explainers: Mapping[str, Explainer],
    names: Sequence[str],
    device: str,
    progress: ProgressKeeper,
) -> None:
    """Makes those pictures of these images that the run's folder lacks, image by image.

    An image that cannot be read any more, or has changed, is left out and reported to `progress`.

    Args:
        store: a run, its results finished.
        network: the run's, on `device`.
        photographs: by name.
        explainers: of the present command, by key; the run's others are made from their names, unless that would
            import code from outside.
        names: of the images.
        progress: gets a report for each.
    """
    if not names:  # as of a run none of whose images could be read
        return
    explainers = dict(_known(store, explainers))
    described = store.images().set_index("image")
    for done, name in enumerate(names):
        lacking = {key: one for key, one in explainers.items() if not all(map(Path.exists, _maps(store, name, key)))}
        if not lacking and store.photograph(name).exists():
            continue
        progress.update(doing=f"pictures of exceptions: {done} of {len(names)} images")
        try:
            read = network.read(photographs[name])
            if digest_of(read) != described.loc[name, "digest"]:
                raise OSError("it shows something else than it did when the run began")
        except OSError as error:
            progress.update(finished=f"No pictures of {name}: {error}")
            continue
        images, pixels = network.images_and_pixels(read[None].to(device))
        labels = torch.tensor([int(described.loc[name, "label"])], device=images.device)
        if not store.photograph(name).exists():
            store.write_file(store.photograph(name), png_of(pixels[0]))
        for key, explainer in lacking.items():
            options = store.options
            given = Given(network.model, [name], images, pixels, labels)
            maps, _ = maps_of(explainer, given, options.stages, options.percentile, lambda done, total: None)
            for stage, relevance in maps.items():
                store.write_file(store.map(name, key, stage), png_of(relevance[0]))
    progress.update(doing="")


def _known(store: RunStore, explainers: Mapping[str, Explainer]) -> Iterator[tuple[str, Explainer]]:
    for key in store.options.explainers:
        if key in explainers:
            yield key, explainers[key]
        elif not imported_by(key):
            yield key, explainer_from(key)


def _maps(store: RunStore, name: str, explainer: str) -> list[Path]:
    return [store.map(name, explainer, stage) for stage in store.options.stages]
