"""The speed of `apem()` against the bare model, by network, precision and batch size; the time of the papers' study.

    python -m bench.throughput [--device cuda] [--networks vgg16 resnet50 efficientnet-lite0] [--batches 64 256 auto]

For each network (torchvision's with random weights and made-up images, which suffice for times; EfficientNet-Lite0 with
its own and photographs): the bare model's best images a second over a sweep of batch sizes and memory formats; then
`Evaluator.apem()` on the gradient's maps of three stages, after a first run that finds batches and captures graphs.

"Of the bare model" is the time in which the bare model, at its best rates, would run what the engine ran, over
the engine's: a screened input at the low precision's rate, one that was asked exactly at float32's. Single inputs, run
again alone, are counted as if they could have been in a batch. Every row is written as soon as it is there.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import apem_fast as af
from apem_fast.running import runners
from apem_fast.running.low_precision import low_precision
from apem_fast.running.recipe import Recipe
from apem_fast.running.undisturbed import undisturbed
from bench.networks import PHOTOGRAPHED, Workload, workload
from bench.timing import circumstances, median, print_table, write_json

SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (16, 32, 64, 128, 256, 512)}
FORMATS = (torch.channels_last, torch.contiguous_format)
STUDY = {"images": 5000, "methods": 6, "stages": 3}
SCAN_PROBES = 438  # of a scan, a ray: the demonstration's 504 rays
MAX_EPSILON = 4096.0


def seconds_of(call: Callable[[], object], device: str, rounds: int = 5) -> float:
    """The median of some calls after two that are not counted."""
    measured = []
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        measured.append(time.perf_counter() - begin)
    return median(measured[2:])


@contextmanager
def in_precision(precision: str, device: str) -> Iterator[None]:
    with torch.no_grad():
        if precision == "float32":
            with undisturbed(nn.Identity()):  # TensorFloat-32 off
                yield
        else:
            with low_precision(precision, device):
                yield


def bare_throughput(model: nn.Module, images: Tensor, precision: str, device: str) -> tuple[float, int, str]:
    """Images a second of the bare model at its best, and the batch size and format that was."""
    best = (0.0, 0, "")
    for memory_format in FORMATS:
        laid_out = copy.deepcopy(model).to(memory_format=memory_format)
        for size in SIZES[device]:
            batch = images[torch.arange(size, device=images.device) % len(images)]
            batch = batch.contiguous(memory_format=memory_format)
            try:
                with in_precision(precision, device):
                    rate = size / seconds_of(lambda: laid_out(batch), device)
            except torch.OutOfMemoryError:
                break
            best = max(best, (rate, size, str(memory_format).removeprefix("torch.")))
    return best


def naive_rate(model: nn.Module, image: Tensor, device: str) -> float:
    """Probes a second of a loop that perturbs, runs and looks at one image at a time."""
    direction = torch.randn_like(image).sign() / image.numel()

    def loop() -> None:
        with torch.no_grad():
            for epsilon in range(20):
                int(model((image + epsilon * direction)[None]).argmax())

    return 20 / seconds_of(loop, device, rounds=3)


class Counted:
    """The engine's way of running a model, with a count of the inputs that go through it."""

    def __init__(self, runner: Any):
        self._runner = runner
        self.exact = self.screened = self.single = self.filled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def __call__(self, recipe: Recipe, columns: Tensor, size: int, exact: bool, settled: bool) -> Tensor:
        if exact:
            self.exact += columns.shape[1]
        else:
            self.screened += columns.shape[1]
        self.filled += size
        return self._runner(recipe, columns, size, exact, settled)

    def alone(self, *one: Any) -> Any:
        self.single += 1
        return self._runner.alone(*one)


@contextmanager
def captures_timed() -> Iterator[list[float]]:
    """The seconds of each capture of a batch's graph."""
    seconds: list[float] = []
    real = runners.captured

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return real(*arguments)
        finally:
            seconds.append(time.perf_counter() - begin)

    with mock.patch.object(runners, "captured", timed):
        yield seconds


def one_run(
    work: Workload, precision: str, batch: int | None, rates: dict[str, float], device: str
) -> tuple[dict[str, object], Tensor]:
    """The engine with one batch size, None for its own, and the epsilons it finds."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    count = len(work.images)
    evaluator = af.Evaluator(work.model, work.images, max_epsilon=MAX_EPSILON, precision=precision, batch_size=batch)
    with captures_timed() as captures:
        evaluator.apem(work.maps)  # batches are found, graphs captured
    clean = seconds_of(lambda: evaluator.on(work.images), device, rounds=3) / count
    evaluator._runner = counted = Counted(evaluator._runner)
    evaluator._record._runner = of_record = Counted(evaluator._record._runner)
    begin = time.perf_counter()
    results = evaluator.apem(work.maps).values()
    seconds = time.perf_counter() - begin
    epsilons = torch.stack([torch.stack([r.epsilon_minus, r.epsilon_plus]) for r in results])
    bare = counted.screened / rates[precision] + (counted.exact + of_record.single) / rates["float32"]
    plan = evaluator._tuner.best
    return {
        "probes a second": sum(int(result.probes.sum()) for result in results) / seconds,
        "of the bare model": bare / seconds,
        "plan": f"{plan.size} {str(plan.memory_format).removeprefix('torch.')}",
        "inputs": counted.exact,
        "screened": counted.screened,
        "single": of_record.single,
        "places used": (counted.exact + counted.screened) / max(1, counted.filled),
        "noise": counted.noise,
        "probes per ray": sum(int(result.probes.sum()) for result in results) / epsilons.numel(),
        "censored": float((epsilons >= MAX_EPSILON).double().mean()),
        "sign gradient, ms": clean * 1e3,
        "captures": len(captures),
        "seconds captured": sum(captures),
        "peak memory, GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }, epsilons


def rows_of(
    name: str, count: int, precisions: list[str], batches: list[int | None], device: str
) -> Iterator[dict[str, object]]:
    work = workload(name, count, device)
    exact, rates = None, {}
    for precision in precisions:
        rates[precision], size, memory_format = bare_throughput(work.model, work.images, precision, device)
        rates.setdefault("float32", rates[precision])
        for batch in batches:
            row, epsilons = one_run(work, precision, batch, rates, device)
            exact = epsilons if exact is None else exact
            naive = naive_rate(work.model, work.images[0], device) if exact is epsilons else None
            yield {
                "network": name,
                "precision": precision,
                "batch": batch or "auto",
                "bare images a second": rates[precision],
                "best at": f"{size} {memory_format}",
                **row,
                "rays that differ": int((epsilons != exact).sum()),
                "naive loop's probes a second": naive,
            }


def projected(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """The study's time for each network and precision, with automatic batches: its sign gradients and its probes,
    without the methods' maps; and a naive loop's, its probes alone."""
    rays = 2 * STUDY["images"] * STUDY["methods"] * STUDY["stages"]
    rows = [row for row in rows if "error" not in row]
    real = {row["precision"]: row["probes per ray"] for row in rows if row["network"] == PHOTOGRAPHED}
    rates = {row["network"]: row["naive loop's probes a second"] for row in rows if row["naive loop's probes a second"]}
    study = []
    for row in rows:
        if row["precision"] not in real or row["batch"] != "auto":
            continue
        searching = rays * real[row["precision"]] / row["probes a second"]
        seconds = searching + STUDY["images"] * row["sign gradient, ms"] / 1e3
        naive = rays * SCAN_PROBES / rates[row["network"]]
        study.append(
            {
                "network": row["network"],
                "precision": row["precision"],
                "study, minutes": seconds / 60,
                "naive loop, minutes": naive / 60,
                "times faster": naive / seconds,
            }
        )
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="*", default=["vgg16", "resnet50", PHOTOGRAPHED])
    parser.add_argument("--precisions", nargs="*", help="default: float32, float16 and bfloat16; on a GPU also tf32")
    parser.add_argument("--batches", nargs="*", default=["auto"], help="sizes, or auto (default: auto)")
    parser.add_argument("--images", type=int, help="default: 16 on a CPU, 256 on a GPU")
    parser.add_argument("--name", default="throughput", help="of the results' file (default: throughput)")
    options = parser.parse_args()
    precisions = options.precisions or ["float32", "float16", "bfloat16"] + ["tf32"] * (options.device == "cuda")
    batches = [None if batch == "auto" else int(batch) for batch in options.batches]
    count = options.images or (16 if options.device == "cpu" else 256)

    rows: list[dict[str, object]] = []
    for name in options.networks:
        try:
            for row in rows_of(name, count, precisions, batches, options.device):
                rows.append(row)
                write_json(options.name, {"engine": rows}, options.device, say_so=len(rows) == 1)
        except ImportError as error:  # of the demonstration's packages: the other networks need none
            rows.append({"network": name, "error": str(error)})
    study = projected(rows)
    write_json(options.name, {"engine": rows, "study": study}, options.device)
    where = circumstances(options.device)
    print_table(f"The engine over the bare model: {where['device']}, torch {where['torch']}", rows)
    if study:
        print_table("5,000 images x 6 methods x 3 stages, projected", study)


if __name__ == "__main__":
    main()
