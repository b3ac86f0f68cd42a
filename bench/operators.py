"""Each operator against its reference definition, torch.compile of that definition, and a copy of the same bytes.

    python -m bench.operators [--device cuda] [--only perturb_probes] [--seconds 3] [--no-compile]

"Share of copy" is the speed of the operator as a share of the speed of `Tensor.copy_` into an existing tensor that
moves as many bytes as the operator must: every input byte read once, every output byte written once. The operators
allocate their outputs; the copy does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor

import apem_fast.ops  # noqa: F401  (registers the operators)
from apem_fast.ops import load, reference
from bench.timing import bytes_of, circumstances, copy_of, interleaved, print_table, write_json

SIZE = 224


@dataclass(frozen=True)
class Case:
    operator: str
    label: str
    arguments: tuple[Any, ...]


def _cases(device: str) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    # On a GPU one image fits a cache many times over: there, only sizes of several caches say anything.
    counts = (1, 8) if device == "cpu" else (64, 256)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def placed(values: tuple[Any, ...], channels_last: bool) -> tuple[Any, ...]:
        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            last = channels_last and value.dim() == 4
            return value.to(device, memory_format=torch.channels_last if last else torch.preserve_format)

        return tuple(place(value) for value in values)

    for count in counts:
        images, gradient = normal(count, 3, SIZE, SIZE), normal(count, 3, SIZE, SIZE)
        relevance = torch.rand((count, 1, SIZE, SIZE), generator=generator)
        signs = gradient.sign().to(torch.int8)
        for last in (False, True) if count == counts[-1] else (False,):
            order = f"{count} x 3x{SIZE}x{SIZE}{', channels last' if last else ''}"

            def case(operator: str, label: str, *arguments: Any, order: str = order, last: bool = last) -> Case:
                return Case(operator, f"{order}{label}", placed(arguments, last))

            # 8 probes of each image, four on each of its two rays.
            rows = torch.arange(count).repeat_interleave(8)
            irrelevance = torch.arange(8 * count) % 8 >= 4
            applied = relevance.double().sum(dim=(1, 2, 3))[rows] * 3
            norm = torch.where(irrelevance, 3 * SIZE * SIZE - applied, applied)
            epsilon = torch.rand(8 * count, generator=generator, dtype=torch.float64) * 99
            probes = norm, rows, rows, irrelevance, epsilon, torch.zeros_like(norm)
            yield case("perturb_probes", ", 8 probes each, signs", images, relevance, signs, *probes)
            yield case("perturb_probes", ", 8 probes each", images, relevance, gradient, *probes)
            yield case("perturb", ", 8 epsilons", images, gradient, torch.arange(8.0))
            yield case("directed_relevance", "", relevance, gradient)
            yield case("directed_relevance", ", signs", relevance, signs)
            yield case("relevance_map", ", sum, with image", gradient, images, 99.0, "sum")
            yield case("relevance_map", ", keep", gradient, None, 99.0, "keep")
            original, previous = normal(count, 3, SIZE, SIZE), normal(count, 3, SIZE, SIZE)
            yield case("attack_step", "", images, gradient, previous, None, 0.1, 0.9)
            yield case("attack_step", ", zero force", images, gradient, previous, None, 0.1, 0.9, None, None, original, 0.01)  # fmt: skip
            yield case("attack_penalty", "", images, original, 0.1, 0.0, 0.3)
            ones = torch.ones(count, dtype=torch.float64)
            yield case("attack_penalty_backward", "", ones, images, original, 0.1, 0.0, 0.3)
            yield case("saliency_map", "", original, images)
    for rows in (64, 4096):
        labels = torch.randint(0, 1000, (rows,), generator=generator)
        yield Case("label_margin", f"{rows} x 1000", placed((normal(rows, 1000), labels), False))
        predicted = torch.where(torch.rand((rows, 300), generator=generator) > 0.99, 0, labels[:, None])
        yield Case("first_flip", f"{rows} x 300", placed((predicted, labels, torch.arange(300.0)), False))


def _compiled(operator: str) -> Callable[..., Any]:
    """torch.compile of the definition alone: its checks, which read values, would break the graph."""
    torch._dynamo.reset()
    unchecked = SimpleNamespace(**{name: lambda *_, **__: None for name in load.OPERATORS})
    compiled = torch.compile(getattr(reference, operator), dynamic=False)

    def call(*arguments: Any) -> Any:
        with mock.patch.object(reference, "checks", unchecked):
            return compiled(*arguments)

    return call


def measure(case: Case, device: str, seconds: float, with_compile: bool) -> dict[str, Any]:
    native = getattr(torch.ops.apem_fast, case.operator)
    outputs = native(*case.arguments)
    size = bytes_of(case.arguments) + bytes_of(outputs if isinstance(outputs, tuple) else (outputs,))
    definition = getattr(reference, case.operator)
    candidates = {
        "native": lambda: native(*case.arguments),
        "copy": copy_of(size, device),
        "reference": lambda: definition(*case.arguments),
    }
    if with_compile:
        compiled = _compiled(case.operator)
        candidates["compiled"] = lambda: compiled(*case.arguments)
    with torch.no_grad():
        timings = interleaved(candidates, device, seconds)
    return {
        "operator": case.operator,
        "case": case.label,
        "MB": size / 1e6,
        "ms": timings.median("native") * 1e3,
        "x reference": timings.speedup("native", "reference"),
        "x torch.compile": timings.speedup("native", "compiled") if with_compile else None,
        "share of copy": timings.speedup("native", "copy"),
        "rounds": len(timings.seconds["native"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=load.OPERATORS, help="one operator")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case (default: 2)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU")

    rows = []
    with Console(stderr=True).status("measuring") as status:
        for case in _cases(options.device):
            if options.only in (None, case.operator):
                status.update(f"{case.operator}: {case.label}")
                rows.append(measure(case, options.device, options.seconds, not options.no_compile))
    where = circumstances(options.device)
    print_table(f"Operators: {where['device']}, {where['threads']} threads, torch {where['torch']}", rows)
    if options.only is None:
        write_json("operators", rows, options.device)


if __name__ == "__main__":
    main()
