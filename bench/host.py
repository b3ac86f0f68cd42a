"""How busy the engine keeps a device of a given speed: real host work around batches that only take their time.

    python -m bench.host [--rays 9216] [--batch 256] [--rates 1500 10000 30000] [--single .005]

A stand-in for a GPU works off batches one after the other, each as long as so many images a second would take, and says
at the end of each what scripted margins are. A share of the probes is run again, each input alone, behind all that the
device has still to do or beside it. Everything else, searches, lanes, bookkeeping, is the engine's own. "Busy" is the
share of the time that the stand-in had a batch to work on; what is missing is the host's thinking, and "full" the share
of the batches' places that held a probe that was asked for. What a real host adds for starting kernels is not in it.
"""

from __future__ import annotations

import argparse
import time

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


class Device:
    """Batches of `size` images take size / rate seconds; those of a quarter and a sixteenth as much less."""

    def __init__(self, size: int, rate: float):
        self.size, self.rate = size, rate
        self.free_at = self.busy = 0.0
        self.places = 0

    def start(self, probes: int) -> float:
        """When the batches of so many probes will be done."""
        places = probes - probes % self.size
        rest = probes % self.size
        places += (
            next((shape for shape in (self.size // 16, self.size // 4) if rest <= shape), self.size) if rest else 0
        )
        seconds = places / self.rate
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


def one(rays: int, size: int, rate: float, lanes: int, single: float, beside: bool) -> dict[str, object]:
    device = Device(size, rate)
    prober = Scripted(rays, device, lanes, single, beside)
    begin = time.perf_counter()
    flips = find_flips(prober, Isolate(), step=1.0, last_step=LAST_STEP)
    seconds = time.perf_counter() - begin
    probes = int(flips.probes.sum())
    return {
        "images a second": rate,
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
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rates", type=float, nargs="*", default=[1500.0, 10000.0, 30000.0])
    parser.add_argument("--single", type=float, default=1 / 200, help="share of probes run again alone (default: .005)")
    options = parser.parse_args()
    ways = [(1, options.single, True), (2, 0.0, False), (2, options.single, False), (2, options.single, True)]
    ways.append((3, options.single, True))
    rows = [one(options.rays, options.batch, rate, *way) for rate in options.rates for way in ways]
    write_json("host", rows)
    print_table(f"{options.rays} rays in batches of {options.batch}", rows)


if __name__ == "__main__":
    main()
