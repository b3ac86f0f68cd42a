"""Depthwise convolutions of the answers of record: the same as torch's, and only where nothing else is asked."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

import apem_fast as af
from apem_fast.ops import backend
from apem_fast.running import depthwise
from apem_fast.running.depthwise import fast_depthwise

pytestmark = pytest.mark.skipif(backend() == "reference", reason="there is no kernel of our own")

CPU = torch.device("cpu")
SIDES = st.integers(1, 9)


def whole_numbers(data: st.DataObject, *shape: int) -> Tensor:
    """Of which every sum is exact, in any order."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    return torch.randint(-9, 10, shape, generator=generator).double()


@given(
    data=st.data(),
    images=st.integers(1, 3),
    channels=st.integers(2, 4),
    filters=st.integers(1, 3),
    sides=st.tuples(SIDES, SIDES, st.integers(1, 8), st.integers(1, 8)),
    options=st.tuples(
        *[st.tuples(st.integers(least, most), st.integers(least, most)) for least, most in ((1, 3), (0, 4), (1, 3))]
    ),
    with_bias=st.booleans(),
)
def test_value_and_derivative_are_torchs(
    data: st.DataObject,
    images: int,
    channels: int,
    filters: int,
    sides: tuple[int, int, int, int],
    options: tuple[tuple[int, int], ...],
    with_bias: bool,
) -> None:
    height, width, *kernel = sides
    stride, padding, dilation = options
    fits = [d * (k - 1) + 1 <= n + 2 * p for d, k, n, p in zip(dilation, kernel, (height, width), padding)]
    if not all(fits):
        return
    inputs = whole_numbers(data, images, channels, height, width).requires_grad_()
    weight = whole_numbers(data, channels * filters, 1, *kernel)
    bias = whole_numbers(data, channels * filters) if with_bias else None
    own = inputs.detach().clone().requires_grad_()

    theirs = F.conv2d(inputs, weight, bias, stride, padding, dilation, channels)
    with fast_depthwise(CPU):
        ours = F.conv2d(own, weight, bias, stride, padding, dilation, channels)
    assert ours.grad_fn is not None and "Depthwise" in ours.grad_fn.name()
    assert torch.equal(ours, theirs)

    gradient = whole_numbers(data, *theirs.shape)
    (expected,) = torch.autograd.grad(theirs, inputs, gradient)
    (came,) = torch.autograd.grad(ours, own, gradient)
    assert torch.equal(came, expected)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (5, 2), (7, 1), (4, 3)])
def test_planes_of_many_runs(kernel: int, stride: int) -> None:
    """Sides at which rows are taken together, and at which a plane is longer than a run."""
    inputs = torch.randint(-9, 10, (1, 3, 150, 131)).double().requires_grad_()
    weight = torch.randint(-9, 10, (3, 1, kernel, kernel)).double()
    theirs = F.conv2d(inputs, weight, None, stride, kernel // 2, 1, 3)
    with fast_depthwise(CPU):
        ours = F.conv2d(inputs, weight, None, stride, kernel // 2, 1, 3)
    assert torch.equal(ours, theirs)
    gradient = torch.randint(-9, 10, theirs.shape).double()
    assert torch.equal(*(torch.autograd.grad(output, inputs, gradient)[0] for output in (ours, theirs)))


def test_derivatives_of_derivatives() -> None:
    inputs = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(6, 1, 3, 2, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def convolution(values: Tensor) -> Tensor:
        with fast_depthwise(CPU):
            return F.conv2d(values, weight, bias, (2, 1), (1, 0), (1, 2), 3)

    assert torch.autograd.gradcheck(convolution, inputs)
    assert torch.autograd.gradgradcheck(convolution, inputs)


def test_the_same_bits_with_any_number_of_threads() -> None:
    inputs = torch.randn(2, 32, 56, 56, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(32, 1, 5, 5, dtype=torch.float64)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with fast_depthwise(CPU):
                output = F.conv2d(inputs, weight, None, 1, 2, 1, 32)
            found.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each convolution that the kernel of our own computed."""
    calls: list[int] = []
    inner = depthwise._Depthwise.apply

    def apply(*arguments: object) -> object:
        calls.append(1)
        return inner(*arguments)

    monkeypatch.setattr(depthwise._Depthwise, "apply", apply)
    return calls


X = torch.randn(1, 4, 6, 6, dtype=torch.float64)
W = torch.randn(4, 1, 3, 3, dtype=torch.float64)


class Named(Tensor):
    pass


LEFT_ALONE = {
    "float32": lambda: F.conv2d(X.float(), W.float(), groups=4),
    "channels last": lambda: F.conv2d(X.contiguous(memory_format=torch.channels_last), W, groups=4),
    "groups of two channels": lambda: F.conv2d(X, W.repeat(1, 2, 1, 1), groups=2),
    "one channel": lambda: F.conv2d(X[:, :1], W),
    "padding by name": lambda: F.conv2d(X, W, padding="same", groups=4),
    "no images": lambda: F.conv2d(X[:0], W, groups=4),
    "without a batch": lambda: F.conv2d(X[0], W, groups=4),
    "a weight that wants a gradient": lambda: F.conv2d(X, W.clone().requires_grad_(), groups=4),
    "a subclass": lambda: F.conv2d(X.as_subclass(Named), W, groups=4),
    "one dimension": lambda: F.conv1d(X[:, :, 0], W[:, :, 0], groups=4),
    "vmap": lambda: torch.func.vmap(lambda x: F.conv2d(x, W, groups=4))(X[None]),
    "jvp": lambda: torch.func.jvp(lambda x: F.conv2d(x, W, groups=4), (X,), (X,))[1],
    "forward mode": lambda: _tangent(X),
}


def _tangent(values: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(values, values)
        return torch.autograd.forward_ad.unpack_dual(F.conv2d(dual, W, groups=4)).tangent


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_all_else_is_left_to_torch(case: str, served: list[int]) -> None:
    call = LEFT_ALONE[case]
    expected = call()
    with fast_depthwise(CPU):
        came = call()
    assert torch.equal(came, expected) and not served


def test_arguments_by_name_and_by_place(served: list[int]) -> None:
    with fast_depthwise(CPU):
        by_name = F.conv2d(X, weight=W, groups=4, padding=1)
        by_place = torch.conv2d(X, W, None, 1, [1, 1], 1, 4)
        of_module = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False).double().requires_grad_(False)(X)
    assert torch.equal(by_name, by_place) and of_module.shape == by_name.shape and len(served) == 3


@pytest.mark.parametrize("shape", [(4, 1, 9, 9), (6, 1, 3, 3)], ids=["reaches too far", "no whole filters"])
def test_what_is_wrong_is_said_by_torch(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError) as theirs:
        F.conv2d(X, weight, groups=4)
    with fast_depthwise(CPU), pytest.raises(RuntimeError) as ours:
        F.conv2d(X, weight, groups=4)
    assert str(ours.value) == str(theirs.value)


OPTIONS = (1, 1, 1, 1, 1, 1)
BAD = {
    "input must be float64 (got float32)": lambda op, _: op(X.float(), W, None, *OPTIONS),
    "weight must be float64 (got float32)": lambda op, _: op(X, W.float(), None, *OPTIONS),
    "weight must have shape (filters of the channels, 1, KH, KW) (got (2, 2, 3, 3))": lambda op, _: op(
        X, W.view(2, 2, 3, 3), None, *OPTIONS
    ),
    "weight must have as many filters for each of 4 channels (got 3)": lambda op, _: op(X, W[:3], None, *OPTIONS),
    "bias must have shape (4) (got (3))": lambda op, _: op(X, W, W[:3, 0, 0, 0], *OPTIONS),
    "stride_h must lie in [1, 2^30] (got 0)": lambda op, _: op(X, W, None, 0, 1, 1, 1, 1, 1),
    "padding_w must lie in [0, 2^30] (got -1)": lambda op, _: op(X, W, None, 1, 1, 1, -1, 1, 1),
    "dilation_h must lie in [1, 2^30] (got 1073741825)": lambda op, _: op(X, W, None, 1, 1, 1, 1, 2**30 + 1, 1),
    "weight must reach no further than the padded input, 8 (got 9)": lambda op, _: op(X, W, None, 1, 1, 1, 1, 4, 1),
    "grad_output must have shape (1, 4, 6, 6) (got (1, 4, 5, 6))": lambda _, op: op(X[:, :, 1:], W, 6, 6, *OPTIONS, 4),
    "height must lie in [0, 2^30] (got -1)": lambda _, op: op(X, W, -1, 6, *OPTIONS, 4),
    "weight must have as many filters for each of 0 channels (got 4)": lambda _, op: op(X, W, 6, 6, *OPTIONS, 0),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_calls_are_refused(sentence: str) -> None:
    ops = torch.ops.apem_fast
    with pytest.raises(RuntimeError) as refused:
        BAD[sentence](ops._depthwise_conv2d, ops._depthwise_conv2d_backward)
    assert sentence in str(refused.value)


def mobile_network(images: Tensor) -> nn.Module:
    """Strides, dilation, kernels of several sizes, two filters a channel, and batch norm, which has seen the images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 12, 3)]
    for kernel, stride, dilation, filters in ((3, 2, 1, 1), (5, 1, 1, 2), (3, 1, 2, 1)):
        padding = dilation * (kernel - 1) // 2
        depth = nn.Conv2d(12, 12 * filters, kernel, stride, padding, dilation, 12, bias=False)
        layers += [nn.BatchNorm2d(12), nn.Hardswish(), depth, nn.Conv2d(12 * filters, 12, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 5))
    with torch.no_grad():
        for _ in range(50):
            model(images)
    return model.eval()


def test_the_metric_is_the_same_with_it_and_without(monkeypatch: pytest.MonkeyPatch, served: list[int]) -> None:
    images, maps = torch.randn(6, 3, 24, 24), torch.rand(6, 1, 24, 24)
    model = mobile_network(images)
    with_it = af.apem(model, images, maps, max_epsilon=512)
    assert served
    monkeypatch.setattr(depthwise, "NATIVE", False)
    served.clear()
    without = af.apem(model, images, maps, max_epsilon=512)
    assert not served and without.flipped_minus.any()
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "labels"):
        assert torch.equal(getattr(with_it, name), getattr(without, name))
