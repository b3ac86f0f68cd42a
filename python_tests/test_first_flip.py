"""first_flip: the least epsilon of each ray at which the prediction is no longer the label."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from backends import Backend, every_backend, native_backend
from hypothesis import given
from tensors import moved, same

from apem_fast.ops import reference


@every_backend
@given(data=st.data(), rays=st.integers(0, 5), count=st.integers(0, 9), own=st.booleans())
def test_against_a_literal_loop(backend: Backend, data: st.DataObject, rays: int, count: int, own: bool) -> None:
    def rows(values: st.SearchStrategy) -> list[list]:
        return [data.draw(st.lists(values, min_size=count, max_size=count)) for _ in range(rays)]

    predicted, labels = rows(st.integers(0, 2)), [data.draw(st.integers(0, 2)) for _ in range(rays)]
    epsilon = (
        rows(st.integers(1, 99))
        if own
        else [data.draw(st.lists(st.integers(1, 99), min_size=count, max_size=count))] * rays
    )
    expected = []
    for ray in range(rays):
        flips = [epsilon[ray][k] for k in range(count) if predicted[ray][k] != labels[ray]]
        expected.append(float(min(flips, default=math.inf)))
    given_epsilon = torch.tensor(epsilon, dtype=torch.float64).reshape(rays, count)
    if not own:
        given_epsilon = given_epsilon[0] if rays else torch.zeros(count, dtype=torch.float64)
    arguments = torch.tensor(predicted, dtype=torch.int64).reshape(rays, count), torch.tensor(labels, dtype=torch.int64)
    actual = backend.first_flip(*(moved(t, backend.device) for t in (*arguments, given_epsilon)))
    assert actual.tolist() == expected


@native_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_reference(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    for rays, count in ((0, 3), (3, 0), (1, 1), (70, 33), (3, 700)):
        predicted = (torch.rand((count, rays), generator=generator) > 0.97).long().T  # not contiguous
        labels = torch.randint(0, 2, (rays,), generator=generator)
        epsilon = torch.rand((rays, count), generator=generator).to(dtype)
        for e in (epsilon, epsilon.sum(dim=0)):
            actual = backend.first_flip(*(moved(t, backend.device) for t in (predicted, labels, e)))
            same(actual, reference.first_flip(predicted, labels, e))


@every_backend
def test_a_missing_epsilon_is_not_hidden(backend: Backend) -> None:
    predicted = torch.tensor([[1, 1], [0, 1]], device=backend.device)
    labels = torch.zeros(2, dtype=torch.int64, device=backend.device)
    first = backend.first_flip(predicted, labels, torch.tensor([math.nan, 2.0], device=backend.device))
    assert first[0].isnan() and first[1].item() == 2.0
