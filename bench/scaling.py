"""How `apem()` grows with the number of images: time per image, and the memory it takes beyond inputs and results.

    python -m bench.scaling [--images 8 32 128 512] [--rounds 3] [--batch-size 32]

A small network trained on scikit-learn's digits, enlarged to 32 pixels and three channels. Every size runs in a process
of its own, because a process's peak memory never falls. The smallest size is also run once before it is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import apem_fast as af
from bench.timing import median, print_table, write_json


def trained_network() -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode, and 1,797 digits (N, 3, 32, 32) to explain."""
    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.tensor(digits.images / 16).float()[:, None]
    images = nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1)
    labels = torch.tensor(digits.target)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2048, 10),
    )
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(150):
        chosen = torch.randint(0, len(images), (64,))
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval(), images


def peak() -> int:
    """Bytes of resident memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_size(count: int, rounds: int, batch_size: int | None) -> dict[str, float]:
    network, every = trained_network()
    images = every[torch.arange(count) % len(every)].clone()
    relevance = af.relevance_map(af.explain.Gradient()(network, images))
    options = {"max_epsilon": 512.0, "step": 0.25, "batch_size": batch_size}
    af.apem(network, images[:8], relevance[:8], **options)
    before = peak()
    seconds, probes = [], 0
    for _ in range(rounds):
        begin = time.perf_counter()
        result = af.apem(network, images, relevance, **options)
        seconds.append(time.perf_counter() - begin)
        probes = int(result.probes.sum())
    inputs = images.nbytes + relevance.nbytes
    return {
        "images": count,
        "probes per ray": probes / (2 * count),
        "milliseconds per image": 1e3 * median(seconds) / count,
        "microseconds per probe": 1e6 * median(seconds) / probes,
        "megabytes of images and maps": inputs / 2**20,
        "megabytes beyond them at the peak": (peak() - before) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="*", type=int, default=[8, 32, 128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(one_size(arguments.one, arguments.rounds, arguments.batch_size)))
        return
    rows = []
    for count in arguments.images:
        command = [
            sys.executable,
            "-m",
            "bench.scaling",
            "--one",
            str(count),
            "--rounds",
            str(arguments.rounds),
            "--batch-size",
            str(arguments.batch_size),
        ]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    per_image = [row["milliseconds per image"] for row in rows]
    print_table("apem() as images grow", rows)
    print(f"time per image, largest over smallest: {max(per_image) / min(per_image):.2f}")
    write_json("scaling", rows)


if __name__ == "__main__":
    main()
