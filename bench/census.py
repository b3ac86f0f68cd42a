"""Does the search find the first flip? Its epsilons against a scan of every grid point, over thousands of real rays.

    python -m bench.census [--only "ReLU" ...] [--keep build/census] [--limit-seconds 500]

EfficientNet-Lite0 on the bundled photographs and crops, and small networks of every kind in use (`small_networks`),
with all explanation methods that a network admits, at two stages, and hard masks. Scans are long: they are kept in a
folder, one file for each network and set of maps, and a run that was stopped goes on where it was. The search is run
afresh every time. A ray comes back if it is the label again at one of 32 points up to twice its epsilon.

A kept scan may be of an earlier version, whose sign gradients differed where a gradient is 0 but for rounding. So of
each of its rays the model of today is asked again: at the flip, before it, and where margins were lowest on the way. A
ray whose flip, slope or margin is no longer what was scanned is scanned anew. `--add` puts the rows of the networks
named in place of theirs in the file that is there.

Where the time ends before all scans are done, what is scanned is counted, and the row says how many sets of maps that
are. Their order is fixed beforehand, so it does not depend on what was found.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import apem_fast as af
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.explain import explainer_from
from apem_fast.metric.auditing import most_wrong
from apem_fast.probing.engine import find_flips
from apem_fast.probing.prober import Answers, Prober, answered
from apem_fast.probing.rays import Rays
from apem_fast.relevance import STAGES
from apem_fast.search import Exhaustive
from bench.small_networks import NETWORKS, digits, trained
from bench.timing import RESULTS, print_table, write_json

METHODS = ("gradient", "smooth-grad:samples=20", "guided-backprop", "grad-cam", "guided-grad-cam", "lrp")
KEPT_STAGES = ("1-channel", "times-image")
HARD = "hard mask"
PHOTOGRAPHS = "EfficientNet-Lite0"
DIGITS = 30  # images of each small network
LOWEST = 4  # points of a kept scan that are asked again, beside the flip and the one before it
BEYOND = 32  # points up to twice the epsilon at which it is seen whether a ray comes back


@dataclass(frozen=True)
class Subject:
    """A network and images whose rays are counted."""

    name: str
    evaluator: af.Evaluator
    pixels: Tensor


def subject(name: str) -> Subject:
    if name == PHOTOGRAPHS:
        network = load_network("efficientnet-lite0")
        pixels = torch.stack([network.pixels(one.open()) for one in bundled_photographs()])
        return Subject(name, af.Evaluator(network.model, network.normalised(pixels)), pixels)
    images, _ = digits()
    chosen = torch.arange(DIGITS) * (len(images) // DIGITS)
    return Subject(name, af.Evaluator(trained(name), images[chosen], max_epsilon=256.0, step=1 / 16), images[chosen])


def maps_of(one: Subject) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Names of sets of maps, and how each is made; a method that a network does not admit raises ValueError there."""
    cache: dict[str, Tensor] = {}

    def attribution(method: str) -> Tensor:
        if method not in cache:
            cache[method] = explainer_from(method)(one.evaluator.model, one.evaluator.images)
        return cache[method]

    for stage in KEPT_STAGES:
        for method in METHODS:
            yield f"{method}, {stage}", lambda: STAGES[stage](attribution(method), one.pixels, 99.0)
        if stage == KEPT_STAGES[0]:
            yield HARD, lambda: hard_masks(STAGES[stage](attribution("gradient"), one.pixels, 99.0))


def hard_masks(relevance: Tensor) -> Tensor:
    """1 on a tenth of the pixels, 0 elsewhere: the most relevant ones of even maps, a rectangle in odd ones."""
    masks = []
    for n, one in enumerate(relevance):
        _, height, width = one.shape
        if n % 2:
            mask = torch.zeros_like(one)
            top, left = (7 * n) % (height - height // 3), (5 * n) % (width - width // 3)
            mask[:, top : top + height // 3, left : left + width // 3] = 1
        else:
            mask = (one > one.quantile(0.9)).to(one)
        masks.append(mask)
    return torch.stack(masks)


@dataclass(frozen=True)
class Scan:
    """What a scan of every grid point saw along R rays."""

    flip: NDArray[np.int64]  # (R,) the first step that flips; the last step where none does
    flipped: NDArray[np.bool_]  # (R,)
    back: NDArray[np.bool_]  # (R,) whether the label came back soon after
    margin: NDArray[np.float64]  # (R,) at 0
    slope: NDArray[np.float64]  # (R,) first-order estimate of the fall a step
    last_step: int
    curve_ray: NDArray[np.int32]  # every margin that was measured: its ray,
    curve_step: NDArray[np.int32]  # its step,
    curve_margin: NDArray[np.float64]  # and what it was

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **vars(self))
        part.replace(path)

    def with_rays(self, rows: NDArray[np.int64], anew: Scan) -> Scan:
        """This scan with some of its rays scanned anew."""
        each = {name: getattr(self, name).copy() for name in ("flip", "flipped", "back", "margin", "slope")}
        for name, values in each.items():
            values[rows] = getattr(anew, name)
        kept = ~np.isin(self.curve_ray, rows)
        curve = [
            np.concatenate([getattr(self, name)[kept], values])
            for name, values in (
                ("curve_ray", rows[anew.curve_ray].astype(np.int32)),
                ("curve_step", anew.curve_step),
                ("curve_margin", anew.curve_margin),
            )
        ]
        return Scan(**each, last_step=self.last_step, curve_ray=curve[0], curve_step=curve[1], curve_margin=curve[2])

    @classmethod
    def load(cls, path: Path) -> Scan:
        with np.load(path) as kept:
            values: dict[str, Any] = {name: kept[name] for name in kept.files}
        return cls(**values | {"last_step": int(values["last_step"])})


class _Recorded:
    """A prober that keeps what it answered."""

    def __init__(self, prober: Prober):
        self.prober, self.answered = prober, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prober, name)

    def answers(self, ray: NDArray, epsilon: NDArray) -> Iterator[None]:
        answers: Answers = yield from self.prober.answers(ray, epsilon)
        self.answered.append((ray.astype(np.int32), epsilon, answers.margin))
        return answers


def scan(evaluator: af.Evaluator, rays: Rays) -> Scan:
    o = evaluator.options
    with evaluator.probing(rays) as prober:
        recorded = _Recorded(prober)
        flips = find_flips(recorded, Exhaustive(), step=o.step, last_step=o.last_step)
        found = np.flatnonzero(flips.flipped & (flips.step < o.last_step))
        share = np.arange(1, BEYOND + 1) / BEYOND
        beyond = np.minimum(flips.step[found, None] + np.ceil(share * flips.step[found, None]), o.last_step)
        answers = answered(prober, np.repeat(found, BEYOND), beyond.ravel() * o.step)
    back = np.zeros(len(rays), bool)
    back[found] = ~answers.flipped.reshape(-1, BEYOND).all(axis=1)
    recorded.answered.append((np.repeat(found, BEYOND).astype(np.int32), beyond.ravel() * o.step, answers.margin))
    ray, epsilon, margin = (np.concatenate(column) for column in zip(*recorded.answered))
    step = np.round(epsilon / o.step).astype(np.int32)
    return Scan(flips.step, flips.flipped, back, rays.margin, rays.slope * o.step, o.last_step, ray, step, margin)


def still_true(evaluator: af.Evaluator, rays: Rays, seen: Scan) -> NDArray[np.bool_]:
    """(R,) whether the model of today says of each ray what the scan says, where it says it most narrowly."""
    o = evaluator.options
    same = np.isclose(seen.margin, rays.margin, rtol=1e-3, atol=1e-3)
    same &= np.isclose(seen.slope, rays.slope * o.step, rtol=1e-2)
    asked_ray, asked_step = [], []
    for ray in np.flatnonzero(same):
        mine = seen.curve_ray == ray
        step, margin = seen.curve_step[mine], seen.curve_margin[mine]
        before = step < seen.flip[ray] if seen.flipped[ray] else step <= seen.flip[ray]
        lowest = step[before][np.argsort(margin[before], kind="stable")[:LOWEST]]
        points = {*lowest.tolist(), seen.flip[ray], seen.flip[ray] - 1} - {0}
        asked_ray += [ray] * len(points)
        asked_step += sorted(points)
    ray, step = np.array(asked_ray, np.int64), np.array(asked_step, np.int64)
    with evaluator.probing(rays) as prober:
        answers = answered(prober, ray, step * o.step)
    expected = seen.flipped[ray] & (step == seen.flip[ray])
    same[ray[answers.flipped != expected]] = False
    return same


def kept_at(folder: Path, network: str, maps: str) -> Path:
    return folder / (re.sub(r"[^\w.=+-]+", "-", f"{network}.{maps}") + ".npz")


def count(name: str, folder: Path, until: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row for one network, and one for each ray that the search got wrong."""
    one = subject(name)
    o = one.evaluator.options
    rays = misses = probes = back = censored = scanned = sets = 0
    left_out, not_scanned, wrong = [], [], []
    for maps_name, make in maps_of(one):
        path = kept_at(folder, name, maps_name)
        try:
            maps = make()
        except (ValueError, TypeError) as error:
            left_out.append(f"{maps_name}: {error}")
            continue
        measurable = (maps.amax(dim=(1, 2, 3)) > maps.amin(dim=(1, 2, 3))).nonzero()[:, 0]
        these = one.evaluator.rays(maps[measurable], measurable.numpy())
        if not path.exists():
            if time.monotonic() > until:
                not_scanned.append(maps_name)
                continue
            begin = time.monotonic()
            scan(one.evaluator, these).save(path)
            print(f"{name}, {maps_name}: {len(these)} rays scanned in {time.monotonic() - begin:.0f} s", flush=True)
        seen = Scan.load(path)
        stale = np.flatnonzero(~still_true(one.evaluator, these, seen))
        if len(stale):
            print(f"{name}, {maps_name}: {len(stale)} of {len(these)} kept rays are others today", flush=True)
            if time.monotonic() > until:
                not_scanned.append(maps_name)
                continue
            seen = seen.with_rays(stale, scan(one.evaluator, these.only(stale)))
            seen.save(path)
        with one.evaluator.probing(these) as prober:
            found = find_flips(prober, o.policy, step=o.step, last_step=o.last_step)
        differs = (found.step != seen.flip) | (found.flipped != seen.flipped)
        wrong += [
            {
                "network": name,
                "maps": maps_name,
                "image": int(these.image[ray]),
                "ray": "irrelevance" if these.irrelevance[ray] else "relevance",
                "scan": int(seen.flip[ray]) if seen.flipped[ray] else None,
                "search": int(found.step[ray]) if found.flipped[ray] else None,
            }
            for ray in np.flatnonzero(differs)
        ]
        rays, misses, probes = rays + len(these), misses + int(differs.sum()), probes + int(found.probes.sum())
        back, censored = back + int(seen.back.sum()), censored + int((~seen.flipped).sum())
        scanned += int(seen.flip.sum())
        sets += 1
    row = {
        "network": name,
        "sets of maps": sets,
        "rays": rays,
        "misses": misses,
        "probes a ray": probes / max(1, rays),
        "a scan's": scanned / max(1, rays),
        "come back": back / max(1, rays),
        "censored": censored / max(1, rays),
        "not scanned": "; ".join(not_scanned) or None,
        "left out": "; ".join(left_out) or None,
    }
    return row, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*NETWORKS, PHOTOGRAPHS], help="networks; default: all")
    parser.add_argument("--keep", type=Path, default=Path("build/census"), help="where scans are kept")
    parser.add_argument("--add", action="store_true", help="in place of these networks' rows in the results there")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="begin no scan after so long")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.limit_seconds
    rows, wrong = [], []
    for name in arguments.only:
        row, its_wrong = count(name, arguments.keep, until)
        rows.append(row)
        wrong += its_wrong
        print_table(name, [row])
    if arguments.add:
        there = json.loads((RESULTS / "census.json").read_text("utf-8"))["results"]
        fresh = {row["network"]: row for row in rows}
        rows = [fresh.get(row["network"], row) for row in there["networks"]]
        wrong += [one for one in there["wrong"] if one["network"] not in fresh]
    all_rays, all_misses = (sum(row[name] for row in rows) for name in ("rays", "misses"))
    bound = most_wrong(all_rays, all_misses)
    print(f"{all_misses} of {all_rays:,} rays wrong: at most {100 * bound:.3f} % with 95 % confidence, were they drawn")
    if arguments.add or arguments.only == [*NETWORKS, PHOTOGRAPHS]:
        total = {"rays": all_rays, "misses": all_misses, "most wrong, 95 %": bound}
        write_json("census", {"total": total, "networks": rows, "wrong": wrong})


if __name__ == "__main__":
    main()
