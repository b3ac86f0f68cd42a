"""What each operator can do within torch: the table of docs/operators.md, cell by cell, from what happens."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_operators import result_of, sample
from torch import Tensor, nn

from apem_fast.ops.autograd import DIFFERENTIABLE
from apem_fast.ops.load import MUTATING, OPERATORS

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"

# Arguments that are rows of a batch, whatever else they are: the others keep their sizes in a dynamic export.
NOT_ROWS = {"perturb": {2}, "perturb_backward": {3}, "zero_levels": {1}, "first_flip": {2}}
NOT_ROWS |= {"perturb_probes": {0, 1, 2}, "perturb_probes_into": {1, 2, 3}}


class Operator(nn.Module):
    """An operator as a model, whose other arguments are fixed."""

    def __init__(self, name: str, fixed: tuple[Any, ...]):
        super().__init__()
        self.name, self.fixed = name, fixed

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        return result_of(self.name, *(next(given) if isinstance(a, Tensor) else a for a in self.fixed))


def tensors_of(arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(a for a in arguments if isinstance(a, Tensor))


def the_same(first: Any, second: Any) -> bool:
    pairs = zip(first, second) if isinstance(first, tuple) else [(first, second)]
    return all(torch.equal(a, b) for a, b in pairs)


def compiled(name: str, arguments: tuple[Any, ...]) -> str:
    torch._dynamo.reset()
    function = torch.compile(partial(result_of, name), fullgraph=True, backend="aot_eager")
    return "yes" if the_same(function(*arguments), result_of(name, *arguments)) else "wrong"


def exported(name: str, arguments: tuple[Any, ...]) -> str:
    """With a batch of any size, and run with another than it was exported with."""
    tensors, rows = tensors_of(arguments), torch.export.Dim("rows", min=2, max=64)
    fixed = NOT_ROWS.get(name, set())
    shapes = (tuple({} if i in fixed else {0: rows} for i in range(len(tensors))),)
    program = torch.export.export(Operator(name, arguments), tensors, dynamic_shapes=shapes)
    more = tuple(t if i in fixed else torch.cat([t, t]) for i, t in enumerate(tensors))
    return "yes" if the_same(program.module()(*more), Operator(name, arguments)(*more)) else "wrong"


def mapped(name: str, arguments: tuple[Any, ...]) -> str:
    tensors, model = tensors_of(arguments), Operator(name, arguments)
    twice = tuple(torch.stack([t, t]) for t in tensors)
    if name in MUTATING:
        with pytest.raises(RuntimeError):
            torch.vmap(model)(*twice)
        return "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a loop, which is what this cell says
        result = torch.vmap(model)(*twice)
    expected = model(*tensors)
    each = [tuple(r[i] for r in result) if isinstance(result, tuple) else result[i] for i in range(2)]
    return "by a loop" if all(the_same(one, expected) for one in each) else "wrong"


def under_autocast(name: str, arguments: tuple[Any, ...]) -> str:
    with torch.autocast("cpu", torch.bfloat16):
        result = result_of(name, *arguments)
    return "as without" if the_same(result, result_of(name, *arguments)) else "wrong"


def differentiated(name: str, arguments: tuple[Any, ...], position: int = 0) -> Tensor:
    """The gradient of the operator, itself to be differentiated."""
    leaf = arguments[position].double().requires_grad_()
    others = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    result = result_of(name, *others[:position], leaf, *others[position + 1 :])
    result = result[0] if isinstance(result, tuple) else result
    return torch.autograd.grad(result.square().sum(), leaf, create_graph=True)[0]


def twice_differentiated(name: str, arguments: tuple[Any, ...]) -> str:
    if name not in DIFFERENTIABLE:
        return "no derivative"
    with pytest.raises(NotImplementedError, match="has no derivative"):
        differentiated(name, arguments).sum().backward()
    return "refused"


def forward_mode(name: str, arguments: tuple[Any, ...]) -> str:
    floating = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.is_floating_point()]
    position = floating[0]
    others = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]

    def function(value: Tensor) -> Tensor:
        result = result_of(name, *others[:position], value, *others[position + 1 :])
        return result[0] if isinstance(result, tuple) else result

    if name not in DIFFERENTIABLE:
        with pytest.raises(NotImplementedError, match="has no derivative"):
            torch.func.jvp(function, (others[position],), (torch.ones_like(others[position]),))
        return "refused"
    assert torch.autograd.gradcheck(function, others[position].clone().requires_grad_(), check_forward_ad=True)
    by_rows = torch.func.jacrev(function)(others[position])
    torch.testing.assert_close(torch.func.jacfwd(function)(others[position]), by_rows)
    return "yes"


def in_inference_mode(name: str, arguments: tuple[Any, ...]) -> str:
    with torch.inference_mode():
        copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
        result = result_of(name, *copies)
    return "yes" if the_same(result, result_of(name, *arguments)) else "wrong"


def in_two_threads(name: str, arguments: tuple[Any, ...]) -> str:
    results: list[Any] = []

    def call() -> None:
        results.extend(result_of(name, *arguments) for _ in range(20))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = result_of(name, *arguments)
    return "yes" if len(results) == 40 and all(the_same(result, expected) for result in results) else "wrong"


ABILITIES: dict[str, Callable[[str, tuple[Any, ...]], str]] = {
    "torch.compile": compiled,
    "dynamic export": exported,
    "vmap": mapped,
    "autocast": under_autocast,
    "double backward": twice_differentiated,
    "jvp, jacfwd": forward_mode,
    "inference mode": in_inference_mode,
    "two threads": in_two_threads,
}


def table() -> dict[str, dict[str, str]]:
    """The page's cells: by operator, then by ability."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    names, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(names[1:], row[1:])) for row in rows if re.match(r"`\w+`", row[0])}


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_table_is_what_happens(operator: str, generator: torch.Generator) -> None:
    arguments = sample(operator, generator, size=3)
    written = table()[operator]
    assert {ability: of(operator, arguments) for ability, of in ABILITIES.items()} == {
        ability: written[ability] for ability in ABILITIES
    }


def test_the_table_has_every_operator() -> None:
    assert sorted(table()) == sorted(OPERATORS)


@pytest.mark.slow
def test_ahead_of_time_with_inductor(generator: torch.Generator, tmp_path: Path) -> None:
    """All operators in one package of AOTInductor."""
    models = [Operator(name, sample(name, generator, size=3)) for name in OPERATORS]
    lengths = [len(tensors_of(model.fixed)) for model in models]

    class All(nn.Module):
        def forward(self, *tensors: Tensor) -> list[Tensor]:
            results, given = [], iter(tensors)
            for model, count in zip(models, lengths):
                result = model(*(next(given) for _ in range(count)))
                results.extend(result if isinstance(result, tuple) else [result])
            return results

    tensors = tuple(t for model in models for t in tensors_of(model.fixed))
    expected = All()(*tensors)
    program = torch.export.export(All(), tensors)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "operators.pt2"))
    actual = torch._inductor.aoti_load_package(package)(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))
    assert {row["AOTInductor"] for row in table().values()} == {"yes"}
