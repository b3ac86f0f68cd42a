"""How deep a network search="certified" can prove: rays of networks for digits, of growing depth, proved and scanned.

    python -m bench.certified [--rays 24] [--only "dense"] [--photographs]

Of each network, with images in float32 and in float64: how many of its rays are proved to a share from bounded segments
and to which from single points, whether the epsilons are those of the scan and of the default search, and the time of
the proof over the scan's. `--photographs` asks EfficientNet-Lite0 how low the bound of a single point is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import apem_fast as af
from apem_fast.explain import Gradient
from apem_fast.probing.engine import find_flips
from apem_fast.probing.proving import Proving, proved
from apem_fast.relevance import STAGES
from apem_fast.running.segments import NotBounded
from apem_fast.search import Certified, Exhaustive, Isolate
from bench import small_networks
from bench.small_networks import NETWORKS, digits, trained
from bench.timing import print_table, write_json

STEP, LIMIT = 1 / 16, 256.0


class Counted:
    """A prober that counts what a proof asks of it."""

    def __init__(self, prober: Proving):
        self.prober = prober
        self.segments = np.zeros(len(prober.rays), np.int64)
        self.points = np.zeros(len(prober.rays), np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prober, name)

    def least_margins(self, ray: NDArray, first: NDArray, last: NDArray) -> tuple[NDArray, NDArray]:
        np.add.at(self.segments, ray, 1)
        return self.prober.least_margins(ray, first, last)

    def flips_of_record(self, ray: NDArray, epsilon: NDArray) -> NDArray:
        np.add.at(self.points, ray, 1)
        return self.prober.flips_of_record(ray, epsilon)


def dense(depth: int, width: int = 64) -> nn.Module:
    widths = [small_networks.SIZE**2, *[width] * depth]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def convolutions(depth: int, width: int = 16) -> nn.Module:
    widths = [1, *[width] * depth]
    layers = [
        layer
        for a, b in pairwise(widths)
        for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10))


def residual(blocks: int, width: int = 16) -> nn.Module:
    """As torchvision's ResNet begins: its basic blocks, of two convolutions each, after a first one."""
    from torchvision.models.resnet import BasicBlock

    first = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(
        *first,
        *[BasicBlock(width, width) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, 10),
    )


def networks() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for depth in (1, 2, 4, 8, 12, 16):
        yield f"dense, {depth} x 64", lambda depth=depth: dense(depth)  # type: ignore[misc]
    for width in (256, 1024):
        yield f"dense, 2 x {width}", lambda width=width: dense(2, width)  # type: ignore[misc]
    for depth in (2, 4, 6, 8, 12):
        yield f"convolutions with batch norm, {depth}", lambda depth=depth: convolutions(depth)  # type: ignore[misc]
    for blocks in (1, 2, 3, 4):
        yield f"residual, {blocks} basic blocks", lambda blocks=blocks: residual(blocks)  # type: ignore[misc]
    for name in ("ReLU", "ReLU, adversarially trained"):
        yield f"{name}, 4 convolutions", NETWORKS[name]


def rays_of(network: nn.Module, images: Tensor, dtype: torch.dtype) -> tuple[af.Evaluator, Tensor]:
    network, images = network.to(dtype), images.to(dtype)
    evaluator = af.Evaluator(network, images, max_epsilon=LIMIT, step=STEP)
    return evaluator, STAGES["1-channel"](Gradient()(network, images), images, 99.0)


def row(name: str, network: nn.Module, images: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    evaluator, maps = rays_of(network, images, dtype)
    rays, last = evaluator.rays(maps, np.arange(len(images))), evaluator.options.last_step
    grid = {"step": STEP, "last_step": last}
    with evaluator.probing_exactly(rays) as prober:
        begin = time.perf_counter()
        scan = find_flips(prober, Exhaustive(), **grid)
        scanned = time.perf_counter()
        found = find_flips(prober, Isolate(), **grid)
        counted = Counted(prober)
        searched = time.perf_counter()
        certain = proved(counted, found, Certified(), **grid)
        end = time.perf_counter()
    points = counted.points / np.maximum(1, certain.step)
    return {
        "network": name,
        "images": str(dtype).removeprefix("torch."),
        "rays": len(rays),
        "differ from the scan": int(((certain.step != scan.step) | (certain.flipped != scan.flipped)).sum()),
        "search differs": int(((certain.step != found.step) | (certain.flipped != found.flipped)).sum()),
        "flip, median step": float(np.median(certain.step)),
        "segments, median": float(np.median(counted.segments)),
        "points, median": float(np.median(counted.points)),
        "points over steps, %": 100 * float(np.median(points)),
        "time over the scan's": (end - searched) / (scanned - begin),
        "ms a ray": 1e3 * (end - searched) / len(rays),
    }


def of_photographs() -> None:
    """The bound of single points of EfficientNet-Lite0, which has 49 convolutions."""
    from apem_fast.experiment.inputs.networks import load_network
    from apem_fast.experiment.inputs.photographs import bundled_photographs

    network = load_network("efficientnet-lite0")
    images = network.normalised(torch.stack([network.pixels(one.open()) for one in bundled_photographs()[:2]]))
    for dtype in (torch.float32, torch.float64):
        evaluator = af.Evaluator(network.model.to(dtype), images.to(dtype))
        rays = evaluator.rays(torch.rand(2, 1, *images.shape[2:], dtype=dtype), np.arange(2))
        with evaluator.probing_exactly(rays) as prober:
            lowest, _ = prober.least_margins(np.arange(2), np.ones(2), np.ones(2))
        print(f"EfficientNet-Lite0, {dtype}: margins {rays.margin[:2]}, their bounds at one point {lowest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=24, help="of each network")
    parser.add_argument("--only", default="", help="networks whose names begin so")
    parser.add_argument("--photographs", action="store_true", help="EfficientNet-Lite0's bound at single points alone")
    arguments = parser.parse_args()
    if arguments.photographs:
        return of_photographs()
    every = digits()[0]
    count = arguments.rays // 2
    images = every[torch.arange(count) * (len(every) // count)]
    rows = []
    for name, make in networks():
        if not name.startswith(arguments.only):
            continue
        NETWORKS.setdefault(name, make)
        network = trained(name)
        for dtype in (torch.float32, torch.float64):
            try:
                rows.append(row(name, network, images, dtype))
            except NotBounded as error:
                rows.append({"network": name, "images": str(dtype), "refused": str(error)})
        print_table(name, rows[-2:])
    if not arguments.only:
        write_json("certified", rows)


if __name__ == "__main__":
    main()
