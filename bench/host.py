"""How busy the engine keeps a device of a given speed: real host work around batches that only take their time.

    python -m bench.host [--rays 9216] [--batches 64 256] [--rates 1500 10000 30000] [--single .005]

A stand-in for a GPU works off batches one after the other, each as long as so many images a second would take, and says
at the end of each what scripted margins are. A share of the probes is run again, each input alone, behind all that the
device has still to do or beside it. Everything else, searches, lanes, bookkeeping, is the engine's own. "Busy" is the
share of the time that the stand-in had a batch to work on; what is missing is the host's thinking, and "full" the share
of the batches' places that held a probe that was asked for.

What a real host adds for starting kernels is an assumption: LAUNCH of its time, which it spends, for each thing that it
starts, and GAP of the device's. How many these are is counted on the pretended GPU of the tests. Batches started one by
one, as they were, stand beside those in one graph, and beside screens whose weights are rounded in every batch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from apem_fast.probing.engine import find_flips
from apem_fast.probing.prober import Answers
from apem_fast.probing.rays import Rays
from apem_fast.running.waiting import Waiting
from apem_fast.search import Isolate
from bench.timing import print_table, write_json

LAST_STEP = 4096
LAUNCH, GAP = 8e-6, 2e-6  # of the host, and of the device between things that are not in one graph
ROUNDING = 1.5e-4  # of the device for each batch: ResNet-50's weights to 16 bits


@dataclass(frozen=True)
class Way:
    """How batches are started."""

    name: str
    batch: int  # things that the host starts for each
    single: int  # and for each single input
    rounding: float = 0.0  # seconds of the device


ONE_GRAPH = Way("one graph", 3, 3)
ONE_BY_ONE = Way("one by one", 9, 12)
ROUNDED_EACH_TIME = Way("one graph, weights rounded in it", 3, 3, ROUNDING)


def spend(seconds: float) -> None:
    """Time of the host, in which it does nothing else."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class Device:
    """Batches of `size` images take size / rate seconds; those of a quarter and a sixteenth as much less."""

    def __init__(self, size: int, rate: float, way: Way):
        self.size, self.rate, self.way = size, rate, way
        self.free_at = self.busy = 0.0
        self.places = 0

    def start(self, probes: int) -> float:
        """When the batches of so many probes will be done."""
        places = probes - probes % self.size
        rest = probes % self.size
        places += (
            next((shape for shape in (self.size // 16, self.size // 4) if rest <= shape), self.size) if rest else 0
        )
        batches = -(-probes // self.size)
        spend(batches * self.way.batch * LAUNCH)
        seconds = places / self.rate + batches * (self.way.batch * GAP + self.way.rounding)
        self.free_at = max(self.free_at, time.perf_counter()) + seconds
        self.busy, self.places = self.busy + seconds, self.places + places
        return self.free_at


SINGLE_SECONDS = 2e-3  # of one image alone, started as one graph: its kernels wait for each other, not for the device
SINGLE_SHARE = 0.25  # of the device that it takes away from the batches meanwhile


class Scripted:
    """A prober of rays that bend a little, as real ones do, on such a device."""

    def __init__(self, rays: int, device: Device, lanes: int, single: float, beside: bool):
        self._single, self._beside = single, beside
        self._random = np.random.default_rng(1)
        generator = np.random.default_rng(0)
        self.device, self.size, self.lanes = device, device.size, lanes
        self.flip = np.exp(generator.normal(4.0, 1.0, rays)).clip(2, 2 * LAST_STEP)
        self.bend = generator.uniform(0.6, 1.6, rays)
        none = torch.zeros(0)
        margin = np.full(rays, 5.0)
        self.rays = Rays(
            none,
            none,
            none,
            none,
            np.arange(rays) // 6,
            np.arange(rays) // 2,
            np.arange(rays) % 2 == 1,
            np.ones(rays),
            np.zeros(rays),
            margin,
            margin / self.flip * generator.uniform(0.7, 1.8, rays),
        )

    def answers(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        done = self.device.start(len(ray))
        yield
        time.sleep(max(0.0, done - time.perf_counter()))
        singles = int(self._random.binomial(len(ray), self._single))
        if singles:
            yield from self._alone(singles)
        share = epsilon / self.flip[ray]
        margin = 5.0 * (1 - share ** self.bend[ray]) + 0.02 * np.sin(9 * share + ray)
        return Answers(margin, margin < 0, np.zeros(len(ray)), np.ones(len(ray), np.int64))

    def _alone(self, singles: int) -> Waiting[None]:
        """So many inputs again, each alone: behind all batches that were asked for, or beside them."""
        spend(singles * self.device.way.single * LAUNCH)
        seconds = singles * SINGLE_SECONDS
        if self._beside:
            self.device.free_at += SINGLE_SHARE * seconds
            done = time.perf_counter() + seconds
            yield
        else:
            self.device.free_at = done = max(self.device.free_at, time.perf_counter()) + seconds
        time.sleep(max(0.0, done - time.perf_counter()))

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        yield from ()
        return np.zeros(len(ray), bool), np.zeros(len(ray), np.int64)


def one(rays: int, size: int, rate: float, lanes: int, single: float, beside: bool, way: Way) -> dict[str, object]:
    device = Device(size, rate, way)
    prober = Scripted(rays, device, lanes, single, beside)
    begin = time.perf_counter()
    flips = find_flips(prober, Isolate(), step=1.0, last_step=LAST_STEP)
    seconds = time.perf_counter() - begin
    probes = int(flips.probes.sum())
    return {
        "images a second": rate,
        "batch": size,
        "started": way.name,
        "lanes": lanes,
        "single inputs": "beside the batches" if beside else "behind them" if single else "none",
        "probes a ray": probes / rays,
        "busy": device.busy / seconds,
        "full": probes / device.places,
        "of the bare model": probes / rate / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=9216, help="default: 256 images, 6 methods, 3 stages")
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--rates", type=float, nargs="*", default=[1500.0, 10000.0, 30000.0])
    parser.add_argument("--single", type=float, default=1 / 200, help="share of probes run again alone (default: .005)")
    options = parser.parse_args()
    single = options.single
    ways = [(lanes, single, True, ONE_GRAPH) for lanes in (1, 2, 3)]
    ways += [(2, 0.0, False, ONE_GRAPH), (2, single, False, ONE_GRAPH)]
    ways += [(2, single, True, ONE_BY_ONE), (2, single, True, ROUNDED_EACH_TIME)]
    rows = [one(options.rays, size, rate, *way) for rate in options.rates for size in options.batches for way in ways]
    write_json("host", rows)
    print_table(f"{options.rays} rays", rows)


if __name__ == "__main__":
    main()
