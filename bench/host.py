"""How busy the engine keeps a device of a given speed: real host work around passes that only take their time.

    python -m bench.host [--rays 9216] [--batch 256] [--rates 1500 10000 30000]

A stand-in for a GPU works off passes one after the other, each as long as so many images a second would take, and says
at the end of each what scripted margins are. Everything else, searches, lanes, bookkeeping, is the engine's own. "Busy"
is the share of the time that the stand-in had a pass to work on; what is missing is the host's thinking, and "full" the
share of the passes' places that held a probe that was asked for. What a real host adds for starting kernels is not in
it.
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
    """Passes of `size` images take size / rate seconds; those of a quarter and a sixteenth as much less."""

    def __init__(self, size: int, rate: float):
        self.size, self.rate = size, rate
        self.free_at = self.busy = 0.0
        self.places = 0

    def start(self, probes: int) -> float:
        """When the passes of so many probes will be done."""
        places = probes - probes % self.size
        rest = probes % self.size
        places += (
            next((shape for shape in (self.size // 16, self.size // 4) if rest <= shape), self.size) if rest else 0
        )
        seconds = places / self.rate
        self.free_at = max(self.free_at, time.perf_counter()) + seconds
        self.busy, self.places = self.busy + seconds, self.places + places
        return self.free_at


class Scripted:
    """A prober of rays that bend a little, as real ones do, on such a device."""

    def __init__(self, rays: int, device: Device, lanes: int):
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
        share = epsilon / self.flip[ray]
        margin = 5.0 * (1 - share ** self.bend[ray]) + 0.02 * np.sin(9 * share + ray)
        return Answers(margin, margin < 0, np.zeros(len(ray)), np.ones(len(ray), np.int64))

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        yield from ()
        return np.zeros(len(ray), bool), np.zeros(len(ray), np.int64)


def one(rays: int, size: int, rate: float, lanes: int) -> dict[str, object]:
    device = Device(size, rate)
    prober = Scripted(rays, device, lanes)
    begin = time.perf_counter()
    flips = find_flips(prober, prober.rays, Isolate(), step=1.0, last_step=LAST_STEP)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    probes = int(flips.probes.sum())
    return {
        "images a second": rate,
        "lanes": lanes,
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
    options = parser.parse_args()
    rows = [one(options.rays, options.batch, rate, lanes) for rate in options.rates for lanes in (1, 2)]
    write_json("host", rows)
    print_table(f"{options.rays} rays in batches of {options.batch}", rows)


if __name__ == "__main__":
    main()
