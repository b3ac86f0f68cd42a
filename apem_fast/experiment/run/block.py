"""One block of images: they are read, described, explained and measured, with one shard for each explainer.

All explainers of a block share the images' sign gradients, and an explainer's maps of all stages share one search. A
map that leaves no ray gets a row with the reason; the run goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.run.columns import MEASURES, Explained
from apem_fast.experiment.run.explaining import Given, maps_of, with_stand_ins
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.progress import ProgressKeeper
from apem_fast.experiment.run.reading import Reader
from apem_fast.experiment.run.store import IMAGES, LEFT_OUT, RunStore
from apem_fast.experiment.run.tables import CURVE, OF_SEARCH, OF_SHUFFLES, SHUFFLE, columns_of_results, empty_row
from apem_fast.explain import Explainer
from apem_fast.files.pictures import png_of
from apem_fast.measures.adversarial_curves import FlippedImages, flipped_images
from apem_fast.metric import ApemResult, Evaluator
from apem_fast.metric.normalised import ShuffledEpsilons, shuffled_epsilons
from apem_fast.relevance import STAGES

EXPECTED_PROBES_PER_RAY = 6.0
"""Used only to estimate the time left."""
CLEAN_WORK = 6.0
"""An image's prediction and sign gradient, in float64 too, cost so many forward passes. Also only an estimate."""

NAN = float("nan")


def digest_of(pixels: Tensor) -> str:
    """A digest of an image's pixels, (3, H, W), before they are normalised for the network."""
    whole = pixels.detach().cpu().contiguous()
    return hashlib.blake2b(repr(tuple(whole.shape)).encode() + whole.numpy().tobytes(), digest_size=16).hexdigest()


def expected_work(explainer: Explainer, images: int, options: RunOptions) -> float:
    """The expected cost of one explainer on so many images, in forward passes of one image."""
    rays = 2 * images * len(options.stages) * (1 + options.shuffles)
    chosen = [MEASURES[name] for name in options.measures]
    a_map = sum(one.curves for one in chosen) * (options.parts + 1) + sum(one.probes for one in chosen)
    measuring = images * len(options.stages) * a_map
    return explainer.cost_per_image * images + EXPECTED_PROBES_PER_RAY * rays + measuring


class Block:
    """A few images in memory: their pixels, labels and sign gradients.

    Args:
        number: of the block within the run.
        photographs: its images.
        options, network, store: of the run.
        device: where the network is.
        progress: gets every advance.
        reader: of the run's photographs.
        before: the evaluator of an earlier block, whose tuned batches and captured graphs are reused.
    """

    def __init__(
        self,
        number: int,
        photographs: Sequence[Photograph],
        options: RunOptions,
        network: Network,
        store: RunStore,
        device: str,
        progress: ProgressKeeper,
        reader: Reader | Network,
        before: Evaluator | None = None,
    ):
        self.number, self.options, self.network, self.store, self.progress = number, options, network, store, progress
        self.photographs, read = self.read(photographs, reader)
        if self.photographs:
            self.read_values = read
            self.images, self.pixels = network.images_and_pixels(torch.stack(read).to(device))
        self.before = before

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of all images of the block; made when it is first used."""
        return self.evaluator_of(self.images, self.before)

    @property
    def labels(self) -> Tensor:
        """The network's predictions: (N,) int64."""
        return self.evaluator.labels

    def given(self, labels: Tensor | None = None) -> Given:
        """The inputs of the explainers, with these labels if they are known already."""
        names = [photograph.name for photograph in self.photographs]
        return Given(self.network.model, names, self.images, self.pixels, self.labels if labels is None else labels)

    def evaluator_of(self, images: Tensor, before: Evaluator | None) -> Evaluator:
        if before is not None and before.images.shape[1:] == images.shape[1:]:
            return before.on(images)
        o = self.options
        return Evaluator(
            self.network.model,
            images,
            max_epsilon=o.max_epsilon,
            step=o.step,
            search=o.search,
            batch_size=o.batch_size,
            precision=o.precision,
            record=o.record,
            compile=o.compile,
            bounds=self.network.bounds(o.bounds),
        )

    def read(
        self, photographs: Sequence[Photograph], reader: Reader | Network
    ) -> tuple[list[Photograph], list[Tensor]]:
        """The images that can be read, which must be the same each time, and their pixels."""
        described = self.store.has(self.number, IMAGES)
        known = dict(self.store.read(self.number, IMAGES)[["image", "digest"]].to_numpy()) if described else {}
        readable, pixels, left_out = [], [], []
        for one in photographs:
            if described and one.name not in known:
                continue
            try:
                pixels.append(reader.read(one))
            except OSError as error:
                if described:
                    raise ValueError(
                        f"{one.path} could be read when the run began, and cannot be now ({error})"
                    ) from None
                left_out.append({"path": one.source, "reason": str(error)})
            else:
                if described and digest_of(pixels[-1]) != known[one.name]:
                    raise ValueError(
                        f"{one.path} shows something else than it did when the run began; choose another folder for a "
                        "new run, or put the image back to continue this one"
                    )
                readable.append(one)
        if left_out:
            self.store.write(self.number, LEFT_OUT, left_out)
        return readable, pixels

    def evaluate(self, explainers: Mapping[str, Explainer]) -> None:
        """Writes the block's missing shards: that of its images, and those of these explainers."""
        if not self.store.has(self.number, IMAGES):
            self.store.write(self.number, IMAGES, self.describe_images())
        for key, explainer in explainers.items():
            if self.photographs:
                self.step(key, explainer)
            else:
                self.store.write(self.number, key, [])

    # -- images --------------------------------------------------------------------------------------------------

    def pictured(self, n: int) -> bool:
        """Whether the run keeps the pictures of the block's n-th image."""
        limit = self.options.pictures
        return limit is None or self.number * self.options.block_size + n < limit

    def describe_images(self) -> list[dict[str, Any]]:
        network, store = self.network, self.store
        rows = []
        for n, photograph in enumerate(self.photographs):
            if self.pictured(n):
                store.write_file(store.photograph(photograph.name), png_of(self.pixels[n]))
            log_probability = self.evaluator.logits[n].double().log_softmax(0)
            label, accepted = int(self.labels[n]), network.accepted(photograph)
            rows.append(
                {
                    "image": photograph.name,
                    "subject": photograph.subject,
                    "source": photograph.source,
                    "label": label,
                    "prediction": network.categories[label],
                    "confidence": float(log_probability[label].exp()),
                    "correct": label in accepted if accepted else None,
                    "loss": -float(log_probability[accepted[0]]) if accepted else NAN,
                    "truth": network.categories[accepted[0]] if accepted else "",
                    "truth_label": accepted[0] if accepted else -1,
                    "digest": digest_of(self.read_values[n]),
                    "dropped": network.dropped(photograph),
                }
            )
        return rows

    # -- one explainer -------------------------------------------------------------------------------------------

    def step(self, key: str, explainer: Explainer) -> None:
        options, progress, count = self.options, self.progress, len(self.photographs)
        before = progress.state
        explaining = explainer.cost_per_image * count
        expected = expected_work(explainer, count, options)

        def ahead_of(images_done: int) -> float:
            at_once = explainer.images_at_once(self.images.device)
            return explainer.cost_per_image * min(at_once, count - images_done)

        def explained(images_done: int, images_total: int) -> None:
            work, ahead = before.work + explainer.cost_per_image * images_done, ahead_of(images_done)
            progress.update(images_done=images_done, images_total=images_total, work=work, ahead=ahead)

        name = self.store.record["explainers"][key]["name"]  # a program may have given the method another name
        progress.update(
            doing="",
            explainer=name,
            explaining=True,
            images_done=0,
            images_total=count,
            ahead=ahead_of(0),
        )
        started = time.perf_counter()
        maps, flags = maps_of(explainer, self.given(), options.stages, options.percentile, explained)
        attribution_seconds = time.perf_counter() - started

        rays = 2 * sum(flag == "" for of_stage in flags.values() for flag in of_stage)
        searching = EXPECTED_PROBES_PER_RAY * 2 * count * len(options.stages)
        progress.update(explaining=False, rays_done=0, rays_total=rays, work=before.work + explaining, ahead=0.0)
        started = time.perf_counter()

        def searched(rays_done: int, rays_total: int, probes: int) -> None:
            # Rays end at about the same time, so probes show the progress better than finished rays.
            share = max(rays_done / rays_total, min(0.95, probes / searching)) if rays_total else 1.0
            progress.update(
                rays_done=rays_done,
                rays_total=rays_total,
                probes=before.probes + probes,
                search_seconds=before.search_seconds + time.perf_counter() - started,
                work=before.work + explaining + share * searching,
            )

        measurable = with_stand_ins(maps, flags)
        results = self.evaluator.apem(measurable, progress=searched) if measurable else {}
        search_seconds = time.perf_counter() - started
        shuffling = time.perf_counter()
        shuffles = self.shuffle(measurable, before.work + explaining + searching, before.work + expected)
        shuffle_seconds = (time.perf_counter() - shuffling) / (count * len(maps))
        rows = self.rows(key, flags, results, attribution_seconds, search_seconds)
        self.add_shuffles(rows, shuffles, results, shuffle_seconds)
        self.add_measures(rows, measurable, explainer)
        for stage, relevance in maps.items():
            self.save_maps(key, stage, relevance)
        self.store.write(self.number, key, rows)

        probes = sum(row["probes"] for row in rows)
        more = f" and {probes_of(shuffles):,} for {_count(options.shuffles, 'shuffle')}" if options.shuffles else ""
        progress.update(
            work=before.work + expected,
            probes=before.probes + probes + probes_of(shuffles),
            search_seconds=before.search_seconds + time.perf_counter() - started,
            finished=(
                f"{name}: {_count(count, 'image')} at {_count(len(maps), 'stage')}, {rays} rays, "
                f"{probes:,} probes{more}, {attribution_seconds + time.perf_counter() - started:.1f} s"
            ),
        )

    def shuffle(self, maps: Mapping[str, Tensor], work: float, work_after: float) -> dict[str, ShuffledEpsilons]:
        options, progress = self.options, self.progress
        if not options.shuffles or not maps:
            return {}
        before, started = progress.state, time.perf_counter()
        found: dict[str, ShuffledEpsilons] = {}

        def measured(rays_done: int, rays_total: int, probes: int) -> None:
            share = (len(found) + rays_done / rays_total) / len(maps)
            progress.update(
                doing=f"{rays_done} of {rays_total} rays of shuffled maps",
                probes=before.probes + probes_of(found) + probes,
                search_seconds=before.search_seconds + time.perf_counter() - started,
                work=work + share * (work_after - work),
            )

        for stage, relevance in maps.items():
            found[stage] = shuffled_epsilons(
                self.evaluator, relevance, shuffles=options.shuffles, seed=options.seed, progress=measured
            )
        return found

    def save_maps(self, key: str, stage: str, relevance: Tensor) -> None:
        for n, (photograph, map_) in enumerate(zip(self.photographs, relevance)):
            if self.pictured(n):
                self.store.write_file(self.store.map(photograph.name, key, stage), png_of(map_))

    # -- rows ----------------------------------------------------------------------------------------------------

    def rows(
        self,
        key: str,
        flags: Mapping[str, Sequence[str]],
        results: Mapping[str, ApemResult],
        attribution_seconds: float,
        search_seconds: float,
    ) -> list[dict[str, Any]]:
        """A row for each stage and image.

        Times are divided among the rows, so that their sum is the elapsed time: the explanation's time equally, the
        search's in proportion to probes."""
        rows = []
        shared = attribution_seconds / (len(self.photographs) * len(flags))
        columns = columns_of_results(self.options.shuffles, self.options.measures, self.options.curves)
        for stage, of_stage in flags.items():
            for n, (photograph, flag) in enumerate(zip(self.photographs, of_stage)):
                row = empty_row(columns)
                row |= {"image": photograph.name, "explainer": key, "stage": stage, "flag": flag}
                rows.append(row | {"attribution_seconds": shared} | ({} if flag else self.measured(results[stage], n)))
        all_probes = sum(row["probes"] for row in rows)
        for row in rows:
            row["search_seconds"] = search_seconds * row["probes"] / max(all_probes, 1)
        return rows

    def measured(self, result: ApemResult, n: int) -> dict[str, Any]:
        row = {name: getattr(result, name)[n].item() for name in OF_SEARCH}
        # A scan tries every grid point from the first up to the flip, or to the end of the grid.
        step = self.options.step
        scan = round(row["epsilon_minus"] / step) + round(row["epsilon_plus"] / step)
        return row | {"scan_probes": scan, "record": result.record}

    def add_shuffles(
        self,
        rows: list[dict[str, Any]],
        shuffles: Mapping[str, ShuffledEpsilons],
        results: Mapping[str, ApemResult],
        seconds: float,
    ) -> None:
        """Adds the columns of shuffled maps; `seconds` is each row's share of their time."""
        if not self.options.shuffles:
            return
        for i, row in enumerate(rows):
            if not row["flag"]:
                n, of_stage = i % len(self.photographs), shuffles[row["stage"]]
                row |= {f"{SHUFFLE}{name}": getattr(of_stage, name)[n].item() for name in OF_SHUFFLES}
                row["score_norm"] = of_stage.normalised_score(results[row["stage"]])[n].item()
            row["shuffled_seconds"] = seconds

    def add_measures(self, rows: list[dict[str, Any]], maps: Mapping[str, Tensor], explainer: Explainer) -> None:
        options, count = self.options, len(self.photographs)
        if not options.measures:
            return
        for stage, of_stage in _by_stage(rows).items():
            if stage not in maps:
                continue
            self.progress.update(doing=f"other measures, {stage}")
            started = time.perf_counter()
            explained = Explained(
                self.evaluator,
                self.network,
                explainer,
                STAGES[stage],
                options.percentile,
                maps[stage],
                options.imputation,
                options.parts,
                options.seed,
                lambda: self.flipped,
            )
            values = {name: MEASURES[name].of(explained).tolist() for name in options.measures}
            curves = {name: MEASURES[name].curve for name in options.measures} if options.curves else {}
            drawn = {f"{name}{CURVE}": of(explained).output.tolist() for name, of in curves.items() if of is not None}
            seconds = (time.perf_counter() - started) / count
            for n, row in enumerate(of_stage):
                if not row["flag"]:
                    row |= {name: values[name][n] for name in options.measures}
                    row |= {name: of_images[n] for name, of_images in drawn.items()}
                row |= {"measure_probes": int(explained.probes[n]), "measure_seconds": seconds}
        self.progress.update(doing="")

    @cached_property
    def flipped(self) -> FlippedImages:
        """The block's adversarial images, which all explainers and stages share."""
        return flipped_images(self.evaluator)


def _by_stage(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["stage"], []).append(row)
    return found


def probes_of(shuffles: Mapping[str, ShuffledEpsilons]) -> int:
    return sum(int(one.probes.sum()) for one in shuffles.values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
