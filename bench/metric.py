"""`apem()` on EfficientNet-Lite0 and real photographs against the loops people write, and the epsilons of both.

    python -m bench.metric [--photographs cat officer ...] [--rounds 3]

Compared, each a whole run from images and maps to epsilons, the gradients for the sign included:
- literal: the loop a reader of P1 would write, one image and one epsilon at a time;
- scan: a good batched linear scan, plain torch: channels-last, an active set of rays, full batches of the best size;
- isolate: `apem()` as it is by default; exhaustive: with every grid point; float32: isolate with `record="float32"`,
  which decides as the loops do; bfloat16: that with verified low precision; compiled: that with `compile=True`
  (`--compile`);
- bare: the probes that isolate ran, as bare model calls at the best batch and memory format of a sweep, and a
  forward and backward pass an image.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import apem_fast as af
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from bench.timing import median, print_table, write_json

MAX_EPSILON = 4096
SWEEP = [(size, form) for form in (torch.channels_last, torch.contiguous_format) for size in (1, 2, 4, 8, 16, 32)]
Epsilons = list[tuple[int, int]]


@dataclass(frozen=True)
class Workload:
    model: nn.Module
    images: Tensor  # (N, 3, 224, 224)
    relevance: Tensor  # (N, 1, 224, 224)


def workload(names: list[str] | None) -> Workload:
    """Gradient maps, one channel: the stage that the papers filter."""
    network = load_network("efficientnet-lite0")
    chosen = [photograph for photograph in bundled_photographs() if names is None or photograph.name in names]
    images = network.normalised(torch.stack([network.pixels(photograph.open()) for photograph in chosen]))
    attribution = af.explain.Gradient()(network.model, images)
    return Workload(network.model, images, af.relevance_map(attribution))


def sign_gradient(model: nn.Module, image: Tensor) -> tuple[int, Tensor]:
    leaf = image[None].clone().requires_grad_()
    logits = model(leaf)
    label = int(logits.argmax())
    loss = nn.functional.cross_entropy(logits.double(), torch.tensor([label]))
    return label, torch.autograd.grad(loss, leaf)[0][0].sign()


def directions(work: Workload) -> tuple[list[int], Tensor]:
    """Labels, and the two directions of each image: (2 N, C, H, W)."""
    labels, rays = [], []
    for image, relevance in zip(work.images, work.relevance):
        label, sign = sign_gradient(work.model, image)
        labels.append(label)
        for values in (relevance, 1 - relevance):
            values = values.expand_as(image)
            rays.append(values / values.sum(dtype=torch.float64).float() * sign)
    return labels, torch.stack(rays)


def literal(work: Workload) -> Epsilons:
    """P1 section III-A, word for word."""
    labels, rays = directions(work)
    flips = []
    with torch.no_grad():
        for r, direction in enumerate(rays):
            epsilon = 0
            while epsilon < MAX_EPSILON:
                epsilon += 1
                perturbed = work.images[r // 2] + epsilon * direction
                if int(work.model(perturbed[None]).argmax()) != labels[r // 2]:
                    break
            flips.append(epsilon)
    return list(zip(flips[0::2], flips[1::2]))


def scan(work: Workload, size: int, memory_format: torch.memory_format) -> Epsilons:
    """All rays advance together; a ray that flips leaves, and every batch is full while there is work."""
    labels, rays = directions(work)
    rays = rays.contiguous(memory_format=memory_format)
    images = work.images.contiguous(memory_format=memory_format)
    flips, reached = np.zeros(len(rays), int), np.zeros(len(rays), int)
    active = list(range(len(rays)))
    with torch.no_grad():
        while active:
            turn = active[:size]
            share = max(1, size // len(turn))
            ray = np.repeat(turn, share)
            epsilon = reached[ray] + np.tile(np.arange(1, share + 1), len(turn))
            index = torch.from_numpy(ray)
            inputs = images[index // 2] + torch.from_numpy(epsilon).float()[:, None, None, None] * rays[index]
            predicted = work.model(inputs).argmax(1).numpy()
            for r in turn:
                mine = ray == r
                wrong = epsilon[mine][predicted[mine] != labels[r // 2]]
                reached[r] += share
                if len(wrong) or reached[r] >= MAX_EPSILON:
                    flips[r] = min(wrong[0] if len(wrong) else MAX_EPSILON, MAX_EPSILON)
            active = active[size:] + [r for r in turn if not flips[r]]
    return list(zip(flips[0::2].tolist(), flips[1::2].tolist()))


def engine(work: Workload, search: str, **options: object) -> af.ApemResult:
    return af.apem(work.model, work.images, work.relevance, max_epsilon=MAX_EPSILON, search=search, **options)


def epsilons(result: af.ApemResult) -> Epsilons:
    return [(int(a), int(b)) for a, b in zip(result.epsilon_minus, result.epsilon_plus)]


def bare(work: Workload, inputs: int, size: int, memory_format: torch.memory_format) -> float:
    """Seconds of `inputs` model inputs as bare batches, and of one forward and backward pass an image."""
    batch = work.images[:1].expand(size, -1, -1, -1).contiguous(memory_format=memory_format)
    model = copy.deepcopy(work.model).to(memory_format=memory_format)
    with torch.no_grad():
        model(batch)
        begin = time.perf_counter()
        for _ in range(inputs // size):
            model(batch)
        if inputs % size:
            model(batch[: inputs % size])
        seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for image in work.images:
        sign_gradient(work.model, image)
    return seconds + time.perf_counter() - begin


def best_of_sweep(work: Workload) -> tuple[int, torch.memory_format]:
    """The batch and format with the least seconds an input, each measured alone over at least 32 inputs."""
    seconds = {key: median([bare(work, 32, *key) for _ in range(3)]) for key in SWEEP}
    return min(seconds, key=seconds.__getitem__)


def differing(some: Epsilons, others: Epsilons) -> int:
    """How many rays have another epsilon."""
    return int((np.array(some) != np.array(others)).sum())


def timed(function, *arguments):
    begin = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="*", help="names; default: all bundled ones")
    parser.add_argument("--rounds", type=int, default=3, help="how often isolate and bare are timed (default 3)")
    parser.add_argument("--compile", action="store_true", help="also time compile=True; compiling takes a minute")
    arguments = parser.parse_args()

    work = workload(arguments.photographs)
    size, memory_format = best_of_sweep(work)
    ways: dict[str, dict[str, object]] = {
        "isolate": {},
        "float32": {"record": "float32"},
        "bfloat16": {"record": "float32", "precision": "bfloat16"},
    }
    if arguments.compile:
        ways["compiled"] = {"record": "float32", "compile": True}
    runs: dict[str, list[float]] = {name: [] for name in (*ways, "bare")}
    results = {name: engine(work, "isolate", **options) for name, options in ways.items()}
    result = results["isolate"]
    for _ in range(arguments.rounds):
        for name, options in ways.items():
            results[name], seconds = timed(partial(engine, **options), work, "isolate")
            runs[name].append(seconds)
        runs["bare"].append(bare(work, int(result.probes.sum()), size, memory_format))
    answers = {name: epsilons(result) for name, result in results.items()}
    for name, function, extra in (
        ("exhaustive", lambda w: epsilons(engine(w, "exhaustive")), ()),
        ("scan", scan, (size, memory_format)),
        ("literal", literal, ()),
    ):
        answers[name], seconds = timed(function, work, *extra)
        runs[name] = [seconds]
    loops = answers["literal"]
    rays = 2 * len(work.images)
    isolate = median(runs["isolate"])
    figures = {
        "photographs": len(work.images),
        "rays": rays,
        "censored": int((~result.flipped_minus).sum() + (~result.flipped_plus).sum()),
        "float32 unlike the loop": differing(answers["float32"], loops),
        "isolate unlike the loop": differing(answers["isolate"], loops),
        "isolate unlike exhaustive": differing(answers["isolate"], answers["exhaustive"]),
        "epsilons": {name: answer for name, answer in answers.items() if name == "literal" or answer != loops},
        "probes per ray": float(result.probes.sum()) / rays,
        "scan's probes per ray": float(np.mean(answers["literal"])),
        "best batch": size,
        "best format": str(memory_format).removeprefix("torch."),
        "literal / isolate": runs["literal"][0] / isolate,
        "literal / float32": runs["literal"][0] / median(runs["float32"]),
        "scan / isolate": runs["scan"][0] / isolate,
        "exhaustive / isolate": runs["exhaustive"][0] / isolate,
        "literal / bfloat16": runs["literal"][0] / median(runs["bfloat16"]),
        "literal / compiled": runs["literal"][0] / median(runs["compiled"]) if arguments.compile else None,
        "isolate / bare": median([a / b for a, b in zip(runs["isolate"], runs["bare"])]),
        "float32 / bare": median([a / b for a, b in zip(runs["float32"], runs["bare"])]),
        "seconds": {name: median(values) for name, values in runs.items()},
    }
    print_table("apem() on EfficientNet-Lite0", [figures | {"epsilons": None, "seconds": None}])
    write_json("metric", figures)


if __name__ == "__main__":
    main()
