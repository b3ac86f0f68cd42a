"""The runner: from options to a folder of finished results, in steps that are not done twice.

One step is one explainer on one block of images. Its relevance maps of all stages share the block's sign gradients
and one search; its shard is written when all of it is done. So a run can be stopped at any moment, continued with the
same options, and extended with more explainers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apem_fast.experiment.networks import Network, load_network
from apem_fast.experiment.options import RunOptions
from apem_fast.experiment.photographs import Photograph, bundled_photographs
from apem_fast.experiment.pictures import png_of
from apem_fast.experiment.store import IMAGES, RunStore
from apem_fast.explain import Explainer, explainer_from
from apem_fast.metric import ApemResult, Evaluator
from apem_fast.relevance import STAGES

EXPECTED_PASSES_PER_RAY = 20.0
"""For the estimate of the time left only."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. `work` and `work_total` are in forward passes, estimated, what was on disk left out."""

    images: int = 0
    explainer: str = ""
    explaining: bool = False
    images_done: int = 0
    images_total: int = 0
    rays_done: int = 0
    rays_total: int = 0
    probes: int = 0
    search_seconds: float = 0.0
    work: float = 0.0
    work_total: float = 0.0
    finished: str = ""
    """A sentence, when a step has just been finished."""


def evaluate(
    options: RunOptions,
    folder: str | Path,
    *,
    progress: Callable[[RunProgress], None] | None = None,
) -> RunStore:
    """Do what `options` ask, except for what `folder` already holds.

    Args:
        options: of the run.
        folder: missing, empty, or of a run with the same options.
        progress: called often, from this thread; an exception it raises stops the run, which can be continued.

    Returns:
        The store: `.results()` is a data frame with a row for each image, explainer and stage.

    Raises:
        ValueError: an unknown network, a folder that cannot be used, a run with other options.
        FileNotFoundError: a package that the network or the photographs come from is missing.
    """
    network = load_network(options.network, options.device)
    photographs = bundled_photographs()[: options.limit]
    store = RunStore.for_run(folder, options)
    _Run(options, network, store, progress or (lambda state: None)).all_of(photographs)
    return store


class _Run:
    def __init__(self, options: RunOptions, network: Network, store: RunStore, report: Callable[[RunProgress], None]):
        self.options, self.network, self.store, self.report = options, network, store, report
        self.explainers = {key: explainer_from(key) for key in options.explainers}
        self.state = RunProgress()

    def update(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self.report(self.state)

    def cost(self, explainer: Explainer, images: int) -> float:
        """Forward passes that one step is expected to take."""
        rays = 2 * images * len(self.options.stages)
        return explainer.passes_per_image * images + EXPECTED_PASSES_PER_RAY * rays

    def all_of(self, photographs: Sequence[Photograph]) -> None:
        size = self.options.block
        blocks = [photographs[start : start + size] for start in range(0, len(photographs), size)]
        missing = [[key for key in self.explainers if not self.store.has(b, key)] for b in range(len(blocks))]
        total = sum(self.cost(self.explainers[key], len(blocks[b])) for b, keys in enumerate(missing) for key in keys)
        self.update(images=len(photographs), work_total=total)
        for number, block in enumerate(blocks):
            if missing[number] or not self.store.has(number, IMAGES):
                _Block(self, number, block).evaluate(missing[number])


class _Block:
    """A few images in memory: their pixels, labels and sign gradients."""

    def __init__(self, run: _Run, number: int, photographs: Sequence[Photograph]):
        self.run, self.number, self.photographs = run, number, photographs
        options, network = run.options, run.network
        self.pixels = torch.stack([network.pixels(one.open()) for one in photographs]).to(options.device)
        self.images = network.normalised(self.pixels)
        self.evaluator = Evaluator(
            network.model,
            self.images,
            max_epsilon=options.max_epsilon,
            step=options.step,
            search=options.search,
            batch_size=options.batch_size,
        )
        self.labels = self.evaluator.labels

    def evaluate(self, keys: Sequence[str]) -> None:
        if not self.run.store.has(self.number, IMAGES):
            self.describe_images()
        for key in keys:
            self.step(key, self.run.explainers[key])

    def describe_images(self) -> None:
        network, store = self.run.network, self.run.store
        with torch.no_grad():
            log_probability = torch.cat([network.model(one) for one in self.images.split(1)]).double().log_softmax(1)
        rows = []
        for n, photograph in enumerate(self.photographs):
            label, accepted = int(self.labels[n]), network.indices_of(photograph.categories)
            store.write_file(store.photograph(photograph.name), png_of(self.pixels[n]))
            rows.append(
                {
                    "image": photograph.name,
                    "subject": photograph.subject,
                    "source": photograph.source,
                    "label": label,
                    "prediction": network.categories[label],
                    "confidence": float(log_probability[n, label].exp()),
                    "correct": label in accepted,
                    "loss": -float(log_probability[n, accepted[0]]) if accepted else float("nan"),
                }
            )
        store.write(self.number, IMAGES, rows)

    def step(self, key: str, explainer: Explainer) -> None:
        run, options = self.run, self.run.options
        count = len(self.photographs)
        done_before, probes_before = run.state.work, run.state.probes
        seconds_before = run.state.search_seconds

        def explained(images_done: int, images_total: int) -> None:
            work = done_before + explainer.passes_per_image * images_done
            run.update(images_done=images_done, images_total=images_total, work=work)

        run.update(explainer=explainer.name, explaining=True, images_done=0, images_total=count)
        started = time.perf_counter()
        attribution = explainer(run.network.model, self.images, self.labels, progress=explained)
        maps = {name: STAGES[name](attribution, self.pixels, options.percentile) for name in options.stages}
        attribution_seconds = time.perf_counter() - started

        explained_work = done_before + explainer.passes_per_image * count
        expected = run.cost(explainer, count) - explainer.passes_per_image * count

        def searched(rays_done: int, rays_total: int, probes: int) -> None:
            # Rays end together, so probes tell more of the way than finished rays do.
            share = max(rays_done / rays_total, min(0.95, probes / expected)) if rays_total else 1.0
            run.update(
                rays_done=rays_done,
                rays_total=rays_total,
                probes=probes_before + probes,
                search_seconds=seconds_before + time.perf_counter() - started,
                work=explained_work + share * expected,
            )

        run.update(explaining=False, rays_done=0, rays_total=2 * count * len(maps), work=explained_work)
        started = time.perf_counter()
        results = self.evaluator.apem(maps, progress=searched)
        search_seconds = time.perf_counter() - started

        rows = self.rows(key, results, attribution_seconds, search_seconds)
        for stage, relevance in maps.items():
            self.save_maps(key, stage, relevance)
        run.store.write(self.number, key, rows)
        probes = sum(row["probes"] for row in rows)
        run.update(
            work=done_before + run.cost(explainer, count),
            probes=probes_before + probes,
            search_seconds=seconds_before + search_seconds,
            finished=(
                f"{explainer.name}: {_count(count, 'image')} at {_count(len(maps), 'stage')}, {2 * count * len(maps)} rays, "
                f"{probes:,} forward passes, {attribution_seconds + search_seconds:.1f} s"
            ),
        )
        run.state = replace(run.state, finished="")

    def save_maps(self, key: str, stage: str, relevance: Tensor) -> None:
        store = self.run.store
        for photograph, map_ in zip(self.photographs, relevance):
            store.write_file(store.map(photograph.name, key, stage), png_of(map_))

    def rows(
        self, key: str, results: dict[str, ApemResult], attribution_seconds: float, search_seconds: float
    ) -> list[dict[str, Any]]:
        """A row for each stage and image. Times are shared out so that sums over rows are the times that passed: the
        explanation's equally, the search's by forward passes."""
        options = self.run.options
        all_probes = sum(int(result.probes.sum()) for result in results.values())
        rows = []
        for stage, result in results.items():
            columns = {
                name: getattr(result, name).tolist()
                for name in ("epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus", "probes")
            }
            for n, photograph in enumerate(self.photographs):
                row = {"image": photograph.name, "explainer": key, "stage": stage}
                row |= {name: values[n] for name, values in columns.items()}
                # The scan tries every grid point from the first up to the flip, or to the end.
                row["scan_probes"] = round(row["epsilon_minus"] / options.step) + round(
                    row["epsilon_plus"] / options.step
                )
                row["attribution_seconds"] = attribution_seconds / (len(self.photographs) * len(results))
                row["search_seconds"] = search_seconds * row["probes"] / max(all_probes, 1)
                rows.append(row)
        return rows


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
