"""An audit of a finished run: rays drawn at random are made again and scanned at every grid point.

    audit/00000.gradient.parquet      the scans of one explainer's rays on block 0: a row for each ray
    audit/audit.json                  the result, once all scans are done: see `RunAudit`

A scan only depends on its ray, not on the draw. So an audit that was stopped, or one with more rays, only scans what is
missing. Rays are drawn from those of the table, not from those of shuffled maps.

The maps are made as the run made them: images that an explainer got in one batch are explained together again, since
the rest of a batch can change the rounding. The network, the images and the type that decides margins close to 0 are
not kept in the run and must be the same. Another processor or version of torch may round differently; the record says
what the audit was made with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from torch import Tensor

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.networks import imported_by_network
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.run.audited_rays import KEY, RunAudit, bound, digest_of_rays, draw, rays_of, within
from apem_fast.experiment.run.block import Block
from apem_fast.experiment.run.explaining import NO_MAP, NOT_FINITE, maps_of
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.progress import ProgressKeeper, RunProgress
from apem_fast.experiment.run.provenance import provenance
from apem_fast.experiment.run.ranks import Ranks, torchrun_ranks
from apem_fast.experiment.run.reading import Reader
from apem_fast.experiment.run.scans import Scans
from apem_fast.experiment.run.store import IMAGES, RunStore
from apem_fast.explain import Explainer, explainer_from, imported_by
from apem_fast.files.checksums import Damaged, json_with_checksum
from apem_fast.metric import Evaluator
from apem_fast.metric.auditing import Difference, scanned
from apem_fast.results import counted


@dataclass(frozen=True)
class Part:
    """The rays to scan of one explainer on one block."""

    block: int
    key: str
    rays: pandas.DataFrame


def audit_run(
    store: RunStore,
    *,
    rays: int = 300,
    seed: int = 0,
    stratified: bool = False,
    up_to: float | None = None,
    trust: bool = False,
    device: str | None = None,
    progress: Callable[[RunProgress], None] | None = None,
) -> RunAudit:
    """Scans rays of a run, drawn at random, at every grid point up to their flips; keeps the result in its folder.

    Under torchrun the work is divided among the processes; each returns the whole audit.

    Args:
        store: the run.
        rays: how many; each map has two.
        seed: of the draw.
        stratified: whether each explainer and stage gets its share of the rays.
        up_to: draw only from rays whose epsilon was found to be at most this; the result is then about these alone. The
            time of a scan is proportional to its epsilon.
        trust: whether to import code that the run names and that is not of this package, torchvision, timm or Captum.
        device: where the network runs; None for the run's own device.
        progress: called often, with this process's share.

    Raises:
        ValueError, FileNotFoundError: one sentence: there are fewer rays, or images or weights are gone or changed.
    """
    with torchrun_ranks() as ranks:
        keeper = ProgressKeeper(progress, ranks.rank, ranks.count)
        on = ranks.device(device or store.options.device)
        with torch.cuda.device(on) if on.startswith("cuda") else nullcontext():
            return _Auditor(store, ranks, keeper, on).audit(rays, seed, stratified, up_to, trust)


class _Auditor:
    def __init__(self, store: RunStore, ranks: Ranks, progress: ProgressKeeper, device: str):
        self.store, self.ranks, self.progress, self.device = store, ranks, progress, device
        self.scans = Scans(store)
        self.evaluator: Evaluator | None = None

    def audit(self, rays: int, seed: int, stratified: bool, up_to: float | None, trust: bool) -> RunAudit:
        ranks, store = self.ranks, self.store
        every = ranks.all_do(lambda: within(rays_of(store), up_to))
        with ExitStack() as stack:
            ranks.first_does(lambda: stack.enter_context(store.claimed(store.folder)))
            chosen, missing = ranks.first_does(lambda: self.planned(draw(every, rays, seed, stratified), trust))
            if missing:
                self.progress.update(doing="reading images")
                network, photographs = ranks.all_do(self.inputs)
                ranks.each_does(lambda: self.work(network, photographs, ranks.share(missing)), self.progress.waiting)
            return ranks.first_does(lambda: self.concluded(every, chosen, seed, stratified, up_to))

    def planned(self, chosen: pandas.DataFrame, trust: bool) -> tuple[pandas.DataFrame, list[Part]]:
        """The drawn rays with their blocks, and those that are not scanned yet."""
        blocks = self.block_of_image()
        chosen = chosen.assign(block=chosen["image"].map(blocks))
        missing = []
        for (block, key), part in chosen.groupby(["block", "explainer"], sort=False):
            try:
                kept = self.scans.read(block, key)
            except Damaged as error:
                self.progress.update(
                    finished=f"{self.scans.path(block, key)} is damaged ({error}); its rays are scanned again"
                )
                self.scans.remove(block, key)
                kept = self.scans.read(block, key)
            known = set(kept[KEY].itertuples(index=False, name=None))
            new = [ray not in known for ray in part[KEY].itertuples(index=False, name=None)]
            if any(new):
                missing.append(Part(int(block), str(key), part[new]))
        if missing and not trust:
            options = self.store.options
            foreign = [
                *imported_by_network(options.network),
                *(path for part in missing for path in imported_by(part.key)),
            ]
            if foreign:
                raise ValueError(
                    f"{self.store.folder} names code of somebody's own ({', '.join(dict.fromkeys(foreign))}), which an "
                    "audit would run; --trust runs it"
                )
        return chosen, missing

    def block_of_image(self) -> dict[str, int]:
        selection = self.store.selection()
        if selection is None:
            raise ValueError(f"{self.store.folder} has not chosen its images yet, so there is nothing to audit")
        return {name: n // self.store.options.block_size for n, name in enumerate(selection.names)}

    def inputs(self) -> tuple[Network, dict[str, Photograph]]:
        options = self.store.options
        network, images = inputs_of(options, self.device)
        if network.digest != self.store.record.get("digests", {}).get("network"):
            raise ValueError(
                f"{self.store.folder} was made with another network={options.network} than that of now: it or its "
                "weights have changed, so its epsilons cannot be audited"
            )
        return network, {one.name: one for one in images.photographs}

    def work(self, network: Network, photographs: dict[str, Photograph], parts: Sequence[Part]) -> None:
        step = self.store.options.step
        explainers = {part.key: explainer_from(part.key) for part in parts}
        costs = [part.rays["found"].sum() / step for part in parts]
        self.progress.update(doing="", work_total=float(sum(costs)))
        for part, cost in zip(parts, costs):
            before = self.progress.state
            self.scan(network, photographs, part, explainers[part.key])
            self.progress.update(work=before.work + float(cost))

    def scan(self, network: Network, photographs: dict[str, Photograph], part: Part, explainer: Explainer) -> None:
        """Makes the part's maps again, and scans its rays stage by stage."""
        progress, scans = self.progress, self.scans
        progress.update(explainer=explainer.name, explaining=True, images_done=0, images_total=1)
        names = list(dict.fromkeys(part.rays["image"]))
        images, labels, maps = self.maps_again(network, photographs, part, explainer, names)
        evaluator = self.evaluator = self.evaluator_of(network, images, labels)
        if set(part.rays["record"]) != {evaluator.record}:
            raise ValueError(
                f"{self.store.folder} had margins close to 0 decided in {', '.join(sorted(set(part.rays['record'])))}, "
                f"which here are decided in {evaluator.record}: an audit would compare two records"
            )
        progress.update(explaining=False)
        place = {name: n for n, name in enumerate(names)}
        for stage, rays in part.rays.groupby("stage", sort=False):
            before, started = progress.state, time.perf_counter()

            def searched(done: int, total: int, probes: int, before: Any = before, started: float = started) -> None:
                progress.update(
                    rays_done=done,
                    rays_total=total,
                    probes=before.probes + probes,
                    search_seconds=before.search_seconds + time.perf_counter() - started,
                    work=before.work + probes,
                )

            rays = rays.assign(ray=2 * rays["image"].map(place) + rays["irrelevance"]).sort_values("ray")
            which: NDArray[np.int64] = rays["ray"].to_numpy(np.int64)
            (epsilon, probes), flipped = scanned(evaluator, maps[str(stage)], which, searched)
            seconds = time.perf_counter() - started
            rows = [
                {name: ray[name] for name in KEY}
                | {"scanned": float(epsilon[i]), "scanned_flipped": bool(flipped[i]), "probes": int(probes[i])}
                | {"seconds": seconds * int(probes[i]) / max(1, int(probes.sum()))}
                for i, ray in enumerate(rays.to_dict("records"))
            ]
            scans.add(part.block, part.key, rows)
            differ = int(((rays["found_flipped"] != flipped) | (rays["found"] != epsilon)).sum())
            progress.update(
                finished=f"{explainer.name}, {stage}: {counted(len(rays), 'ray')} scanned, {differ} differ, "
                f"{int(probes.sum()):,} probes, {seconds:.1f} s"
            )

    def maps_again(
        self, network: Network, photographs: dict[str, Photograph], part: Part, explainer: Explainer, names: list[str]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images, labels and maps by stage of the images of these names, as the run made them."""
        store = self.store
        described = store.read(part.block, IMAGES)
        label_of = dict(zip(described["image"], described["label"]))
        of_block = described["image"].tolist()
        flags = store.read(part.block, part.key)["flag"]
        # The same batches that the run gave the explainer.
        at_once = 1 if flags.isin((NO_MAP, NOT_FINITE)).any() else explainer.images_at_once(torch.device(self.device))
        images, maps = [], []
        for start in range(0, len(of_block), at_once):
            together = of_block[start : start + at_once]
            wanted = [n for n, name in enumerate(together) if name in names]
            if not wanted:
                continue
            for name in together:
                if name not in photographs:
                    raise ValueError(f"{store.folder} holds a run with an image {name!r} that is not there any more")
            with Reader.beside(self.device, network.pixels) as reader:
                these = [photographs[name] for name in together]
                block = Block(part.block, these, store.options, network, store, self.device, self.progress, reader)
            labels = torch.tensor([label_of[name] for name in together], device=block.images.device)
            o = store.options
            made, _ = maps_of(explainer, block.given(labels), o.stages, o.percentile, lambda done, total: None)
            images.append(block.images[wanted])
            maps.append({stage: one[wanted] for stage, one in made.items()})
        order = [name for name in of_block if name in names]
        back = [order.index(name) for name in names]
        labels = torch.tensor([label_of[name] for name in names], device=images[0].device)
        return (
            torch.cat(images)[back],
            labels,
            {stage: torch.cat([one[stage] for one in maps])[back] for stage in maps[0]},
        )

    def evaluator_of(self, network: Network, images: Tensor, labels: Tensor) -> Evaluator:
        if self.evaluator is not None and self.evaluator.images.shape[1:] == images.shape[1:]:
            return self.evaluator.on(images, labels)
        o = self.store.options
        return Evaluator(
            network.model,
            images,
            labels=labels,
            max_epsilon=o.max_epsilon,
            step=o.step,
            batch_size=o.batch_size,
            record=o.record,
        )

    def concluded(
        self, every: pandas.DataFrame, chosen: pandas.DataFrame, seed: int, stratified: bool, up_to: float | None
    ) -> RunAudit:
        """Compares the drawn rays with their scans, and keeps the result."""
        parts = chosen[["block", "explainer"]].drop_duplicates().itertuples(index=False)
        scans = pandas.concat([self.scans.read(int(block), key) for block, key in parts])
        audited = chosen.merge(scans, on=KEY, how="left", validate="one_to_one")
        if audited["scanned"].isna().any():
            raise ValueError(
                f"{self.store.folder} lacks scans that were written to it: the folder was changed during the audit, or "
                "not every process sees the same one; the same command does what is missing"
            )
        flipped = audited["scanned_flipped"].astype(bool)
        wrong = audited[(flipped != audited["found_flipped"]) | (audited["scanned"] != audited["found"])]
        all_rays = rays_of(self.store)
        audit = RunAudit(
            rays=len(audited),
            of=len(every),
            differences=tuple(_difference(row) for row in wrong.to_dict("records")),
            probes=int(audited["probes"].sum()),
            most_wrong_count=bound(every, audited, wrong, stratified),
            seed=seed,
            stratified=stratified,
            seconds=float(audited["seconds"].sum()),
            population=digest_of_rays(all_rays),
            made_with=provenance(self.device),
            up_to=up_to,
            others=len(all_rays) - len(every),
        )
        record = {name: value for name, value in vars(audit).items() if name != "differences"}
        record["differences"] = [vars(one) for one in audit.differences]
        self.store.write_file(self.store.inside("audit", "audit.json"), json_with_checksum(record))
        return audit


def _difference(row: dict[str, Any]) -> Difference:
    return Difference(
        f"{row['explainer']}, {row['stage']}",
        row["image"],
        bool(row["irrelevance"]),
        float(row["found"]) if row["found_flipped"] else None,
        float(row["scanned"]) if row["scanned_flipped"] else None,
    )
