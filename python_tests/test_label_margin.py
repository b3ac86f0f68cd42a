"""label_margin and its derivative: the label's logit minus the best other, and the predicted label."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from backends import Backend, every_backend, every_device, native_backend
from hypothesis import given
from tensors import every_dtype, moved, same

from apem_fast.ops import reference

SHAPES = ((0, 2), (1, 2), (3, 5), (4, 33), (2, 1000))
logit = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 1.0, 3.5, math.inf, math.nan])


def literal(row: list[float], label: int) -> tuple[float, int]:
    """Margin and prediction of one row; NaN is the greatest of all, and the first of equals wins."""

    def before(a: float, b: float) -> bool:
        return (math.isnan(b) and not math.isnan(a)) or b > a

    predicted = 0
    for c in range(1, len(row)):
        if before(row[predicted], row[c]):
            predicted = c
    if any(math.isnan(value) for value in row):
        return math.nan, predicted
    return row[label] - max(value for c, value in enumerate(row) if c != label), predicted


@every_backend
@given(data=st.data(), classes=st.integers(2, 70))
def test_against_a_literal_loop(backend: Backend, data: st.DataObject, classes: int) -> None:
    rows = data.draw(st.lists(st.lists(logit, min_size=classes, max_size=classes), min_size=1, max_size=3))
    labels = [data.draw(st.integers(0, classes - 1)) for _ in rows]
    margin, predicted = backend.label_margin(
        torch.tensor(rows, dtype=torch.float64, device=backend.device), torch.tensor(labels, device=backend.device)
    )
    for n, (row, label) in enumerate(zip(rows, labels)):
        expected, winner = literal(row, label)
        assert margin[n].item() == expected or (math.isnan(expected) and margin[n].isnan())
        assert predicted[n].item() == winner


@native_backend
@every_dtype
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_the_reference(
    backend: Backend, dtype: torch.dtype, transposed: bool, generator: torch.Generator
) -> None:
    for shape in SHAPES:
        for levels in (3, 10_000):  # many ties, and hardly any
            logits = (torch.randint(0, levels, shape, generator=generator) / 64).to(dtype)
            logits = logits.T.contiguous().T if transposed else logits
            labels = torch.randint(0, shape[1], shape[:1], generator=generator)
            grad = torch.randn(shape[:1], generator=generator).to(dtype)
            on_device = moved(logits, backend.device), moved(labels, backend.device)
            for actual, expected in zip(backend.label_margin(*on_device), reference.label_margin(logits, labels)):
                same(actual, expected)
            same(
                backend.label_margin_backward(moved(grad, backend.device), *on_device),
                reference.label_margin_backward(grad, logits, labels),
            )


@every_backend
def test_the_derivative_is_one_at_the_label_and_minus_one_at_the_first_best_other(backend: Backend) -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, 5.0]], device=backend.device)
    grad, labels = torch.tensor([2.0], device=backend.device), torch.tensor([2], device=backend.device)
    assert backend.label_margin_backward(grad, logits, labels).tolist() == [[0.0, -2.0, 2.0, 0.0]]


@every_device
def test_gradcheck(device: str, generator: torch.Generator) -> None:
    logits = torch.randperm(24, generator=generator).double().reshape(4, 6).to(device).requires_grad_()
    labels = torch.tensor([0, 5, 3, 2], device=device)
    assert torch.autograd.gradcheck(lambda x: torch.ops.apem_fast.label_margin(x, labels)[0], (logits,))


@every_backend
def test_probe_answers_of_a_row_each(backend: Backend) -> None:
    logits = torch.tensor([[3.0, 1.0, -9.0], [3.0, 1.0, -9.0], [2.0, 2.0, 0.0], [1.0, math.nan, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    answers = backend.run("probe_answers", logits, labels).tolist()
    assert answers[0][:3] == [2.0, -2.0, 0.0] and math.isnan(answers[0][3])
    assert answers[1] == [0.0, 1.0, 1.0, 1.0]  # a tie is the lowest class's
    assert answers[2][:3] == [9.0, 9.0, 2.0] and math.isnan(answers[2][3])
    above = torch.tensor([[False, True, False], [True, False, False], [True, False, False], [False, True, False]])
    margin, flipped, greatest = backend.run("probe_answers", logits, labels, above)
    assert margin.tolist() == [12.0, 10.0, 2.0, 1.0] and flipped.tolist() == [0.0] * 4
    assert greatest[:3].tolist() == [9.0, 9.0, 2.0] and greatest[3].isnan()


@native_backend
@every_dtype
def test_probe_answers_equal_the_reference(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    for shape in SHAPES:
        logits = (torch.randint(-3, 4, shape, generator=generator) / 4).to(dtype)
        labels = torch.randint(0, shape[1], shape[:1], generator=generator)
        for above in (None, torch.rand(shape, generator=generator) < 0.3):
            expected = reference.probe_answers(logits, labels, above)
            arguments = (moved(a, backend.device) for a in (logits, labels, above))
            same(backend.probe_answers(*arguments), expected)
