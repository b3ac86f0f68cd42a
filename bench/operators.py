"""Each operator against its reference definition, torch.compile of that definition, and a copy of the same bytes.

    python -m bench.operators [--device cuda] [--only perturb_probes] [--seconds 3] [--no-compile]

"Share of copy" is the speed of the operator as a share of the speed of `Tensor.copy_` into an existing tensor that
moves as many bytes as the operator must: every input byte read once, every output byte written once. The operators
allocate their outputs, all but `perturb_probes_into`; the copy does not. On a GPU every case is several times larger
than its cache; what cannot be compiled or does not fit is noted, and results are written after each case.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

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
    usual: bool = True  # not channels-last, which is left out where each case takes long


def _cases(device: str) -> Iterator[Case]:
    generator = torch.Generator(device).manual_seed(0)
    on_gpu = device == "cuda"
    # On a GPU even 64 images nearly fit its cache, which then is what is measured.
    counts = (256,) if on_gpu else (1, 8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def placed(values: tuple[Any, ...], channels_last: bool) -> tuple[Any, ...]:
        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            last = channels_last and value.dim() == 4
            return value.to(device, memory_format=torch.channels_last if last else torch.preserve_format)

        return tuple(place(value) for value in values)

    for count in counts:
        images, gradient = normal(count, 3, SIZE, SIZE), normal(count, 3, SIZE, SIZE)
        relevance = torch.rand((count, 1, SIZE, SIZE), generator=generator, device=device)
        signs = gradient.sign().to(torch.int8)
        for last in (False, True) if count == counts[-1] else (False,):
            order = f"{count} x 3x{SIZE}x{SIZE}{', channels last' if last else ''}"

            def case(operator: str, label: str, *arguments: Any, order: str = order, last: bool = last) -> Case:
                return Case(operator, f"{order}{label}", placed(arguments, last), usual=not last)

            # 8 probes of each image, four on each of its two rays.
            rows = torch.arange(count, device=device).repeat_interleave(8)
            irrelevance = torch.arange(8 * count, device=device) % 8 >= 4
            applied = relevance.double().sum(dim=(1, 2, 3))[rows] * 3
            norm = torch.where(irrelevance, 3 * SIZE * SIZE - applied, applied)
            epsilon = torch.rand(8 * count, generator=generator, dtype=torch.float64, device=device) * 99
            probes = norm, rows, rows, irrelevance, epsilon, torch.zeros_like(norm)
            yield case("perturb_probes", ", 8 probes each, signs", images, relevance, signs, *probes)
            there = torch.empty(8 * count, 3, SIZE, SIZE, device=device)
            yield case("perturb_probes_into", ", 8 probes each, signs", there, images, relevance, signs, *probes)
            del there
            if on_gpu:
                bounds = None, None, torch.bfloat16
                yield case(
                    "perturb_probes", ", 8 probes each, signs, to bfloat16", images, relevance, signs, *probes, *bounds
                )
            yield case("perturb_probes", ", 8 probes each", images, relevance, gradient, *probes)
            yield case("perturb", ", 8 epsilons", images, gradient, torch.arange(8.0, device=device))
            yield case("directed_relevance", "", relevance, gradient)
            yield case("directed_relevance", ", signs", relevance, signs)
            yield case("relevance_map", ", sum, with image", gradient, images, 99.0, "sum")
            yield case("relevance_map", ", keep", gradient, None, 99.0, "keep")
            original, previous = normal(count, 3, SIZE, SIZE), normal(count, 3, SIZE, SIZE)
            yield case("attack_step", "", images, gradient, previous, None, 0.1, 0.9)
            yield case(
                "attack_step", ", zero force", images, gradient, previous, None, 0.1, 0.9, None, None, original, 0.01
            )
            yield case("attack_penalty", "", images, original, 0.1, 0.0, 0.3)
            ones = torch.ones(count, dtype=torch.float64, device=device)
            yield case("attack_penalty_backward", "", ones, images, original, 0.1, 0.0, 0.3)
            yield case("saliency_map", "", original, images)
            if on_gpu:
                yield case("zero_levels", ", 16 levels", relevance, torch.linspace(0, 1, 16, device=device))
    for rows in (64, 4096, 262_144) if on_gpu else (64, 4096):
        labels = torch.randint(0, 1000, (rows,), generator=generator, device=device)
        logits = normal(rows, 1000)
        yield Case("label_margin", f"{rows} x 1000", (logits, labels), usual=rows != 4096)
        yield Case("probe_answers", f"{rows} x 1000", (logits, labels), usual=rows != 4096)
        flips = torch.rand((rows, 300), generator=generator, device=device) > 0.99
        predicted = torch.where(flips, 0, labels[:, None])
        grid = torch.arange(300.0, device=device)
        yield Case("first_flip", f"{rows} x 300", (predicted, labels, grid), usual=rows != 4096)


def _unchecked() -> ModuleType:
    """The definitions without their checks, which read values and so would break a graph."""
    spec = importlib.util.spec_from_file_location("unchecked_reference", reference.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.checks = SimpleNamespace(**{name: lambda *_, **__: None for name in load.OPERATORS})
    return module


def _works(call: Callable[[], Any], name: str, notes: list[str]) -> bool:
    """Whether a candidate can take part; if not, a note says why."""
    try:
        with torch.no_grad():
            call()
        return True
    except Exception as error:  # of torch or of a compiler, of any kind: one candidate must not end the run
        notes.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:80] if str(error) else ''}")
        return False


def measure(case: Case, device: str, seconds: float, compiled: Callable[..., Any] | None) -> dict[str, Any]:
    native = getattr(torch.ops.apem_fast, case.operator)
    definition = getattr(reference, case.operator)
    calls = {"native": lambda: native(*case.arguments), "reference": lambda: definition(*case.arguments)}
    if compiled is not None:
        calls["compiled"] = lambda: compiled(*case.arguments)
    notes: list[str] = []
    row: dict[str, Any] = {"operator": case.operator, "case": case.label}
    candidates = {name: call for name, call in calls.items() if _works(call, name, notes)}
    if "native" in candidates:
        outputs = calls["native"]()
        # What is written into an argument is among the arguments.
        made = outputs if isinstance(outputs, tuple) else () if outputs is None else (outputs,)
        size = bytes_of(case.arguments) + bytes_of(made)
        del made
        del outputs
        candidates["copy"] = copy_of(size, device)
        with torch.no_grad():
            timings = interleaved(candidates, device, seconds)
        row |= {
            "MB": size / 1e6,
            "ms": timings.median("native") * 1e3,
            "GB/s": size / timings.median("native") / 1e9,
            "copy GB/s": size / timings.median("copy") / 1e9,
            "share of copy": timings.speedup("native", "copy"),
            "x reference": timings.speedup("native", "reference") if "reference" in candidates else None,
            "x torch.compile": timings.speedup("native", "compiled") if "compiled" in candidates else None,
            "rounds": len(timings.seconds["native"]),
        }
    return row | {"note": "; ".join(notes) or None}


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each case. On a GPU torch.compile gets so much time altogether, one case of each operator."""
    size = 2_000_000_000 if options.device == "cuda" else 64_000_000
    seconds = interleaved({"copy": copy_of(size, options.device)}, options.device, options.seconds).median("copy")
    rate = size / seconds / 1e9
    yield {"operator": "copy", "case": f"{size // 1_000_000} MB", "MB": size / 1e6, "ms": seconds * 1e3, "GB/s": rate}

    definitions, compiled_already, compiling = _unchecked(), set(), 0.0
    for case in _cases(options.device):
        if options.only not in (None, case.operator):
            continue
        compiled, on_gpu = None, options.device == "cuda"
        first = case.operator not in compiled_already and case.usual
        if not options.no_compile and (not on_gpu or (first and compiling < options.compile_seconds)):
            torch._dynamo.reset()
            compiled = torch.compile(getattr(definitions, case.operator), dynamic=False)
            compiled_already.add(case.operator)
            begin = time.perf_counter()
            _works(lambda: compiled(*case.arguments), "compiled", [])
            compiling += time.perf_counter() - begin
        yield measure(case, options.device, options.seconds, compiled)
        if on_gpu:
            torch.cuda.empty_cache()


def call_once(only: str | None) -> None:
    """Each operator's usual cases, once, between the marks that a profiler waits for (cuda_profile.sh)."""
    for case in _cases("cuda"):
        if case.usual and only in (None, case.operator) and not case.label.startswith("64 x 1000"):
            native = getattr(torch.ops.apem_fast, case.operator)
            native(*case.arguments)
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            native(*case.arguments)
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=load.OPERATORS, help="one operator; nothing is written")
    parser.add_argument("--seconds", type=float, help="for each case (default: 2; on a GPU .7)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--compile-seconds", type=float, default=120.0, help="on a GPU, altogether (default: 120)")
    parser.add_argument(
        "--once", action="store_true", help="call each operator once and measure nothing, for a profiler"
    )
    options = parser.parse_args()
    options.seconds = options.seconds or (0.7 if options.device == "cuda" else 2.0)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU")
    if options.once:
        return call_once(options.only)

    rows: list[dict[str, Any]] = []
    with Console(stderr=True).status("measuring") as status:
        for row in measure_all(options):
            rows.append(row)
            status.update(f"{row['operator']}: {row['case']}")
            if options.only is None:
                write_json("operators", rows, options.device, say_so=len(rows) == 1)
    where = circumstances(options.device)
    title = f"{where['device']}, {where['threads']} threads, torch {where['torch']}"
    print_table(f"Operators: {title}", rows)
    if options.device == "cuda":
        short = ("operator", "case", "GB/s", "copy GB/s", "share of copy")
        print_table(f"Of a copy: {title}", [{name: row.get(name) for name in short} for row in rows])


if __name__ == "__main__":
    main()
