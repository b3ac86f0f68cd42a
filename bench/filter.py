"""`filter_relevance()` on EfficientNet-Lite0 and real photographs: probes per level, and against the literal loop.

    python -m bench.filter [--photographs cat rocket ...] [--levels 256] [--literal cat]

For each photograph, P2 Algorithm 2 over every level of its gradient map: how many levels went, how many probes that
took, and how many a literal loop would take. For one of them, with the levels grouped, also the loop itself, one level
and one epsilon at a time; it must end at the same map.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import apem_fast as af
from bench.metric import Workload, sign_gradient, workload
from bench.timing import print_table, write_json

MAX_EPSILON = 4096
CHOSEN = ["cat", "rocket", "motorcycle", "palace", "flower"]


def literal_filter(work: Workload, ends: list[float]) -> tuple[Tensor, int]:
    """P2 Algorithm 2 word for word on the first image, `ends` the thresholds of its levels; and its probes."""
    image, relevance = work.images[0], work.relevance[0]
    label, sign = sign_gradient(work.model, image)
    probes = 0

    def score(values: Tensor) -> int:
        nonlocal probes
        flips = []
        for applied in (values, 1 - values):
            direction = applied.expand_as(image)
            direction = direction / direction.sum(dtype=torch.float64).float() * sign
            epsilon = 0
            while epsilon < MAX_EPSILON:
                epsilon, probes = epsilon + 1, probes + 1
                if int(work.model((image + epsilon * direction)[None]).argmax()) != label:
                    break
            flips.append(epsilon)
        return flips[1] - flips[0]

    with torch.no_grad():
        best, best_score = relevance, score(relevance)
        for end in ends:
            zeroed = torch.where(best <= end, 0, best)
            new_score = score(zeroed)
            if new_score < best_score:
                break
            best, best_score = zeroed, new_score
    return best, probes


def group_ends(relevance: Tensor, levels: int) -> list[float]:
    distinct = relevance[relevance > 0].unique()
    groups = min(levels, len(distinct))
    return [float(distinct[t * len(distinct) // groups - 1]) for t in range(1, groups)]


def probes_of_a_literal_loop(curve: af.ScoreCurve) -> int:
    """Every grid point up to both flips at every level that was reached, with a grid step of 1."""
    reached = torch.cat([curve.level[1:], curve.level[-1:] + 1]) - curve.level
    return int((reached * (curve.epsilon_minus + curve.epsilon_plus)).sum())


def timed(call):
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", nargs="*", default=CHOSEN)
    parser.add_argument("--levels", type=int, default=256)
    parser.add_argument("--literal", default="cat", help="the photograph to run the literal loop on; 'none' for none")
    options = parser.parse_args()

    rows, record = [], {}
    for name in options.photographs:
        work = workload([name])
        result, seconds = timed(lambda: af.filter_relevance(work.model, work.images, work.relevance))
        settled, probes = int(result.levels_removed) + 1, int(result.probes)
        literal = probes_of_a_literal_loop(result.curves[0])
        record[name] = {
            "levels": int(result.levels),
            "levels_removed": settled - 1,
            "removed_share": float(result.removed_share),
            "score_before": float(result.score_before),
            "score_after": float(result.score_after),
            "probes": probes,
            "probes_per_level": probes / settled,
            "probes_of_a_literal_loop": literal,
            "seconds": seconds,
            "stopped": result.stopped[0].name,
        }
        rows.append(
            {
                "photograph": name,
                "levels gone": f"{settled - 1} of {int(result.levels)}",
                "score": f"{float(result.score_before):g} -> {float(result.score_after):g}",
                "probes": probes,
                "probes per level": probes / settled,
                "a literal loop's probes": literal,
                "seconds": seconds,
            }
        )
    print_table("Every level of a gradient map", rows)

    if options.literal != "none":
        work = workload([options.literal])
        fast, seconds = timed(
            lambda: af.filter_relevance(work.model, work.images, work.relevance, levels=options.levels)
        )
        print(f"levels={options.levels}: {int(fast.probes)} probes, {seconds:.1f} s; now the literal loop", flush=True)
        (kept, probes), literal_seconds = timed(
            lambda: literal_filter(work, group_ends(work.relevance, options.levels))
        )
        if not torch.equal(kept, fast.relevance[0]):
            raise SystemExit("the literal loop ends at another map")
        record["literal"] = {
            "photograph": options.literal,
            "levels": options.levels,
            "levels_removed": int(fast.levels_removed),
            "probes": int(fast.probes),
            "seconds": seconds,
            "literal_probes": probes,
            "literal_seconds": literal_seconds,
            "speedup": literal_seconds / seconds,
        }
        print_table("Against the literal loop", [record["literal"]])
    write_json("filter", record)


if __name__ == "__main__":
    main()
