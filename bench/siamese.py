"""The speed of attacks: operators against their definitions, and 64 pairs at once against loops over pairs.

    python -m bench.siamese [--threads 2] [--only operators|attacks|reach] [--loop-seconds 300]

The attacks are of 100 steps, on 64 pairs of the networks for UTKFace (112 pixels) and for digits (28 pixels), with
fresh parameters: the time does not depend on what was learnt. The loops are in plain torch. One runs over as many of
the pairs as `--loop-seconds` allow, and its time is scaled to all of them; its results are compared with the attack's.
On two quiet cores the whole takes about ten minutes, most of it in the loops for UTKFace.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from apem_fast.ops import reference
from apem_fast.siamese import FusionRanker, TrainingOptions, pairs, regimes
from apem_fast.siamese.attacking import attack, mid_point_attack
from apem_fast.siamese.examples import digits_verifier
from apem_fast.siamese.networks import Ranker, SiameseRanker
from bench.timing import circumstances, interleaved, print_table, write_json

PAIRS, TARGET, STEP_SIZE = 64, 0.0, 50.0


# -- operators ---------------------------------------------------------------------------------------------------


def operator_cases(shape: tuple[int, ...]) -> dict[str, Callable[[Any], object]]:
    """Calls by name; each takes the module whose operators it is to call."""
    generator = torch.Generator().manual_seed(0)
    x, original, gradient, previous = (torch.rand(shape, generator=generator) for _ in range(4))
    region = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.5
    ones = torch.ones(shape[0], dtype=torch.float64)

    def penalty(module: ModuleType) -> Tensor:
        module.attack_penalty(x, original, 0.1, 0.0, 0.3)
        return module.attack_penalty_backward(ones, x, original, 0.1, 0.0, 0.3)

    def step(module: ModuleType, *options: Any) -> Tensor:
        return module.attack_step(x, gradient, previous, *options)

    return {
        "attack_penalty, forward and backward": penalty,
        "attack_step": lambda module: step(module, None, 0.1, 0.9),
        "attack_step, region and bounds": lambda module: step(module, region, 0.1, 0.9, 0.0, 1.0),
        "attack_step, zero force": lambda module: step(module, None, 0.1, 0.9, None, None, original, 0.01),
        "saliency_map": lambda module: module.saliency_map(original, x),
    }


def operators(seconds: float) -> Iterator[dict[str, Any]]:
    for shape in ((64, 1, 28, 28), (64, 3, 112, 112), (16, 3, 224, 224)):
        copied = torch.rand(shape)
        for name, case in operator_cases(shape).items():
            timings = interleaved(
                {
                    "native": partial(case, torch.ops.apem_fast),
                    "reference": partial(case, reference),
                    "copy": copied.clone,
                },
                seconds=seconds,
            )
            yield {
                "operator": name,
                "images": f"{shape[0]} x {shape[1]}x{shape[2]}x{shape[3]}",
                "ms": timings.median("native") * 1e3,
                "x reference": timings.speedup("native", "reference"),
                "in copies of the images": timings.speedup("copy", "native"),
                "rounds": len(timings.seconds["native"]),
            }


# -- attacks -----------------------------------------------------------------------------------------------------


def plain_loop(ranker: SiameseRanker, a: Tensor, b: Tensor, steps: int) -> Tensor:
    """P3's Algorithm 2 for one pair as one would write it: rank(A, B) and backward() at every step."""
    a_m = a.clone()
    for _ in range(steps):
        a_m.requires_grad_()
        loss = torch.nn.functional.mse_loss(ranker.rank(a_m, b), torch.full((1,), TARGET))
        loss.backward()
        with torch.no_grad():
            a_m = a_m - STEP_SIZE * a_m.grad
    ranker.zero_grad(set_to_none=True)
    return a_m


def frugal_loop(ranker: SiameseRanker, a: Tensor, b: Tensor, steps: int) -> Tensor:
    """The same by someone who knows that B's embedding stays and that no parameter needs a gradient."""
    with torch.no_grad():
        other = ranker.embed(b)
    a_m = a.clone()
    for _ in range(steps):
        a_m.requires_grad_()
        loss = (ranker.rank_embeddings(ranker.embed(a_m), other) - TARGET).square().sum()
        (gradient,) = torch.autograd.grad(loss, a_m)
        a_m = a_m.detach() - STEP_SIZE * gradient
    return a_m


def bare_network(ranker: SiameseRanker, first: Tensor, second: Tensor, steps: int) -> None:
    """The forward and backward passes that any such attack needs, on all pairs at once, and nothing else."""
    with torch.no_grad():
        other = ranker.embed(second)
    for _ in range(steps):
        point = first.detach().requires_grad_()
        loss = (ranker.rank_embeddings(ranker.embed(point), other) - TARGET).square().sum()
        torch.autograd.grad(loss, point)
    with torch.no_grad():
        ranker.rank_embeddings(ranker.embed(first), other)


def over_pairs(
    loop: Callable[..., Tensor], ranker: SiameseRanker, first: Tensor, second: Tensor, steps: int, seconds: float
) -> tuple[float, Tensor]:
    """Seconds for all pairs, and the results for those that were run: all, or as many as `seconds` allow."""
    loop(ranker, first[:1], second[:1], 1)
    begin, results = time.perf_counter(), []
    while len(results) < len(first) and (not results or time.perf_counter() - begin < seconds):
        i = len(results)
        results.append(loop(ranker, first[i : i + 1], second[i : i + 1], steps))
    return (time.perf_counter() - begin) * len(first) / len(results), torch.cat(results)


def attacks(steps: int, rounds: int, loop_seconds: float) -> Iterator[dict[str, Any]]:
    """Differences are l2 norms, between the attack's image and the loop's as a share of what the loop changed.

    In float32 they are rounding, but where rounding puts a value on the other side of a ReLU's kink, two runs part
    company a little; the tests hold attacks to the algorithms in float64.
    """
    for name, make, shape in (
        ("digits", SiameseRanker.for_mnist, (1, 28, 28)),
        ("UTKFace", SiameseRanker.for_utkface, (3, 112, 112)),
    ):
        torch.manual_seed(0)
        ranker = make().eval()
        first, second = torch.rand(PAIRS, *shape), torch.rand(PAIRS, *shape)

        perturbed = torch.empty_like(first)

        def ours(steps: int, ranker=ranker, first=first, second=second, perturbed=perturbed) -> None:
            result = attack(ranker, first, second, TARGET, steps=steps, step_size=STEP_SIZE)
            perturbed.copy_(result.perturbed)

        ours(2)
        bare_network(ranker, first, second, 2)
        timings = interleaved(
            {"attack": partial(ours, steps), "network": partial(bare_network, ranker, first, second, steps)},
            seconds=0.0,
            rounds=(rounds, rounds),
            warm_ups=0,
        )
        for loop in (plain_loop, frugal_loop):
            took, looped = over_pairs(loop, ranker, first, second, steps, loop_seconds)
            change, difference = looped - first[: len(looped)], perturbed[: len(looped)] - looped
            apart = difference.flatten(1).norm(dim=1) / change.flatten(1).norm(dim=1)
            yield {
                "network": name,
                "seconds": timings.median("attack"),
                "over the bare network": 1 / timings.speedup("attack", "network"),
                "loop": loop.__name__.removesuffix("_loop"),
                "pairs": len(looped),
                "x loop": took / timings.median("attack"),
                "median difference": float(apart.median()),
                "greatest": float(apart.max()),
            }


# -- automatic steps ---------------------------------------------------------------------------------------------


class Scaled(Ranker):
    """A ranker that takes its images multiplied by a number: gradients are smaller or greater by as much."""

    def __init__(self, ranker: Ranker, gain: float) -> None:
        super().__init__()
        self.ranker, self.gain = ranker, gain

    def embed(self, images: Tensor) -> Tensor:
        return self.ranker.embed(images / self.gain)

    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        return self.ranker.rank_embeddings(first, second)


class PairLogit(torch.nn.Module):
    """Early fusion: two digits in one network, whose logit saturates the sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(2, 16, 5, stride=3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1024, 1)
        )

    def forward(self, pair: Tensor) -> Tensor:
        return 300 * self.layers(pair)


def networks_of_five_scales(steps: int) -> Iterator[tuple[str, Ranker, Tensor, Tensor, float]]:
    """Name, ranker, pairs, and the precision that counts as there."""
    from apem_fast.siamese import faces

    learnt, held_out = pairs.digits().split(0.2, torch.Generator().manual_seed(0))
    options = TrainingOptions(steps=steps, images=64, learning_rate=2e-3, progress=False)
    torch.manual_seed(0)
    ranker = SiameseRanker.for_mnist(16)
    regimes.train_ranking(ranker, learnt, options)
    first, second = held_out.draw_pairs(PAIRS, torch.Generator().manual_seed(0))
    a, b = held_out.batch(first), held_out.batch(second)
    yield "digits, ranked", ranker, a, b, 1e-4
    yield "the same, images in thousands", Scaled(ranker, 1000.0).eval(), 1000 * a, 1000 * b, 1e-4
    verifier, _ = digits_verifier(steps, progress=False)
    yield "digits, verified", verifier, a, b, 1e-4
    torch.manual_seed(2)
    yield (
        "early fusion, logits of hundreds",
        FusionRanker(PairLogit(), (1, 28, 28), stacked=True, logit=True).eval(),
        a,
        b,
        1e-4,
    )
    ages = faces.face_age_ranker()
    photographs = torch.stack([faces.sample_face(name) for name in faces.SAMPLE_FACES])
    generator = torch.Generator().manual_seed(0)
    noise = 0.15 * torch.randn((16, *photographs.shape[1:]), generator=generator)
    many = (photographs.repeat(8, 1, 1, 1) + noise).clamp(0, 1)
    yield "face ages", ages, many, many.flip(0), 0.5 / (ages.high - ages.low)


def reach(steps: int) -> Iterator[dict[str, Any]]:
    """The share of mid-point attacks that arrive by the automatic step, and by two fixed ones, in 100 steps."""
    for name, ranker, first, second, precision in networks_of_five_scales(steps):
        row: dict[str, Any] = {"network": name, "pairs": len(first)}
        for step_size in ("auto", 3.0, 20.0):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = mid_point_attack(ranker, first, second, steps=100, step_size=step_size, precision=precision)
            row[f"reached, {step_size}"] = float(result.reached.double().mean())
            if step_size == "auto":
                row["median steps"] = int(result.steps_taken.median())
                row["median distance"] = float(result.distance.median())
                row["others"] = ", ".join(sorted(set(result.outcome) - {"reached"}))
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--only", choices=("operators", "attacks", "reach"), help="one part; nothing is written")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each operator (default: 2)")
    parser.add_argument("--steps", type=int, default=100, help="of an attack (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="of each attack (default: 3)")
    parser.add_argument("--loop-seconds", type=float, default=300.0, help="for each loop over pairs (default: 300)")
    parser.add_argument("--training", type=int, default=300, help="steps of the networks for digits (default: 300)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where, results = circumstances("cpu"), {}
    title = f"{where['device']}, {options.threads} threads, torch {where['torch']}"
    with Console(stderr=True).status("measuring") as status:
        for name, measured in (
            ("operators", lambda: operators(options.seconds)),
            ("attacks", lambda: attacks(options.steps, options.rounds, options.loop_seconds)),
            ("reach", lambda: reach(options.training)),
        ):
            if options.only in (None, name):
                status.update(f"measuring {name}")
                results[name] = list(measured())
    for name, rows in results.items():
        print_table(f"{name.capitalize()}: {title}", rows)
    if options.only is None:
        write_json("siamese", results)


if __name__ == "__main__":
    main()
