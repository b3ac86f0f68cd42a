"""What holds for every operator: schemas, messages, fakes, compilation, threads, and life without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import Backend, every_backend, every_device
from tensors import moved
from torch import Tensor

from apem_fast.ops import reference
from apem_fast.ops.load import MUTATING, OPERATORS

ops = torch.ops.apem_fast


def sample(operator: str, generator: torch.Generator, size: int = 6) -> tuple[Any, ...]:
    """Arguments that exercise an operator: 2 images, maps without channels, 3 epsilons or probes."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image, labels = (2, 3, size, size), torch.tensor([1, 4])
    maps, epsilon = torch.rand((2, 1, size, size), generator=generator), torch.tensor([0.5, 2.0, 7.0])
    wide, rows = epsilon.double(), torch.tensor([0, 1, 1])
    return {
        "directed_relevance": lambda: (maps, normal(*image), True),
        "directed_relevance_backward": lambda: (normal(*image), maps, normal(*image), True),
        "perturb": lambda: (normal(*image), normal(*image), epsilon, -1.0, 1.0),
        "perturb_backward": lambda: (normal(2, 3, *image[1:]), normal(*image), normal(*image), epsilon, -1.0, 1.0),
        "perturb_probes": lambda: (
            normal(*image),
            maps,
            normal(*image),
            wide * 40,
            rows,
            rows,
            rows == 1,
            wide,
            wide / 10,
        ),
        "perturb_probes_into": lambda: (normal(3, *image[1:]), *sample("perturb_probes", generator, size)),
        "label_margin": lambda: (normal(2, 5), labels),
        "label_margin_backward": lambda: (normal(2), normal(2, 5), labels),
        "probe_answers": lambda: (normal(2, 5), labels, torch.arange(10).view(2, 5) % 3 == 2),
        "first_flip": lambda: (torch.tensor([[1, 1, 0], [4, 4, 4]]), labels, epsilon),
        "relevance_map": lambda: (normal(*image), normal(*image), 90.0, "sum"),
        "attack_penalty": lambda: (normal(*image), normal(*image), 0.1, 0.0, 0.3),
        "attack_penalty_backward": lambda: (normal(2).double(), normal(*image), normal(*image), 0.1, 0.0, 0.3),
        "attack_step": lambda: (normal(*image), normal(*image), normal(*image), None, 0.5, 0.9, -1.0, 1.0),
        "zero_levels": lambda: (maps, wide / 10),
        "saliency_map": lambda: (normal(*image), normal(*image)),
    }[operator]()


def result_of(operator: str, *arguments: Any) -> Any:
    """What an operator returns; of one that writes into its first argument, a copy of that which it has written."""
    if operator not in MUTATING:
        return getattr(ops, operator)(*arguments)
    out = arguments[0].clone()
    assert getattr(ops, operator)(out, *arguments[1:]) is None
    return out


every_operator = pytest.mark.parametrize("operator", OPERATORS)


@every_operator
def test_compiled_and_reference_schemas_are_one(operator: str) -> None:
    inferred = torch.library.infer_schema(getattr(reference, operator), mutates_args=MUTATING.get(operator, ()))
    assert getattr(ops, operator).default._schema == torch._C.parse_schema(f"apem_fast::{operator}{inferred}")


@every_device
@every_operator
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(device: str, operator: str, channels_last: bool, generator: torch.Generator) -> None:
    arguments = tuple(moved(a, device) for a in sample(operator, generator))
    if channels_last:
        arguments = tuple(
            a.contiguous(memory_format=torch.channels_last) if isinstance(a, Tensor) and a.dim() == 4 else a
            for a in arguments
        )
    torch.library.opcheck(getattr(ops, operator).default, arguments)


@every_device
@every_operator
def test_compiles_into_one_graph(device: str, operator: str, generator: torch.Generator) -> None:
    def composed(*arguments: Any) -> Tensor:
        result = result_of(operator, *arguments)
        return (result[0] if isinstance(result, tuple) else result) * 2

    arguments = tuple(moved(a, device) for a in sample(operator, generator))
    torch._dynamo.reset()
    compiled = torch.compile(composed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), composed(*arguments), rtol=0, atol=0)


NO_DERIVATIVE = ["perturb_probes", "perturb_probes_into", "relevance_map", "first_flip", "label_margin_backward"]


@every_device
@pytest.mark.parametrize("operator", NO_DERIVATIVE)
def test_what_has_no_derivative_says_so(device: str, operator: str, generator: torch.Generator) -> None:
    arguments = [moved(a, device) for a in sample(operator, generator)]
    floating = [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    floating[0].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"{operator}: has no derivative"):
        result_of(operator, *arguments).sum().backward()


@every_operator
def test_the_number_of_threads_does_not_matter(operator: str, generator: torch.Generator) -> None:
    arguments = sample(operator, generator, size=150)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result = result_of(operator, *arguments)
            results.append(result if isinstance(result, tuple) else (result,))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_without_the_compiled_library_the_reference_serves() -> None:
    program = """
import torch, apem_fast.ops as ops
assert ops.backend() == "reference"
relevance, gradient = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True), torch.tensor([[[[2.0, -2.0]]]])
direction = ops.directed_relevance(relevance, gradient)
assert direction.tolist() == [[[[0.25, -0.75]]]]
direction[0, 0, 0, 0].backward()
assert relevance.grad.tolist() == [[[[0.1875, -0.0625]]]]
torch.library.opcheck(torch.ops.apem_fast.directed_relevance.default, (relevance.detach(), gradient))
print("served")
"""
    environment = os.environ | {"APEM_FAST_BACKEND": "reference", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.stdout == "served\n", done.stderr


# -- one table of bad calls for every backend -----------------------------------------------------------------------

F, I8, I64, F64, F16 = torch.float32, torch.int8, torch.int64, torch.float64, torch.float16


def T(*shape: int, dtype: torch.dtype = F) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def probe_call(**changes: Any) -> Callable[[], tuple[Any, ...]]:
    def arguments() -> tuple[Any, ...]:
        good: dict[str, Any] = {
            "images": T(2, 3, 4, 4),
            "relevance": T(2, 1, 4, 4),
            "gradient": T(2, 3, 4, 4),
            "norm": T(3, dtype=F64),
            "image": T(3, dtype=I64),
            "map": T(3, dtype=I64),
            "irrelevance": T(3, dtype=torch.bool),
            "epsilon": T(3, dtype=F64),
            "level": T(3, dtype=F64),
            "lower": None,
            "upper": None,
            "dtype": None,
        }
        return tuple((good | changes).values())

    return arguments


def into_call(out: Tensor, **changes: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: (out, *probe_call(**changes)()[:-1])  # its dtype is that of `out`


FLOATING = "be float32, float64, float16 or bfloat16"
MAP_OF = "in all but the channels, which may be 1"
BAD_CALLS = [
    ("directed_relevance", lambda: (T(2, 1, 4, 4, dtype=I64), T(2, 3, 4, 4)), f"relevance must {FLOATING} (got int64)"),
    (
        "directed_relevance",
        lambda: (T(2, 1, 4, 4), T(2, 3, 4)),
        "gradient must have shape (N, C, H, W) (got (2, 3, 4))",
    ),
    (
        "directed_relevance",
        lambda: (T(2, 1, 4, 4), T(2, 3, 4, 4, dtype=F64)),
        "gradient must be float32 or int8 (got float64)",
    ),
    (
        "directed_relevance",
        lambda: (T(2, 4, 4), T(2, 3, 4, 4)),
        "relevance must have shape (N, 1, H, W) or (N, C, H, W) (got (2, 4, 4))",
    ),
    (
        "directed_relevance",
        lambda: (T(2, 2, 4, 4), T(2, 3, 4, 4)),
        f"relevance must match gradient (2, 3, 4, 4) {MAP_OF} (got (2, 2, 4, 4))",
    ),
    (
        "directed_relevance",
        lambda: (T(2, 1, 5, 4), T(2, 3, 4, 4)),
        f"relevance must match gradient (2, 3, 4, 4) {MAP_OF} (got (2, 1, 5, 4))",
    ),
    (
        "directed_relevance_backward",
        lambda: (T(2, 1, 4, 4), T(2, 1, 4, 4), T(2, 3, 4, 4)),
        "grad_direction must have shape (2, 3, 4, 4) (got (2, 1, 4, 4))",
    ),
    (
        "directed_relevance_backward",
        lambda: (T(2, 3, 4, 4, dtype=F64), T(2, 1, 4, 4), T(2, 3, 4, 4)),
        "grad_direction must be float32 (got float64)",
    ),
    ("perturb", lambda: (T(3, 4, 4), T(3, 4, 4), T(2)), "images must have shape (N, C, H, W) (got (3, 4, 4))"),
    (
        "perturb",
        lambda: (T(2, 3, 4, 4, dtype=torch.complex64), T(2, 3, 4, 4), T(2)),
        f"images must {FLOATING} (got complex64)",
    ),
    (
        "perturb",
        lambda: (T(2, 3, 4, 4), T(2, 1, 4, 4), T(2)),
        "direction must have shape (2, 3, 4, 4) (got (2, 1, 4, 4))",
    ),
    ("perturb", lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4, dtype=F16), T(2)), "direction must be float32 (got float16)"),
    (
        "perturb",
        lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4), torch.tensor(1.0)),
        "epsilon must have shape (K,) or (N, K) (got ())",
    ),
    ("perturb", lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4), T(3, 5)), "epsilon must have shape (2, 5) (got (3, 5))"),
    ("perturb", lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4), T(2, dtype=I64)), f"epsilon must {FLOATING} (got int64)"),
    (
        "perturb",
        lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4), T(2), 1.5, -0.25),
        "lower must be at most upper=-0.25 (got 1.5)",
    ),
    (
        "perturb_backward",
        lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4), T(2, 3, 4, 4), T(5)),
        "grad_perturbed must have shape (2, 5, 3, 4, 4) (got (2, 3, 4, 4))",
    ),
    (
        "perturb_backward",
        lambda: (T(2, 5, 3, 4, 4, dtype=F64), T(2, 3, 4, 4), T(2, 3, 4, 4), T(5)),
        "grad_perturbed must be float32 (got float64)",
    ),
    ("perturb_probes", probe_call(images=T(3, 4, 4)), "images must have shape (N, C, H, W) (got (3, 4, 4))"),
    ("perturb_probes", probe_call(images=T(2, 3, 4, 4, dtype=I64)), f"images must {FLOATING} (got int64)"),
    (
        "perturb_probes",
        probe_call(relevance=T(2, 2, 4, 4)),
        f"relevance must match images (2, 3, 4, 4) {MAP_OF} (got (2, 2, 4, 4))",
    ),
    ("perturb_probes", probe_call(relevance=T(2, 1, 4, 4, dtype=F64)), "relevance must be float32 (got float64)"),
    ("perturb_probes", probe_call(gradient=T(1, 3, 4, 4)), "gradient must have shape (2, 3, 4, 4) (got (1, 3, 4, 4))"),
    ("perturb_probes", probe_call(gradient=T(2, 3, 4, 4, dtype=I64)), "gradient must be float32 or int8 (got int64)"),
    ("perturb_probes", probe_call(norm=T(3, 1, dtype=F64)), "norm must have shape (M,) (got (3, 1))"),
    ("perturb_probes", probe_call(norm=T(3)), "norm must be float64 (got float32)"),
    ("perturb_probes", probe_call(image=T(2, dtype=I64)), "probe_image must have shape (3) (got (2))"),
    ("perturb_probes", probe_call(map=T(3)), "probe_map must be int64 (got float32)"),
    ("perturb_probes", probe_call(irrelevance=T(3, dtype=torch.uint8)), "probe_irrelevance must be bool (got uint8)"),
    ("perturb_probes", probe_call(epsilon=T(3)), "probe_epsilon must be float64 (got float32)"),
    ("perturb_probes", probe_call(level=T(4, dtype=F64)), "probe_level must have shape (3) (got (4))"),
    ("perturb_probes", probe_call(lower=1.0, upper=0.0), "lower must be at most upper=0 (got 1)"),
    (
        "perturb_probes",
        probe_call(dtype=F64),
        "dtype must be float16, bfloat16 or that of images, float32 (got float64)",
    ),
    ("perturb_probes_into", into_call(T(3, 3, 4, 4), norm=T(3)), "norm must be float64 (got float32)"),
    ("perturb_probes_into", into_call(T(2, 3, 4, 4)), "out must have shape (3, 3, 4, 4) (got (2, 3, 4, 4))"),
    (
        "perturb_probes_into",
        into_call(T(3, 3, 4, 4, dtype=F64)),
        "out must be float16, bfloat16 or that of images, float32 (got float64)",
    ),
    ("label_margin", lambda: (T(5), T(5, dtype=I64)), "logits must have shape (N, classes) (got (5))"),
    ("label_margin", lambda: (T(2, 5, dtype=I64), T(2, dtype=I64)), f"logits must {FLOATING} (got int64)"),
    ("label_margin", lambda: (T(2, 1), T(2, dtype=I64)), "logits must have at least 2 classes (got (2, 1))"),
    ("label_margin", lambda: (T(2, 5), T(3, dtype=I64)), "labels must have shape (2) (got (3))"),
    ("label_margin", lambda: (T(2, 5), T(2, dtype=torch.int32)), "labels must be int64 (got int32)"),
    (
        "probe_answers",
        lambda: (T(2, 5), T(2, dtype=I64), T(2, 4, dtype=torch.bool)),
        "above must have shape (2, 5) (got (2, 4))",
    ),
    ("probe_answers", lambda: (T(2, 5), T(2, dtype=I64), T(2, 5)), "above must be bool (got float32)"),
    ("label_margin_backward", lambda: (T(3), T(2, 5), T(2, dtype=I64)), "grad_margin must have shape (2) (got (3))"),
    (
        "label_margin_backward",
        lambda: (T(2, dtype=F64), T(2, 5), T(2, dtype=I64)),
        "grad_margin must be float32 (got float64)",
    ),
    ("first_flip", lambda: (T(2, dtype=I64), T(2, dtype=I64), T(3)), "predicted must have shape (R, K) (got (2))"),
    ("first_flip", lambda: (T(2, 3), T(2, dtype=I64), T(3)), "predicted must be int64 (got float32)"),
    ("first_flip", lambda: (T(2, 3, dtype=I64), T(3, dtype=I64), T(3)), "labels must have shape (2) (got (3))"),
    ("first_flip", lambda: (T(2, 3, dtype=I64), T(2, dtype=I8), T(3)), "labels must be int64 (got int8)"),
    (
        "first_flip",
        lambda: (T(2, 3, dtype=I64), T(2, dtype=I64), T(3, dtype=F16)),
        "epsilon must be float32 or float64 (got float16)",
    ),
    ("first_flip", lambda: (T(2, 3, dtype=I64), T(2, dtype=I64), T(2)), "epsilon must have shape (3) (got (2))"),
    (
        "first_flip",
        lambda: (T(2, 3, dtype=I64), T(2, dtype=I64), T(3, 3)),
        "epsilon must have shape (2, 3) (got (3, 3))",
    ),
    ("relevance_map", lambda: (T(3, 4, 4),), "attribution must have shape (N, C, H, W) (got (3, 4, 4))"),
    ("relevance_map", lambda: (T(2, 3, 4, 4, dtype=torch.bool),), f"attribution must {FLOATING} (got bool)"),
    ("relevance_map", lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4, dtype=F64)), "images must be float32 (got float64)"),
    (
        "relevance_map",
        lambda: (T(2, 3, 4, 4), T(1, 3, 4, 4)),
        f"images must match attribution (2, 3, 4, 4) {MAP_OF} (got (1, 3, 4, 4))",
    ),
    ("relevance_map", lambda: (T(2, 3, 4, 4), None, 100.5), "percentile must lie in [0, 100] (got 100.5)"),
    ("relevance_map", lambda: (T(2, 3, 4, 4), None, float("nan")), "percentile must lie in [0, 100] (got nan)"),
    ("zero_levels", lambda: (T(3, 4, 4), T(2)), "relevance must have shape (N, C, H, W) (got (3, 4, 4))"),
    ("zero_levels", lambda: (T(2, 3, 4, 4), T(2, 1, 1)), "threshold must have shape (L,) or (N, L) (got (2, 1, 1))"),
    ("zero_levels", lambda: (T(2, 3, 4, 4), T(3, 5)), "threshold must have shape (2, 5) (got (3, 5))"),
    (
        "zero_levels",
        lambda: (T(2, 3, 4, 4), T(5, dtype=torch.float16)),
        "threshold must be float32 or float64 (got float16)",
    ),
    ("relevance_map", lambda: (T(2, 3, 4, 4), None, 99.0, "mean"), 'channels must be "sum" or "keep" (got "mean")'),
]

# Where checking the values would wait for the device, they are not checked.
BAD_INDICES = [
    (
        "perturb_probes",
        probe_call(image=torch.tensor([0, 2, 1])),
        "probe_image must lie in [0, 2), the rows of images (got min=0, max=2)",
    ),
    (
        "perturb_probes",
        probe_call(map=torch.tensor([0, -1, 1])),
        "probe_map must lie in [0, 2), the rows of relevance (got min=-1, max=1)",
    ),
    (
        "label_margin",
        lambda: (T(2, 5), torch.tensor([5, 1])),
        "labels must lie in [0, 5), the classes of logits (got min=1, max=5)",
    ),
]


@every_backend
@pytest.mark.parametrize("operator, arguments, message", BAD_CALLS + BAD_INDICES)
def test_a_bad_call_gets_one_sentence(backend: Backend, operator: str, arguments: Callable, message: str) -> None:
    if backend.device == "cuda" and any(message == indices[2] for indices in BAD_INDICES):
        pytest.skip("indices on a device are not read")
    with pytest.raises(RuntimeError) as error:
        getattr(backend, operator)(*(moved(a, backend.device) for a in arguments()))
    assert str(error.value) == f"{operator}: {message}"


@pytest.mark.parametrize("operator, arguments, message", BAD_CALLS)
def test_a_fake_says_the_same(operator: str, arguments: Callable, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        getattr(ops, operator)(*(moved(a, "meta") for a in arguments()))
    assert str(error.value) == f"{operator}: {message}"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("source", [ops, reference], ids=["registered", "reference"])
def test_what_is_written_lies_without_gaps(source: Any, device: str) -> None:
    _, *others = into_call(T(0))()
    out = torch.zeros(3, 3, 4, 8, device=device)[..., ::2]
    with pytest.raises(RuntimeError) as error:
        source.perturb_probes_into(out, *(moved(a, device) for a in others))
    assert (
        str(error.value) == "perturb_probes_into: out must be contiguous or channels-last (got strides (96, 32, 8, 2))"
    )


@pytest.mark.parametrize("source", [ops, reference], ids=["registered", "reference"])
def test_devices_must_agree(source: Any) -> None:
    with pytest.raises(RuntimeError) as error:
        source.directed_relevance(T(1, 1, 2, 2), T(1, 1, 2, 2).to("meta"))
    assert str(error.value) == "directed_relevance: gradient must be on the device of relevance, cpu (got meta)"


@every_device
def test_a_write_into_a_tensor_is_counted(device: str, generator: torch.Generator) -> None:
    """So that autograd refuses a backward pass that would need what was there before."""
    out, *others = (moved(a, device) for a in sample("perturb_probes_into", generator))
    weight = torch.ones_like(out, requires_grad=True)
    total, before = (weight * out).sum(), out._version
    ops.perturb_probes_into(out, *others)
    assert out._version > before
    with pytest.raises(RuntimeError):
        total.backward()
