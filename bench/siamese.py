"""Attacks measured: the operators against their definitions, and 64 pairs at once against a loop in plain torch.

    python bench/siamese.py [--output bench/results/siamese.json] [--threads 2] [--steps 100] [--pairs 64]

Every figure is a ratio of the least times, taken alternately within one run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from apem_fast import ops
from apem_fast.ops import reference
from apem_fast.siamese.attack import attack
from apem_fast.siamese.networks import SiameseRanker


def alternate(repeats: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Least seconds of each call, taken in turn so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def operator_cases(shape: tuple[int, ...]) -> dict[str, Callable[[object], object]]:
    """Calls by name; each takes the module whose operators it is to call."""
    generator = torch.Generator().manual_seed(0)
    x, original, gradient, previous = (torch.rand(shape, generator=generator) for _ in range(4))
    region = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.5
    ones = torch.ones(shape[0], dtype=torch.float64)

    def penalty(module) -> Tensor:
        module.attack_penalty(x, original, 0.1, 0.0, 0.3)
        return module.attack_penalty_backward(ones, x, original, 0.1, 0.0, 0.3)

    return {
        "a copy of the images": lambda module: x.clone(),
        "attack_penalty, forward and backward": penalty,
        "attack_step": lambda module: module.attack_step(x, gradient, previous, None, 0.1, 0.9),
        "attack_step with region and bounds": lambda module: module.attack_step(
            x, gradient, previous, region, 0.1, 0.9, 0.0, 1.0
        ),
        "attack_step with zero force": lambda module: module.attack_step(
            x, gradient, previous, None, 0.1, 0.9, None, None, original, 0.01
        ),
        "saliency_map": lambda module: module.saliency_map(original, x),
    }


def operators(repeats: int) -> dict:
    results = {}
    for shape in ((64, 1, 28, 28), (64, 3, 112, 112), (16, 3, 224, 224)):
        copied = None
        for name, case in operator_cases(shape).items():
            took = alternate(repeats, native=partial(case, torch.ops.apem_fast), definition=partial(case, reference))
            copied = copied or took["native"]
            results[f"{name} {shape}"] = {
                "times faster than the definition": took["definition"] / took["native"],
                "in copies of the images": took["native"] / copied,
            }
    return results


def plain_loop(
    ranker: SiameseRanker, first: Tensor, second: Tensor, target: float, steps: int, step_size: float
) -> Tensor:
    """P3's Algorithm 2 as one would write it: one pair at a time, rank(A, B) at every step."""
    attacked = []
    for a, b in zip(first.split(1), second.split(1), strict=True):
        a_m = a.clone()
        for _ in range(steps):
            a_m.requires_grad_()
            loss = torch.nn.functional.mse_loss(ranker.rank(a_m, b), torch.full((1,), target))
            loss.backward()
            with torch.no_grad():
                a_m = a_m - step_size * a_m.grad
        attacked.append(a_m)
    ranker.zero_grad(set_to_none=True)
    return torch.cat(attacked)


def bare_passes(ranker: SiameseRanker, first: Tensor, second: Tensor, target: float, steps: int) -> None:
    """The forward and backward passes that any such attack needs, and nothing else."""
    with torch.no_grad():
        other = ranker.embed(second)
    for _ in range(steps):
        point = first.detach().requires_grad_()
        loss = (ranker.rank_embeddings(ranker.embed(point), other) - target).square().sum()
        torch.autograd.grad(loss, point)
    with torch.no_grad():
        ranker.rank_embeddings(ranker.embed(first), other)


def engine(pairs: int, steps: int, loop_pairs: int) -> dict:
    torch.manual_seed(0)
    ranker = SiameseRanker.for_utkface().eval()
    first, second = torch.rand(pairs, 3, 112, 112), torch.rand(pairs, 3, 112, 112)
    step_size = 50.0

    def ours() -> Tensor:
        return attack(ranker, first, second, 0.0, steps=steps, step_size=step_size, batch_size=pairs).perturbed

    took = alternate(3, attack=ours, passes=lambda: bare_passes(ranker, first, second, 0.0, steps))
    start = time.perf_counter()
    looped = plain_loop(ranker, first[:loop_pairs], second[:loop_pairs], 0.0, steps, step_size)
    loop = (time.perf_counter() - start) * pairs / loop_pairs
    attacked = ours()[:loop_pairs]
    moved = (looped - first[:loop_pairs]).abs().max()
    return {
        "pairs": pairs,
        "steps": steps,
        "pairs the loop was run on": loop_pairs,
        "times faster than the loop": loop / took["attack"],
        "over the bare forward and backward passes": took["attack"] / took["passes"],
        "greatest difference from the loop, relative to its greatest perturbation": float(
            (attacked - looped).abs().max() / moved
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bench/results/siamese.json"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--loop-pairs", type=int, help="run the loop on so many pairs only, and scale (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "backend": ops.backend(),
        "torch": torch.__version__,
        "threads": options.threads,
        "operators": operators(options.repeats),
        "engine": engine(options.pairs, options.steps, options.loop_pairs or options.pairs),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
