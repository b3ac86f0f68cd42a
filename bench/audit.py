"""The time of an audit against that of its forward passes: EfficientNet-Lite0 on the bundled photographs.

    python -m bench.audit [--rays 2] [--from 60] [--to 400] [--rounds 3]

The first few rays along the gradient's maps whose epsilon lies in between are scanned, and in turns with that the bare
model runs as many inputs as the scans need, one for each step up to the flips, in the batch and memory format that are
best for it in a sweep. More than 1 is: inputs made, margins read, points beyond a flip that are in a batch with it, and
margins too close to 0 that are asked again in float64. Processor time is compared beside the time that passed, which
says little where other work is under way.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch

import apem_fast as af
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.explain import Gradient
from apem_fast.metric.auditing import scanned
from apem_fast.relevance import STAGES
from bench.throughput import bare_throughput
from bench.timing import print_table, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=2)
    parser.add_argument("--from", type=float, default=60.0, dest="least", help="the least epsilon of these rays")
    parser.add_argument("--to", type=float, default=400.0, dest="most", help="the greatest")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    network = load_network("efficientnet-lite0")
    pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()])
    images = network.normalised(pixels)
    maps = STAGES["1-channel"](Gradient()(network.model, images), pixels, 99.0)
    result = af.apem(network.model, images, maps)
    epsilon = torch.stack([result.epsilon_minus, result.epsilon_plus], dim=1).flatten().numpy()
    ray = np.flatnonzero((arguments.least <= epsilon) & (epsilon <= arguments.most))[: arguments.rays]
    needed = round(float(epsilon[ray].sum()))

    _, size, memory_format = bare_throughput(network.model, images, "float32", "cpu")
    laid_out = copy.deepcopy(network.model).to(memory_format=getattr(torch, memory_format))
    some = images[torch.arange(size) % len(images)].contiguous(memory_format=getattr(torch, memory_format))

    def bare() -> None:
        with torch.no_grad():
            for start in range(0, needed, size):
                laid_out(some[: min(size, needed - start)])

    rows = []
    for batches, batch_size in (("found on the way", None), (f"{size}, the best of the sweep", size)):
        evaluator = af.Evaluator(network.model, images, batch_size=batch_size)
        probes = []

        def audit(evaluator: af.Evaluator = evaluator, probes: list[int] = probes) -> None:
            (found, its_probes), _ = scanned(evaluator, maps, ray)
            assert (found == epsilon[ray]).all()
            probes.append(int(its_probes.sum()))

        passed, worked = ratios(audit, bare, arguments.rounds)
        rows.append(
            {
                "batches": batches,
                "rays": len(ray),
                "epsilons, mean": float(epsilon[ray].mean()),
                "inputs needed": needed,
                "probes": probes[-1],
                "audit over bare, time passed": passed,
                "audit over bare, processor time": worked,
            }
        )
        print_table("An audit", rows[-1:])
    write_json("audit", rows)


def ratios(one: Callable[[], None], other: Callable[[], None], rounds: int) -> tuple[float, float]:
    """The median ratios of the time that passed and of processor time, from rounds in which both take turns."""
    found = []
    for _ in range(rounds):
        times = [(time.perf_counter(), time.process_time())]
        for call in (one, other):
            call()
            times.append((time.perf_counter(), time.process_time()))
        found.append([(between - begin) / (end - between) for begin, between, end in zip(*times)])
    passed, worked = np.median(found, axis=0)
    return float(passed), float(worked)


if __name__ == "__main__":
    main()
