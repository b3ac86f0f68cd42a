"""One study, 6 methods x 3 stages: its time over that of the forward and backward passes in it, and over two processes.

    python -m bench.study [--photographs 4] [--measures all] [--processes]

The passes are timed where they happen: inside the model's forward, and inside autograd's backward. What is left is
the study's own: maps, rays, the search, pictures and shards. With --measures other measures of the field are in it
too. With --processes the same study also runs as one and as two processes of one thread each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.run import inputs
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from bench.timing import print_table, write_json

METHODS = ("gradient", "smooth-grad:samples=20", "guided-backprop", "grad-cam", "guided-grad-cam", "lrp")


class Stopwatch:
    """Seconds inside the model, outermost calls only."""

    def __init__(self) -> None:
        self.seconds, self._depth, self._begin = 0.0, 0, 0.0

    def start(self) -> None:
        if self._depth == 0:
            self._begin = time.perf_counter()
        self._depth += 1

    def stop(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._begin


@contextmanager
def network_timed() -> Iterator[Stopwatch]:
    """Times every forward of the network that a run loads, and every backward."""
    watch = Stopwatch()

    def timed(function):
        def call(*arguments, **options):
            watch.start()
            try:
                return function(*arguments, **options)
            finally:
                watch.stop()

        return call

    forwards: dict[type, Callable[..., object]] = {}
    load = inputs.load_network

    def loaded(*arguments) -> Network:
        network = load(*arguments)
        # On the class, so that the model's float64 copy is timed too: a copy keeps a forward set on the instance.
        kind = type(network.model)
        forwards.setdefault(kind, kind.forward)
        kind.forward = timed(forwards[kind])  # type: ignore[method-assign]
        return network

    with (
        mock.patch.object(inputs, "load_network", loaded),
        mock.patch.object(torch.autograd, "grad", timed(torch.autograd.grad)),
        mock.patch.object(torch.autograd, "backward", timed(torch.autograd.backward)),
    ):
        try:
            yield watch
        finally:
            for kind, forward in forwards.items():
                kind.forward = forward  # type: ignore[method-assign]


def study(photographs: int, record: str, measures: tuple[str, ...] = ()) -> dict[str, float | str]:
    options = RunOptions(explainers=METHODS, limit=photographs, record=record, measures=measures)
    with tempfile.TemporaryDirectory() as folder, network_timed() as watch:
        begin = time.perf_counter()
        store = evaluate(options, Path(folder) / "run")
        seconds = time.perf_counter() - begin
        results = store.results()
    return {
        "record": record,
        "photographs": photographs,
        "maps": len(results),
        "flagged": int((results["flag"] != "").sum()),
        "probes per ray": float(results["probes"].sum() / (2 * (results["flag"] == "").sum())),
        "seconds": seconds,
        "of these in the network": watch.seconds,
        "study / the network": seconds / watch.seconds,
    }


def processes(photographs: int) -> dict[str, float]:
    """Seconds of the whole command with one and with two processes of one thread each."""
    seconds = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node",
                str(count),
                "-m",
                "apem_fast",
                "evaluate",
                "--output",
                folder + "/run",
                "--explainers",
                "gradient,random",
                "--limit",
                str(photographs),
                "--block",
                str(-(-photographs // 2)),
                "--batch-size",
                "4",
            ]
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            seconds[count] = time.perf_counter() - begin
    return {
        "one process, seconds": seconds[1],
        "two processes, seconds": seconds[2],
        "speed-up": seconds[1] / seconds[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=4)
    parser.add_argument("--measures", nargs="+", help="in the study too; nothing is written")
    parser.add_argument("--processes", action="store_true")
    arguments = parser.parse_args()
    study(1, "float64")  # so that neither pays for what is loaded once
    if arguments.measures:
        print_table("With other measures", [study(arguments.photographs, "float64", tuple(arguments.measures))])
        return
    rows = [study(arguments.photographs, record) for record in ("float32", "float64")]
    rows[1]["float64 / float32"] = rows[1]["seconds"] / rows[0]["seconds"]  # type: ignore[operator]
    print_table("6 methods x 3 stages", rows)
    results: dict[str, object] = {"study": rows}
    if arguments.processes:
        seconds = processes(14)
        results["processes"] = seconds
        print_table("Two methods, 14 photographs, whole commands", [seconds])
    write_json("study", results)


if __name__ == "__main__":
    main()
