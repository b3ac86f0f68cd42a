"""How near `apem()` comes to the bare model, by precision, and how long the papers' study would take on this device.

    python -m bench.throughput [--device cuda] [--networks vgg16 resnet50 efficientnet-lite0] [--images 256]

For each network (VGG-16 and ResNet-50 with random weights, which suffice for times; EfficientNet-Lite0 with its own)
and precision: the bare model's best images a second over a sweep of batch sizes and memory formats; the probes a second
of `Evaluator.apem()` on the gradient's maps of three stages, the sign gradients' time, and whether its epsilons equal
float32's. Then, with EfficientNet-Lite0's probes per ray, the projected time of P1's Table I, 5,000 images x 6 methods
x 3 stages, beside a loop of one image and one epsilon at a time.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torchvision
from torch import Tensor, nn

import apem_fast as af
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.relevance import STAGES
from apem_fast.running.low_precision import low_precision
from apem_fast.running.undisturbed import undisturbed
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
            batch = images[torch.arange(size) % len(images)].contiguous(memory_format=memory_format)
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


def network(name: str, count: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, and real photographs for it, repeated up to `count`, as it takes them and as pixels."""
    efficientnet = load_network("efficientnet-lite0")
    pixels = torch.stack([efficientnet.pixels(one.open()) for one in bundled_photographs()])
    if name == efficientnet.name:
        model = efficientnet.model
    else:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval()
    pixels = pixels[torch.arange(count) % len(pixels)].to(device)
    return model.to(device), efficientnet.normalised(pixels), pixels


def one_network(name: str, count: int, precisions: list[str], device: str) -> list[dict[str, object]]:
    model, images, pixels = network(name, count, device)
    attribution = af.explain.Gradient()(model, images)
    maps = {name: make(attribution, pixels, 99.0) for name, make in STAGES.items()}
    rows, exact = [], None
    for precision in precisions:
        rate, size, memory_format = bare_throughput(model, images, precision, device)
        evaluator = af.Evaluator(model, images, max_epsilon=MAX_EPSILON, precision=precision)
        evaluator.apem(maps)  # batches are found, graphs captured
        clean = seconds_of(lambda: evaluator.on(images), device, rounds=3) / count
        begin = time.perf_counter()
        results = evaluator.apem(maps).values()
        seconds = time.perf_counter() - begin
        epsilons = torch.stack([torch.stack([r.epsilon_minus, r.epsilon_plus]) for r in results])
        exact = epsilons if exact is None else exact
        probes = sum(int(result.probes.sum()) for result in results)
        rows.append(
            {
                "network": name,
                "precision": precision,
                "bare images a second": rate,
                "at batch": size,
                "format": memory_format,
                "probes a second": probes / seconds,
                "of the bare model": probes / seconds / rate,
                "probes per ray": probes / epsilons.numel(),
                "rays that differ": int((epsilons != exact).sum()),
                "sign gradient, ms": clean * 1e3,
                "naive loop's probes a second": naive_rate(model, images[0], device)
                if precision == "float32"
                else None,
            }
        )
    return rows


def projected(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The study's time for each network and precision: its sign gradients and its probes, without the methods' maps;
    and a naive loop's, its probes alone."""
    rays = 2 * STUDY["images"] * STUDY["methods"] * STUDY["stages"]
    real = {row["precision"]: row["probes per ray"] for row in rows if row["network"] == "efficientnet-lite0"}
    naive = {
        row["network"]: rays * SCAN_PROBES / row["naive loop's probes a second"]
        for row in rows
        if row["precision"] == "float32"
    }
    study = []
    for row in rows:
        if row["precision"] not in real:
            continue
        searching = rays * real[row["precision"]] / row["probes a second"]
        seconds = searching + STUDY["images"] * row["sign gradient, ms"] / 1e3
        study.append(
            {
                "network": row["network"],
                "precision": row["precision"],
                "study, minutes": seconds / 60,
                "naive loop, minutes": naive[row["network"]] / 60,
                "times faster": naive[row["network"]] / seconds,
            }
        )
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="*", default=["vgg16", "resnet50", "efficientnet-lite0"])
    parser.add_argument("--precisions", nargs="*", help="default: float32, float16 and bfloat16; on a GPU also tf32")
    parser.add_argument("--images", type=int, help="default: 16 on a CPU, 256 on a GPU")
    options = parser.parse_args()
    precisions = options.precisions or ["float32", "float16", "bfloat16"] + ["tf32"] * (options.device == "cuda")

    count = options.images or (16 if options.device == "cpu" else 256)
    rows = [row for name in options.networks for row in one_network(name, count, precisions, options.device)]
    study = projected(rows)
    write_json("throughput", {"engine": rows, "study": study}, options.device)
    where = circumstances(options.device)
    print_table(f"The engine over the bare model: {where['device']}, torch {where['torch']}", rows)
    if study:
        print_table("5,000 images x 6 methods x 3 stages, projected", study)


if __name__ == "__main__":
    main()
