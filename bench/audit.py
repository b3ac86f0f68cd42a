"""What an audit takes over the forward passes in it: EfficientNet-Lite0, the bundled photographs that flip early.

    python -m bench.audit [--limit 48] [--rounds 3]

The rays along the gradient's maps whose epsilon is at most `--limit` are scanned, and in turns with that the bare model
runs as many inputs as the scans need, one for each step up to the flips, in the batch and memory format that are
best for it in a sweep. More than 1 is: inputs made, margins read, points beyond a flip that are in a batch with it, and
margins too close to 0 that are asked again in float64.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch

import apem_fast as af
from apem_fast.auditing import scanned
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.explain import Gradient
from apem_fast.relevance import STAGES
from bench.throughput import bare_throughput
from bench.timing import interleaved, print_table, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=48.0, help="the greatest epsilon that is scanned")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    network = load_network("efficientnet-lite0")
    pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()])
    images = network.normalised(pixels)
    evaluator = af.Evaluator(network.model, images)
    maps = STAGES["1-channel"](Gradient()(network.model, images), pixels, 99.0)
    result = evaluator.apem({"maps": maps})["maps"]
    epsilon = torch.stack([result.epsilon_minus, result.epsilon_plus], dim=1).flatten().numpy()
    ray = np.flatnonzero(epsilon <= arguments.limit)
    needed = round(float(epsilon[ray].sum()))

    _, size, memory_format = bare_throughput(network.model, images, "float32", "cpu")
    laid_out = copy.deepcopy(network.model).to(memory_format=getattr(torch, memory_format))
    some = images[torch.arange(size) % len(images)].contiguous(memory_format=getattr(torch, memory_format))
    probes = []

    def audit() -> None:
        (found, its_probes), _ = scanned(evaluator, maps, ray)
        assert (found == epsilon[ray]).all()
        probes.append(int(its_probes.sum()))

    def bare() -> None:
        with torch.no_grad():
            for start in range(0, needed, size):
                laid_out(some[: min(size, needed - start)])

    timings = interleaved({"audit": audit, "bare": bare}, rounds=(arguments.rounds, arguments.rounds), warm_ups=1)
    row = {
        "rays": len(ray),
        "inputs needed": needed,
        "probes": probes[-1],
        "bare, a second": needed / timings.median("bare"),
        "batch": f"{size}, {memory_format}",
        "audit over bare": timings.speedup("bare", over="audit"),
    }
    print_table("An audit", [row])
    write_json("audit", [row])


if __name__ == "__main__":
    main()
