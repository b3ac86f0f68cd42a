"""The runner: from options to a folder of results, in steps that are never repeated.

One step is one explainer on one block of images; its shard is written when all of it is done. So a run can be stopped
at any moment, continued with the same options, divided among many processes, and extended with more explainers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from apem_fast.experiment.inputs.image_folders import ImageSet
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.inputs.selection import Selection, select
from apem_fast.experiment.run.block import CLEAN_WORK, Block, expected_work
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.kept_pictures import keep_pictures
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.progress import ProgressKeeper, RunProgress
from apem_fast.experiment.run.ranks import Ranks, torchrun_ranks
from apem_fast.experiment.run.reading import Reader
from apem_fast.experiment.run.store import IMAGES, LEFT_OUT, RunStore
from apem_fast.explain import Explainer, explainer_from

if TYPE_CHECKING:
    from apem_fast.metric import Evaluator


@dataclass(frozen=True)
class HandedOver:
    """What a Python program passes in: its network, its images, and explainers by their keys in the options."""

    network: Network
    images: ImageSet
    explainers: Mapping[str, Explainer]


Missing = list[tuple[int, list[str]]]
"""The blocks that are not finished, each with the keys of the explainers whose shards it lacks."""


def evaluate(
    options: RunOptions,
    folder: str | Path,
    *,
    progress: Callable[[RunProgress], None] | None = None,
    given: HandedOver | None = None,
    also_pictured: Callable[[RunStore], Sequence[str]] = lambda store: (),
) -> RunStore:
    """Runs what `options` ask for, except for what `folder` already holds.

    Under torchrun, the blocks of images are divided among the processes; each returns when all are done.

    Args:
        options: of the run.
        folder: missing, empty, or of a run with the same options.
        progress: called often, from this thread, with this process's share; an exception it raises stops the run,
            which can be continued.
        given: what a Python program passed in, instead of what the options name.
        also_pictured: called when all results are there; returns images whose pictures are kept in addition to the
            first ones. It is not called if the run keeps no pictures.

    Returns:
        The store: `.results()` is a data frame with a row for each image, explainer and stage.

    Raises:
        ValueError: the network is unknown, images or true classes do not fit it, the folder cannot be written, or it
            holds a run with other options.
        FileNotFoundError: a package of the network or of the photographs is missing.
    """
    with torchrun_ranks() as ranks:
        keeper = ProgressKeeper(progress, ranks.rank, ranks.count)
        share = _Share(options, Path(folder), ranks, keeper, given, also_pictured)
        # Otherwise each of many processes would also claim memory on the first GPU.
        with torch.cuda.device(share.device) if share.device != "cpu" else nullcontext():
            return share.run()


class _Share:
    """This process's share of a run."""

    def __init__(
        self,
        options: RunOptions,
        folder: Path,
        ranks: Ranks,
        progress: ProgressKeeper,
        given: HandedOver | None,
        also_pictured: Callable[[RunStore], Sequence[str]],
    ):
        self.also_pictured = also_pictured
        self.options, self.folder, self.ranks, self.progress = options, folder, ranks, progress
        self.device = ranks.device(options.device)
        self.given = given
        self.explainers = {key: explainer_from(key) for key in options.explainers}
        if given is not None:
            self.explainers |= {key: one for key, one in given.explainers.items() if key in self.explainers}

    def run(self) -> RunStore:
        ranks = self.ranks
        self.progress.update(doing="reading images")
        network, images = ranks.all_do(self.inputs)
        digests = {"network": network.digest, "images": images.digest}
        of_first = ranks.first_does(lambda: digests)
        ranks.all_do(lambda: require_same(digests, of_first))
        with ExitStack() as stack:
            names, missing = ranks.first_does(lambda: self.plan(network, images, digests, stack))
            ranks.require_one_folder(self.folder)
            store = RunStore(self.folder)
            if not missing:
                self.progress.update(finished=finished_already(store, len(names)))
            ranks.each_does(
                lambda: self.work(network, images, names, ranks.share(missing), store), self.progress.waiting
            )
            ranks.first_does(lambda: require_done(store, missing))
            if self.options.pictures != 0:
                also = ranks.share(ranks.first_does(lambda: list(self.also_pictured(store))))
                photographs = {one.name: one for one in images.photographs}
                keep_pictures(store, network, photographs, self.explainers, also, self.device, self.progress)
                ranks.wait_for_all()
        return store

    def inputs(self) -> tuple[Network, ImageSet]:
        if self.given is None:
            return inputs_of(self.options, self.device)
        images = self.given.images
        return self.given.network, replace(images, photographs=images.photographs[: self.options.limit])

    def plan(
        self, network: Network, images: ImageSet, digests: dict[str, str], stack: ExitStack
    ) -> tuple[tuple[str, ...], Missing]:
        """The names of the images that take part, and the missing steps; the folder is claimed until `stack` ends."""
        options = self.options
        stack.enter_context(RunStore.claimed(self.folder))  # before its record is touched
        store = RunStore.for_run(self.folder, options, digests)
        selection = store.selection()
        if selection is None:
            try:
                selection = self.selected(network, images)
            except ValueError:
                store.discard()
                raise
            store.write_selection(selection)
        require_known(selection.names, images, store)
        missing = []
        for number in range(-(-len(selection.names) // options.block_size)):
            self.set_damaged_aside(store, number)
            keys = [key for key in self.explainers if not store.has(number, key)]
            if keys or not store.has(number, IMAGES):
                missing.append((number, keys))
        return selection.names, missing

    def set_damaged_aside(self, store: RunStore, number: int) -> None:
        """Sets damaged shards of this block aside, so that they are done again, and reports each."""
        for key in (LEFT_OUT, IMAGES, *self.explainers):
            if sentence := store.set_aside(number, key):
                self.progress.update(finished=sentence)
                if key == LEFT_OUT:  # written when the images are read for the first time
                    store.forget(number, IMAGES)

    def selected(self, network: Network, images: ImageSet) -> Selection:
        def looked(chosen: int, looked_at: int) -> None:
            self.progress.update(doing=f"choosing images: {chosen:,} of {looked_at:,} looked at")

        options = self.options
        selection = select(
            images.photographs,
            network,
            self.device,
            selection=options.selection,
            count=options.count,
            seed=options.seed,
            progress=looked,
        )
        return replace(selection, left_out=images.left_out + selection.left_out)

    def work(self, network: Network, images: ImageSet, names: Sequence[str], missing: Missing, store: RunStore) -> None:
        options, progress, size = self.options, self.progress, self.options.block_size
        photograph: dict[str, Photograph] = {one.name: one for one in images.photographs}
        blocks = {
            number: [photograph[name] for name in names[number * size : (number + 1) * size]] for number, _ in missing
        }
        total = sum(
            CLEAN_WORK * len(blocks[number])
            + sum(expected_work(self.explainers[key], len(blocks[number]), options) for key in keys)
            for number, keys in missing
        )
        progress.update(doing="", images=sum(map(len, blocks.values())), work_total=total)
        evaluator: Evaluator | None = None
        with Reader.beside(self.device, network.pixels) as reader:
            # A program's own data set is only read from this thread, since it may not be safe in several.
            source = reader if self.given is None else network
            for at, (number, keys) in enumerate(missing):
                before = progress.state
                clean = CLEAN_WORK * len(blocks[number])
                progress.update(doing="predictions and sign gradients", ahead=clean)
                if self.given is None:
                    for to_come, _ in missing[at : at + 2]:
                        reader.ahead(blocks[to_come])
                block = Block(number, blocks[number], options, network, store, self.device, progress, source, evaluator)
                evaluator = block.evaluator if block.photographs else evaluator
                progress.update(work=before.work + clean, ahead=0.0)
                block.evaluate({key: self.explainers[key] for key in keys})
                # Files that could not be read took no work.
                expected = sum(expected_work(self.explainers[key], len(blocks[number]), options) for key in keys)
                finished = before.images_finished + len(blocks[number])
                progress.update(images_finished=finished, work=before.work + clean + expected)


def finished_already(store: RunStore, images: int) -> str:
    """The message of a run that has nothing left to do."""
    methods = len(store.options.explainers)
    return (
        f"{store.folder} was finished already ({images:,} image{'' if images == 1 else 's'}, {methods} "
        f"explanation{'' if methods == 1 else 's'}): nothing is computed again"
    )


def require_same(digests: dict[str, str], of_first: dict[str, str]) -> None:
    """Raises if processes have different networks or images: a user's function may build a random network in each."""
    for name, digest in of_first.items():
        if digest != digests[name]:
            raise ValueError(f"{name}: every process must have the same (got another than the first process has)")


def require_known(names: Sequence[str], images: ImageSet, store: RunStore) -> None:
    """Raises if the record names images that do not exist."""
    known = {one.name for one in images.photographs}
    for name in names:
        if name not in known:
            raise ValueError(f"{store.folder} holds a run with an image {name!r} that is not there any more")


def require_done(store: RunStore, missing: Missing) -> None:
    """Raises if results are missing at the end: the folder was deleted, or is not the same one for all processes."""
    for number, keys in missing:
        for key in (IMAGES, *keys):
            if not store.has(number, key):
                raise ValueError(
                    f"{store.folder} lacks results that were written to it, {store.shard_name(number, key)}: the "
                    "folder was changed during the run, or not every process sees the same one; the same command does "
                    "what is missing"
                )


__all__ = ["RunProgress", "evaluate"]
