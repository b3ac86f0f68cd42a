"""The papers' study as one object: six methods, three stages, two sets of images, and several networks.

P1 section IV-A and P2 section 4.1: 5,000 correctly classified and 5,000 misclassified images of ILSVRC2012's validation
set, VGG-16 and a ResNet; P2 section 5.2: ten shuffles of each map; P1 section IV-D: the filter, on a few maps. A study
is a folder of runs, one for each network, each with a report that has the papers' numbers beside its own, and a page
that compares the networks. A study that was stopped is continued.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apem_fast.experiment.filter.filtered import FilteredPhotograph
from apem_fast.experiment.filter.maps import filter_run
from apem_fast.experiment.filter.options import FilterOptions
from apem_fast.experiment.report.comparison import named, write_comparison
from apem_fast.experiment.report.exceptions import exceptional_images
from apem_fast.experiment.report.report import write_report
from apem_fast.experiment.report.summary import write_csv
from apem_fast.experiment.run.audit import audit_run
from apem_fast.experiment.run.audited_rays import RunAudit
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.progress import RunProgress
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import BASELINES

METHODS = ("gradient", "smooth-grad", "lrp", "guided-backprop", "grad-cam", "guided-grad-cam")
FILTERED = ("gradient", "smooth-grad", "lrp")  # P1 Figure 7, P2 Figure 4.9
COMPARISON = "index.html"
"""The page that compares several runs, in the study's folder."""
NETWORKS = ("vgg16", "resnet50")  # P1 does not say which ResNet
SAMPLE = 4  # images from which the time is predicted


@dataclass(frozen=True)
class FinishedRun:
    """One run of a study.

    Args:
        store: its folder.
        filtered: the maps that were filtered.
        audit: what scans of some rays say about its epsilons; None if the study has no audit.
        page: its report.
    """

    store: RunStore
    filtered: list[FilteredPhotograph]
    audit: RunAudit | None
    page: Path


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study runs.

    Args:
        runs: the options of each run, by its folder within the study's ("." for that folder itself). They differ only
            in the network and its weights.
        filtered: the images whose maps are filtered, as in P1 Figure 7: their names, or how many of the first.
        filter_methods: the methods whose maps are filtered, of those that a run has.
        levels: the number of steps in which the filter sets a map's values to 0; None for one value at a time, as in
            P1.
        audited: how many rays of each run are scanned to check the search; 0 for none.
        audited_up_to: scan only rays whose epsilon was found to be at most this; None for any.
        closeups: how many images the report shows closely.
    """

    runs: dict[str, RunOptions]
    filtered: int | tuple[str, ...] = 3
    filter_methods: tuple[str, ...] = FILTERED
    levels: int | None = None
    audited: int = 0
    audited_up_to: float | None = None
    closeups: int = 6

    @classmethod
    def of_papers(
        cls,
        *,
        images: str,
        networks: dict[str, str | None] | None = None,
        count: int | None = 5000,
        shuffles: int = 10,
        **others: Any,
    ) -> Study:
        """The papers' protocol.

        Args:
            images: as for `RunOptions`.
            networks: the file of weights of each network; None for the papers' networks, which need one each.
            count: how many images of each set.
            shuffles: of each map.
            others: further fields of `RunOptions`, such as ground_truth, classes, seed, device and precision.
        """
        chosen = dict.fromkeys(NETWORKS) if networks is None else networks
        common = RunOptions(
            images=images,
            selection="both",
            count=count,
            explainers=METHODS,
            shuffles=shuffles,
            **others,
        )
        return cls(runs={name: replace(common, network=name, weights=weights) for name, weights in chosen.items()})

    @classmethod
    def quick(cls, device: str = "cpu") -> Study:
        """A small study of the bundled network and photographs, in a few minutes: `make demo`.

        The six methods and four baselines, no shuffles. The gradient's maps of three photographs are filtered, in 256
        steps, and 100 of the rays with an epsilon of at most 64 are scanned.
        """
        return cls(
            runs={".": RunOptions(explainers=(*METHODS, *BASELINES), device=device)},
            filtered=("cat", "rocket", "flower"),
            filter_methods=("gradient",),
            levels=256,
            audited=100,
            audited_up_to=64,
            closeups=3,
        )

    def missing(self) -> list[str]:
        """What the study lacks, one sentence for each. It only opens the networks and lists the images."""
        lacking: list[str] = []
        for options in self.runs.values():
            name = options.network
            for what, path in (("weights", options.weights), ("ground truth", options.ground_truth)):
                if path not in (None, "none") and not Path(str(path)).is_file():
                    lacking.append(f"{name}: the file of its {what}, {path}, is not there")
            try:
                _, images = inputs_of(options, options.device)
            except (ValueError, FileNotFoundError, ImportError) as error:
                lacking.append(f"{name}: {error}")
                continue
            wanted = 2 * (options.count or 1) if options.selection == "both" else 1
            if len(images.photographs) < wanted:
                lacking.append(
                    f"{name}: two sets of {options.count:,} images need at least {wanted:,} (there are "
                    f"{len(images.photographs):,}); a smaller count does"
                )
        return list(dict.fromkeys(lacking))

    def predicted_seconds(self) -> dict[str, float]:
        """About how long each network takes here, predicted from its first few images.

        Choosing correctly classified and misclassified images takes one forward pass more for each image.
        """
        seconds = {}
        for options in self.runs.values():
            some = replace(options, selection="all", count=None, limit=SAMPLE, pictures=0)
            with tempfile.TemporaryDirectory() as folder:
                results = evaluate(some, Path(folder) / "sample").results()
            columns = [column for column in results if column.endswith("seconds")]
            images = (2 if options.selection == "both" else 1) * options.count if options.count else None
            if images is None:
                _, every = inputs_of(options, options.device)
                images = len(every.photographs)
            seconds[options.network] = float(results[columns].to_numpy().sum()) / results["image"].nunique() * images
        return seconds

    def run(
        self, folder: str | Path, progress: Callable[[RunProgress], None] | None = None, first: bool = True
    ) -> list[FinishedRun]:
        """Runs what is not done yet, and writes the reports; of several runs, also `index.html`, which compares them.

        Args:
            folder: where the runs' folders are. Runs that it holds are continued.
            progress: as for `evaluate`.
            first: whether this process, one of many, filters and writes the pages. The others return nothing.
        """
        folder = Path(folder)
        stores: list[RunStore] = []
        for name, options in self.runs.items():
            stores.append(evaluate(options, folder / name, progress=progress, also_pictured=exceptional_images))
        audits = [self._audit(store, progress) for store in stores]
        if not first:
            return []
        finished = []
        for store, audit in zip(stores, audits):
            write_csv(store)
            filtered = self._filter(store, progress)
            page = write_report(
                store,
                images=self.closeups,
                paper=True,
                device=store.options.device,
                trust=True,
                progress=_told(progress),
            )
            finished.append(FinishedRun(store, filtered, audit, page))
        if len(stores) > 1:
            write_comparison(named(stores), folder / COMPARISON)
        return finished

    def _audit(self, store: RunStore, progress: Callable[[RunProgress], None] | None) -> RunAudit | None:
        if not self.audited:
            return None
        device = store.options.device
        return audit_run(
            store, rays=self.audited, up_to=self.audited_up_to, trust=True, device=device, progress=progress
        )

    def _filter(self, store: RunStore, progress: Callable[[RunProgress], None] | None) -> list[FilteredPhotograph]:
        """Filters the maps that are not filtered yet, for the run's page."""
        chosen = [key for key in store.options.explainers if key.split(":", maxsplit=1)[0] in self.filter_methods]
        stages = tuple(stage for stage in FilterOptions().stages if stage in store.options.stages)
        images = list(store.images()["image"])
        names = images[: self.filtered] if isinstance(self.filtered, int) else list(self.filtered)
        if not (chosen and stages and names):
            return []

        def filtering(name: str, settled: int, total: int, probes: int) -> None:
            if progress is not None:
                progress(RunProgress(doing=f"filtering {name}: {settled:,} of {total:,} levels"))

        options = FilterOptions.of_run(
            store, explainers=tuple(chosen), stages=stages, levels=self.levels, device=store.options.device
        )
        return filter_run(options, store, names, filtering, trust=True)


def _told(progress: Callable[[RunProgress], None] | None) -> Callable[[int, int], None]:
    """Tells the progress of close-ups."""

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(RunProgress(doing=f"close-ups of {done} of {total} images"))

    return told
