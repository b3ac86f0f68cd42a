"""Whether two devices find the same epsilons on real rays: the share of equal ones, and the rays that differ.

    python -m bench.agreement [--devices cpu cuda] [--network efficientnet-lite0] [--methods gradient lrp grad-cam]

EfficientNet-Lite0 and the bundled photographs, or a network of torchvision with random weights and made-up images, for
which torch alone suffices. The maps are made once, on the CPU; each device computes its own sign
gradients, margins and epsilons, as its user would get them. A sign may differ where a gradient is next to 0, and then
the two follow rays that are not quite the same.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import apem_fast as af
from apem_fast.probing.prober import answered
from apem_fast.relevance import STAGES
from bench.networks import PHOTOGRAPHED, Workload, workload
from bench.timing import circumstances, print_table, write_json

KINDS = ("relevance", "irrelevance")


@dataclass(frozen=True)
class OnDevice:
    """What one device says."""

    evaluator: af.Evaluator
    maps: dict[str, Tensor]  # by method and stage, (N, 1 or C, H, W)
    epsilon: dict[str, Tensor]  # (N, 2), along relevance and irrelevance

    def margins(self, name: str, image: int, kind: int, epsilons: list[float]) -> list[float]:
        """The margins of one ray there."""
        rays = self.evaluator.rays(self.maps[name], np.arange(len(self.evaluator.images)))
        with self.evaluator.probing(rays) as prober:
            ray = np.full(len(epsilons), 2 * image + kind)
            return answered(prober, ray, np.array(epsilons)).margin.tolist()


def on_device(model: torch.nn.Module, images: Tensor, maps: dict[str, Tensor], device: str) -> OnDevice:
    evaluator = af.Evaluator(copy.deepcopy(model).to(device), images.to(device))
    there = {name: values.to(device) for name, values in maps.items()}
    results = evaluator.apem(there)
    return OnDevice(
        evaluator, there, {name: torch.stack([r.epsilon_minus, r.epsilon_plus], dim=1) for name, r in results.items()}
    )


def differences(first: OnDevice, second: OnDevice, devices: list[str], names: list[str]) -> list[dict[str, object]]:
    """A row for each ray whose epsilons differ: both epsilons, and the margins at the smaller one and the step
    before."""
    rows = []
    for name in first.epsilon:
        for image, kind in (first.epsilon[name] != second.epsilon[name]).nonzero().tolist():
            epsilons = [float(one.epsilon[name][image, kind]) for one in (first, second)]
            at = [min(epsilons) - 1, min(epsilons)]
            row: dict[str, object] = {"map": name, "image": names[image], "ray": KINDS[kind]}
            for device, one, epsilon in zip(devices, (first, second), epsilons):
                row[f"epsilon, {device}"] = epsilon
                row[f"margins there, {device}"] = ", ".join(f"{m:.2e}" for m in one.margins(name, image, kind, at))
            rows.append(row)
    return rows


def _explained(method: str, work: Workload) -> Tensor:
    from apem_fast.explain import explainer_from  # these need more than torch

    return explainer_from(method)(work.model, work.images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs=2, default=["cpu", "cuda"])
    parser.add_argument("--network", default=PHOTOGRAPHED, help=f"or one of torchvision's (default: {PHOTOGRAPHED})")
    parser.add_argument("--methods", nargs="*", default=[], help="lrp, grad-cam ...; default: the gradient alone")
    parser.add_argument("--images", type=int, default=14)
    options = parser.parse_args()

    work = workload(options.network, options.images, "cpu")
    maps = work.maps
    if options.methods:
        pixels = work.pixels
        maps = {
            f"{method}, {stage}": make(attribution, pixels, 99.0)
            for method in options.methods
            for attribution in [_explained(method, work)]
            for stage, make in STAGES.items()
        }
    first, second = (on_device(work.model, work.images, maps, device) for device in options.devices)
    signs = (first.evaluator.sign_gradient.cpu() != second.evaluator.sign_gradient.cpu()).double().mean().item()
    rows = differences(first, second, options.devices, work.names)
    rays = 2 * len(work.images) * len(maps)
    summary = {
        "rays": rays,
        "equal": 1 - len(rows) / rays,
        "signs that differ": signs,
        "labels that differ": int((first.evaluator.labels.cpu() != second.evaluator.labels.cpu()).sum()),
    }
    kind = "cuda" if "cuda" in options.devices else "cpu"
    write_json("agreement", {"devices": options.devices, "summary": summary, "rays that differ": rows}, kind)
    if rows:
        print_table("Rays that differ", rows)
    print_table(f"Epsilons on {' and '.join(options.devices)}: {circumstances(kind)['device']}", [summary])


if __name__ == "__main__":
    main()
