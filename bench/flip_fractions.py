"""How often a search of the flip fraction misses the first share that changes the prediction, on the real network.

    python -m bench.flip_fractions [--images N] [--maps gradient,random] [--imputations blur,constant,mean]

Every ray is scanned share by share, as by default, and searched by a policy with short strides. Printed: a line for
each map and imputation, and each ray on which the two differ. docs/measures.md has the figures.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.explain import explainer_from
from apem_fast.measures.flip_share import flip_fractions
from apem_fast.metric import Evaluator
from apem_fast.relevance import STAGES
from apem_fast.search import Isolate

STRIDES = Isolate(safety=8, flat=4, steep=16, growth=0.125)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=14)
    parser.add_argument("--maps", default="gradient,random")
    parser.add_argument("--imputations", default="blur,constant,mean")
    arguments = parser.parse_args()
    network = load_network("efficientnet-lite0")
    photographs = bundled_photographs()[: arguments.images]
    pixels = torch.stack([network.pixels(one.open()) for one in photographs])
    images = network.normalised(pixels)
    searched, scanned = (Evaluator(network.model, images, search=search) for search in (STRIDES, "exhaustive"))
    rays = missed = 0
    probes = {"search": 0, "scan": 0}
    seconds = {"search": 0.0, "scan": 0.0}
    for name in arguments.maps.split(","):
        relevance = STAGES["1-channel"](explainer_from(name)(network.model, images), pixels)
        for imputation in arguments.imputations.split(","):
            found = {}
            for which, evaluator in (("search", searched), ("scan", scanned)):
                started = time.perf_counter()
                found[which] = flip_fractions(evaluator, relevance, imputation=imputation)
                seconds[which] += time.perf_counter() - started
                probes[which] += int(found[which].probes.sum())
            fast, slow = (found[which].fraction.numpy() for which in ("search", "scan"))
            wrong = np.flatnonzero((fast != slow) | (found["search"].flipped != found["scan"].flipped).numpy())
            rays, missed = rays + len(fast), missed + len(wrong)
            print(
                f"{name}, {imputation}: {len(wrong)} of {len(fast)} differ; a search takes "
                f"{int(found['search'].probes.sum()) / len(fast):.1f} probes, a scan "
                f"{int(found['scan'].probes.sum()) / len(fast):.1f}; median fraction {np.median(slow):.3f}",
                flush=True,
            )
            for i in wrong:
                print(f"  {photographs[i].name}: found {fast[i]:.3f}, first {slow[i]:.3f}", flush=True)
    print(
        f"{missed} of {rays} rays differ; {probes['search']:,} probes in {seconds['search']:.0f} s against "
        f"{probes['scan']:,} in {seconds['scan']:.0f} s"
    )


if __name__ == "__main__":
    main()
