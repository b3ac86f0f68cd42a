"""Models that fail at some call: out of memory, exceptions, Ctrl-C, NaN. The model, the process and the inputs are as
before, and the next call gives what it gave."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import apem_fast as af
from apem_fast.explain.explainer import NotFiniteError
from apem_fast.running.undisturbed import PRODUCTS
from reliability import children
from reliability.commands import network
from reliability.tables import Part

FAULTS = ("out of memory", "RuntimeError", "KeyboardInterrupt", "NaN")


class Broken(RuntimeError):
    pass


class Failing(nn.Module):
    """A classifier that fails once, at one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network().model.eval()
        self.hooked = 0
        self.register_forward_hook(self._count)  # of the user's own: it must stay, and no other come
        self.arm(None, 0)

    def arm(self, fault: str | None, at: int) -> None:
        self.fault, self.at, self.calls = fault, at, 0

    def _count(self, *arguments: object) -> None:
        self.hooked += 1

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        failing = self.fault if self.calls == self.at else None
        if failing == "out of memory":
            raise torch.OutOfMemoryError("none left")
        if failing == "RuntimeError":
            raise Broken
        if failing == "KeyboardInterrupt":
            raise KeyboardInterrupt
        logits = self.inner(images)
        return logits * float("nan") if failing == "NaN" else logits


def state(model: nn.Module, *inputs: Tensor) -> list[Any]:
    """All that must be as before."""
    tensors = [*model.parameters(), *model.buffers()]
    modules = list(model.modules())
    return [
        [(t.data_ptr(), t.requires_grad, t.grad is None, t.stride(), t.detach().numpy().tobytes()) for t in tensors],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules],
        [(t.requires_grad, t.detach().numpy().tobytes()) for t in inputs],
        torch.get_rng_state().numpy().tobytes(),
        [place.fp32_precision for place in PRODUCTS],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    ]


def measures(images: Tensor, relevance: Tensor) -> dict[str, Callable[[nn.Module], list[Tensor]]]:
    direction = relevance / relevance.flatten(1).sum(1)[:, None, None, None] * torch.ones_like(images)
    options = {"max_epsilon": 40.0}

    def filtered(model: nn.Module) -> list[Tensor]:
        result = af.filter_relevance(model, images, relevance, levels=5, **options)
        return [result.relevance, result.score_after]

    def apem(model: nn.Module) -> list[Tensor]:
        result = af.apem(model, images, relevance, **options)
        return [result.epsilon_minus, result.epsilon_plus]

    return {
        "apem": apem,
        "minimum_epsilon": lambda model: [af.minimum_epsilon(model, images, direction, **options).epsilon],
        "filter_relevance": filtered,
        "selectivity": lambda model: [af.selectivity(model, images, relevance).area],
        "Gradient": lambda model: [af.explain.Gradient()(model, images)],
        "SmoothGrad": lambda model: [af.explain.SmoothGrad(samples=4)(model, images)],
    }


def run(seconds: float, seed: int, most: int = 40) -> Part:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, 24, 24, generator=generator)
    relevance = torch.rand(3, 1, 24, 24, generator=generator)
    rows: list[tuple[Any, ...]] = []
    deadline, every = time.monotonic() + seconds, measures(images, relevance)
    for number, (name, measure) in enumerate(every.items()):
        model = Failing().eval()
        expected = measure(model)
        model.arm(None, 0)
        measure(model)
        calls = model.calls
        for left, fault in enumerate(FAULTS):
            shares = (len(every) - number) * len(FAULTS) - left
            until, counts = time.monotonic() + (deadline - time.monotonic()) / shares, Counter[str]()
            while counts["faults"] < most and time.monotonic() < until:
                counts["faults"] += 1
                model.arm(fault, draw.randint(1, calls))
                before = state(model, images, relevance)
                counts[_came(measure, model, fault, expected)] += 1
                counts["disturbed"] += state(model, images, relevance) != before
                model.arm(None, 0)
                again = measure(model)
                counts["later other"] += not all(map(torch.equal, again, expected))
            rows.append((name, fault, *(counts[one] for one in ("faults", *CAME, "disturbed", "later other"))))
    bad = sum(sum(row[-3:]) for row in rows)
    return Part(
        "Models that fail",
        "A model of three images fails at one of its calls, drawn at random. Either the failure comes through (as "
        "itself, or as one sentence about the model), or the result is the one of a model that does not fail. Then its "
        "weights, their storages and gradients, modes, hooks, the inputs, random states and torch's settings are "
        "compared, and the call is made once more.",
        ("call", "fault", "faults", "result as ever", "raised", "another result", "disturbed", "later another result"),
        rows,
        bad,
    )


CAME = ("as ever", "raised", "other")


def _came(measure: Callable[[nn.Module], list[Tensor]], model: nn.Module, fault: str, expected: list[Tensor]) -> str:
    try:
        result = measure(model)
    except (Broken, KeyboardInterrupt, torch.OutOfMemoryError):
        return "raised" if fault != "NaN" else "other"
    except (ValueError, NotFiniteError) as error:
        return "raised" if fault == "NaN" and "\n" not in str(error) else "other"
    except Exception as error:
        children.show(f"{type(error).__name__}: {error}")
        return "other"
    return "as ever" if all(map(torch.equal, result, expected)) else "other"
