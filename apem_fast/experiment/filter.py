"""Filtering explanations of photographs: from options to filtered maps, a table and pictures (P1 section IV-D)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apem_fast.experiment.filter_figures import before_and_after
from apem_fast.experiment.networks import Network, load_network
from apem_fast.experiment.photographs import Photograph, bundled_photographs
from apem_fast.explain import explainer_from
from apem_fast.filtering import FilterResult, filter_relevance
from apem_fast.relevance import STAGES

FilterProgress = Callable[[str, int, int, int], None]
"""Called with (photograph, levels settled, levels in all, probes so far)."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What to filter, and how.

    Args:
        network, explainer: as for `evaluate`.
        stage: the maps to filter; P2 section 4.5 takes the 1-channel map after the percentile clip.
        levels, min_drop, max_epsilon, step, search, batch_size: see `filter_relevance`.
        percentile: see `relevance_map`.
    """

    network: str = "efficientnet-lite0"
    explainer: str = "gradient"
    stage: str = "1-channel"
    percentile: float = 99.0
    levels: int | None = None
    min_drop: float = 0.0
    max_epsilon: float = 4096.0
    step: float = 1.0
    search: str = "isolate"
    batch_size: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"filter: stage must be {', '.join(STAGES)} (got {self.stage!r})")


@dataclass(frozen=True)
class FilteredPhotograph:
    """One photograph with its map before and after."""

    photograph: Photograph
    prediction: str
    pixels: Tensor  # (3, H, W) in [0, 1]
    relevance: Tensor  # (1 or C, H, W)
    result: FilterResult  # of this photograph alone


def photographs_named(names: Sequence[str]) -> tuple[Photograph, ...]:
    """Bundled photographs by their names, image files by their paths."""
    bundled = {one.name: one for one in bundled_photographs()}
    chosen = []
    for name in names:
        path = Path(name)
        if name in bundled:
            chosen.append(bundled[name])
        elif path.is_file():
            chosen.append(Photograph(path.stem, path.stem, (), str(path), path))
        else:
            raise FileNotFoundError(f"{name} is neither an image file nor a bundled photograph ({', '.join(bundled)})")
    return tuple(chosen)


def filter_photographs(
    options: FilterOptions,
    photographs: Sequence[Photograph],
    folder: str | Path,
    progress: FilterProgress | None = None,
) -> list[FilteredPhotograph]:
    """Explains and filters each photograph, and writes to `folder`: `filtered.png`, the maps before and after;
    `filtered.csv`, a row for each photograph; `NAME.pt`, each filtered map as a tensor; `options.json`.

    A map that `folder` holds already, filtered with the same options, is filtered again: a stopped run keeps its maps.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = load_network(options.network, options.device)
    (folder / "options.json").write_text(json.dumps(vars(options), indent=2) + "\n")
    done = []
    for photograph in photographs:

        def report(settled: int, total: int, probes: int, name: str = photograph.name) -> None:
            if progress is not None:
                progress(name, settled, total, probes)

        done.append(_filtered(options, network, photograph, report))
        torch.save(done[-1].result.relevance[0].cpu(), folder / f"{photograph.name}.pt")
    _table(done).to_csv(folder / "filtered.csv", index=False)
    before_and_after(done).savefig(folder / "filtered.png", dpi=120)
    return done


def _filtered(
    options: FilterOptions, network: Network, photograph: Photograph, report: Callable[[int, int, int], None]
) -> FilteredPhotograph:
    pixels = network.pixels(photograph.open())[None].to(options.device)
    images = network.normalised(pixels)
    attribution = explainer_from(options.explainer)(network.model, images)
    relevance = STAGES[options.stage](attribution, pixels, options.percentile)
    result = filter_relevance(
        network.model, images, relevance, levels=options.levels, min_drop=options.min_drop, search=options.search,
        max_epsilon=options.max_epsilon, step=options.step, batch_size=options.batch_size, progress=report,
    )  # fmt: skip
    prediction = network.categories[int(result.labels[0])]
    return FilteredPhotograph(photograph, prediction, pixels[0].cpu(), relevance[0].cpu(), result)


def _table(done: Sequence[FilteredPhotograph]):
    import pandas

    table = pandas.concat([one.result.to_dataframe() for one in done], ignore_index=True)
    table.insert(0, "image", [one.photograph.name for one in done])
    table.insert(2, "prediction", [one.prediction for one in done])
    return table
