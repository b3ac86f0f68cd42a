"""The papers' study in one piece: six methods, three stages, two sets of images, network by network.

P1 section IV-A and P2 section 4.1: 5,000 correctly classified and 5,000 misclassified images of ILSVRC2012's validation
set, VGG-16 and a ResNet; P2 section 5.2: ten shuffles of each map; P1 section IV-D: the filter, on a few maps. A study
is a folder of runs, one for each network, each with its report beside the papers' numbers, and a page that sets them
side by side. Each run goes on where it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apem_fast.experiment.filter.maps import filter_run
from apem_fast.experiment.filter.options import FilterOptions
from apem_fast.experiment.report.comparison import named, write_comparison
from apem_fast.experiment.report.exceptions import exceptional_images
from apem_fast.experiment.report.report import write_report
from apem_fast.experiment.report.summary import write_csv
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.progress import RunProgress
from apem_fast.experiment.run.store import RunStore

METHODS = ("gradient", "smooth-grad", "lrp", "guided-backprop", "grad-cam", "guided-grad-cam")
FILTERED = ("gradient", "smooth-grad", "lrp")  # P1 Figure 7, P2 Figure 4.9
NETWORKS = ("vgg16", "resnet50")  # P1 does not say which ResNet
QUICK = ("gradient", "smooth-grad:samples=20", "lrp", "guided-backprop", "grad-cam", "guided-grad-cam", "random")
SAMPLE = 4  # images by which the time is predicted


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study runs.

    Args:
        runs: the options of each run, by the name of its folder: alike but for the network and its weights.
        filtered: so many images, a run's first, are filtered too, as in P1 Figure 7.
        levels: in how many steps the filter takes a map's values away; None for one value at a time, as P1 has it.
    """

    runs: dict[str, RunOptions]
    filtered: int = 3
    levels: int | None = None

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
            networks: the file of weights of each network; None for those of `NETWORKS`, which need one each.
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
        """The protocol in small, of what comes with the package: the bundled network and photographs, two shuffles,
        SmoothGrad from 20 samples, random maps for comparison, one photograph filtered, in 256 steps."""
        runs = {"efficientnet-lite0": RunOptions(explainers=QUICK, shuffles=2, device=device)}
        return cls(runs=runs, filtered=1, levels=256)

    def missing(self) -> list[str]:
        """What the study lacks, a sentence each; nothing is computed, but for opening the networks and listing the
        images."""
        lacking: list[str] = []
        for name, options in self.runs.items():
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
        """About how long each run takes here, from its first few images; choosing correct and misclassified ones, a
        forward pass for each image looked at, comes on top."""
        seconds = {}
        for name, options in self.runs.items():
            some = replace(options, selection="all", count=None, limit=SAMPLE, pictures=0)
            with tempfile.TemporaryDirectory() as folder:
                results = evaluate(some, Path(folder) / "sample").results()
            columns = [column for column in results if column.endswith("seconds")]
            images = (2 if options.selection == "both" else 1) * options.count if options.count else None
            if images is None:
                _, every = inputs_of(options, options.device)
                images = len(every.photographs)
            seconds[name] = float(results[columns].to_numpy().sum()) / results["image"].nunique() * images
        return seconds

    def run(
        self, folder: str | Path, progress: Callable[[RunProgress], None] | None = None, first: bool = True
    ) -> list[Path]:
        """Run what is not done yet and write the pages; returns them, the one to open first at the head.

        Args:
            folder: where the runs' folders are; what is there is continued.
            progress: as for `evaluate`.
            first: whether this process, one of many, writes the pages.
        """
        folder = Path(folder)
        stores: list[RunStore] = []
        for name, options in self.runs.items():
            stores.append(evaluate(options, folder / name, progress=progress, also_pictured=exceptional_images))
        if not first:
            return []
        pages = []
        for store in stores:
            write_csv(store)
            self._filter(store, progress)
            pages.append(write_report(store, paper=True, device=store.options.device, trust=True))
        if len(stores) > 1:
            pages.insert(0, write_comparison(named(stores), folder / "index.html"))
        return pages

    def _filter(self, store: RunStore, progress: Callable[[RunProgress], None] | None) -> None:
        """The run's first images filtered, those maps that are not yet, for its page."""
        chosen = [key for key in store.options.explainers if key.split(":", maxsplit=1)[0] in FILTERED]
        stages = tuple(stage for stage in FilterOptions().stages if stage in store.options.stages)
        names = list(store.images()["image"][: self.filtered])
        if not (chosen and stages and names):
            return

        def filtering(name: str, settled: int, total: int, probes: int) -> None:
            if progress is not None:
                progress(RunProgress(doing=f"filtering {name}: {settled:,} of {total:,} levels"))

        options = FilterOptions.of_run(
            store, explainers=tuple(chosen), stages=stages, levels=self.levels, device=store.options.device
        )
        filter_run(options, store, names, filtering, trust=True)
