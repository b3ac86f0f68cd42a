"""Three small pieces of work that leave files, as the commands evaluate, filter and siamese train do them; each can say
what its folder holds, so that two folders can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from apem_fast.experiment.filter.filtered import FilteredPhotograph
from apem_fast.experiment.filter.maps import filter_photographs, photographs_named
from apem_fast.experiment.filter.options import FilterOptions
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore
from apem_fast.siamese import checkpoints, regimes
from apem_fast.siamese.networks import SiameseRanker
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.training import TrainingOptions
from reliability import children

SIDE, IMAGES = 24, 4
TIMES = ("attribution_seconds", "search_seconds", "seconds")  # no two runs have the same


def network() -> Network:
    """A small untrained classifier, the same in every process."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5))
    return Network("tiny", model, SIDE, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))


def write_images(folder: Path) -> Path:
    """Four images of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def run_options(images: Path) -> RunOptions:
    return RunOptions(
        network="reliability.commands:network",
        images=str(images),
        explainers=("gradient", "uniform"),
        stages=("1-channel", "times-image"),
        max_epsilon=30.0,
        block=1,
    )


def evaluated(images: Path, folder: Path) -> None:
    evaluate(run_options(images), folder)


def rows_of_run(folder: Path) -> list[tuple[Any, ...]]:
    store = RunStore(folder)
    results = store.results().drop(columns=list(TIMES), errors="ignore")
    rows = [("row", *map(str, row)) for row in results.itertuples(index=False)]
    rows += [("image", *map(str, row)) for row in store.images().itertuples(index=False)]
    rows += [("picture", path.name, path.read_bytes()) for path in folder.rglob("*.png")]
    return sorted(rows)


def filtered(images: Path, folder: Path) -> None:
    options = FilterOptions(network="reliability.commands:network", levels=6, max_epsilon=30.0)
    filter_photographs(options, photographs_named(sorted(map(str, images.glob("*.png")))), folder)


def rows_of_filter(folder: Path) -> list[tuple[Any, ...]]:
    rows = []
    for path in folder.glob("*.pt"):
        one = FilteredPhotograph.load(path)
        numbers = sorted((name, str(value)) for name, value in one.numbers.items() if name not in TIMES)
        rows.append((one.name, str(numbers), *(t.numpy().tobytes() for t in (one.pixels, one.filtered, one.curve))))
    return sorted(rows)


def trained(images: Path, folder: Path) -> None:
    """A ranker of images by their brightness; `images` is not used."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, generator=generator)
    data = RankedImages(values[:, None, None, None].expand(-1, 1, 28, 28).contiguous(), values, 0.0, 1.0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        ranker = SiameseRanker.for_mnist(3)
    options = TrainingOptions(
        steps=12, images=8, pairs=12, progress=False, checkpoint=folder / "training.pt", checkpoint_every=1
    )
    regimes.train_ranking(ranker, data, options)
    checkpoints.save_ranker(folder / "ranker.pt", ranker, "mnist", 3, steps=12)


def rows_of_training(folder: Path) -> list[tuple[Any, ...]]:
    ranker, facts = checkpoints.load_ranker(folder / "ranker.pt")
    content = checkpoints.read(folder / "training.pt", checkpoints.TRAINING, "training")
    rows = [("facts", str(facts)), ("steps", str(len(content["losses"])))]
    rows += [("loss", str(step), str(loss)) for step, loss in enumerate(content["losses"])]
    return rows + [("weights", name, value.numpy().tobytes()) for name, value in ranker.state_dict().items()]


@dataclass(frozen=True)
class Command:
    """A piece of work on a folder of images, and the rows that its folder holds then."""

    name: str
    work: Callable[[Path, Path], None]
    rows: Callable[[Path], list[tuple[Any, ...]]]


COMMANDS = (
    Command("evaluate", evaluated, rows_of_run),
    Command("filter", filtered, rows_of_filter),
    Command("siamese train", trained, rows_of_training),
)


def preload(folder: Path) -> None:
    """Imports what the commands need, before any of them is forked."""
    images = write_images(folder / "images")
    children.preload([partial(one.work, images, folder / one.name) for one in COMMANDS], folder)
