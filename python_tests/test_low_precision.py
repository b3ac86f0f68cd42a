"""The first layer stays in float32, and nothing of the user's or of torch's state is changed."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from networks import images_and_maps, small_network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from apem_fast.running import low_precision as low_precision_module
from apem_fast.running.kept_weights import CAST
from apem_fast.running.low_precision import FirstLayerExact, low_precision
from apem_fast.running.runners import PlainRunner
from apem_fast.running.undisturbed import PRODUCTS

LOW = [torch.bfloat16, torch.float16]


def lowered(model, images, dtype=torch.bfloat16):
    with torch.no_grad(), low_precision(str(dtype).removeprefix("torch."), "cpu"):
        return model(images)


class Noting(nn.Module):
    """Notes the types that each of its layers was given and gave back, in the order of the calls."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.seen = nn.ModuleList(layers), []

    def forward(self, x):
        for layer in self.layers:
            given, x = x, layer(x)
            self.seen.append((given.detach(), x.detach()))
        return x


class Product(nn.Module):
    """A linear layer as a matrix product, in one of the ways to write it."""

    WAYS = {
        "matmul": torch.matmul,
        "@": lambda x, w: x @ w,
        "method": lambda x, w: x.matmul(w),
        "addmm": lambda x, w: torch.addmm(torch.zeros(w.shape[1]), x, w),
        "einsum": lambda x, w: torch.einsum("ni,io->no", x, w),
        "linear": lambda x, w: nn.functional.linear(x, w.T),
    }

    def __init__(self, way):
        super().__init__()
        self.way, self.weight = (
            self.WAYS[way],
            nn.Parameter(torch.randn(48, 10, generator=torch.Generator().manual_seed(0))),
        )

    def forward(self, x):
        return self.way(x, self.weight)


@pytest.mark.parametrize("dtype", LOW)
def test_the_first_convolution_is_in_float32_and_the_rest_is_not(dtype):
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    model = Noting(first, nn.ReLU(), second)
    images, _ = images_and_maps(2)
    for _ in range(2):  # in each forward pass anew
        model.seen.clear()
        lowered(FirstLayerExact(model), images, dtype)
        (_, after_first), _, (before_second, after_second) = model.seen
        with torch.no_grad():
            assert torch.equal(after_first, first(images).to(dtype))
        assert not torch.equal(after_first, lowered(first, images, dtype))
        assert torch.equal(after_second, lowered(second, before_second, dtype))
        assert after_second.dtype == dtype


@pytest.mark.parametrize("way", Product.WAYS)
def test_products_are_layers_however_they_are_written(way):
    model, x = Product(way), torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model(x).to(torch.bfloat16)
    assert torch.equal(lowered(FirstLayerExact(model), x), exact)
    assert not torch.equal(lowered(model, x), exact)


def test_a_model_that_prepares_its_input_first():
    """The first layer is the first that is called, whatever happened to the input before."""
    first = nn.Conv2d(3, 8, 3)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReflectionPad2d(1), first).eval()
    images, _ = images_and_maps(2)
    with torch.no_grad():
        assert torch.equal(lowered(FirstLayerExact(model), images), model(images).to(torch.bfloat16))


class RoundsItsInput(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.network, self.dtype = small_network(), dtype

    def forward(self, x):
        return self.network(x.to(self.dtype))


class DoesWithoutAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.network(x)


@pytest.mark.parametrize(
    "model",
    [RoundsItsInput(torch.bfloat16), DoesWithoutAutocast(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())],
    ids=["rounds its input", "does without autocast", "has no such layer"],
)
def test_models_on_which_it_has_nothing_to_do(model):
    images, _ = images_and_maps(2)
    with_it, without = lowered(FirstLayerExact(model), images), lowered(model, images)
    assert with_it.dtype == without.dtype and torch.equal(with_it, without)


@pytest.mark.parametrize("dtype", LOW)
def test_a_small_change_of_the_input_is_not_lost(dtype):
    """What it is for: a perturbation far below the spacing of low-precision numbers still shows in the first layer."""
    layer = nn.Linear(48, 10)
    x = torch.rand(4, 48, generator=torch.Generator().manual_seed(2)) + 1
    change = torch.randn(4, 48, generator=torch.Generator().manual_seed(3)) * float(torch.finfo(dtype).eps) / 2
    with torch.no_grad():
        exact = layer(x + change) - layer(x)

    def off(model):
        # the sum in float32, since a result in low precision is rounded in either way
        def changed(values):
            with torch.no_grad(), low_precision(str(dtype).removeprefix("torch."), "cpu"):
                return model(values)

        return float((changed(x + change).float() - changed(x).float() - exact).abs().mean())

    assert off(FirstLayerExact(layer)) < off(layer)


class Fails(nn.Module):
    def forward(self, x):
        nn.functional.linear(x.flatten(1), torch.zeros(10, x[0].numel()))
        raise KeyError("on purpose")


def test_nothing_stays_behind():
    model = small_network()
    before = {name: (value.dtype, value.clone()) for name, value in model.state_dict().items()}
    attributes, images = set(vars(model)), images_and_maps(2)[0]
    products = [place.fp32_precision for place in PRODUCTS]
    for run in (model, Fails()):
        for precision in ("bfloat16", "tf32"):
            with suppress(KeyError), low_precision(precision, "cpu"):
                FirstLayerExact(run)(images)
            assert not torch.is_autocast_enabled("cpu")
            assert [place.fp32_precision for place in PRODUCTS] == products
            assert torch._C._len_torch_function_stack() == 0
    assert set(vars(model)) == attributes and not model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert value.dtype == before[name][0] and torch.equal(value, before[name][1])


class Watched(torch.overrides.TorchFunctionMode):
    """Notes which float32 products are allowed where a linear layer is called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "linear":
            self.seen.append(torch.backends.cudnn.conv.fp32_precision)
        return func(*args, **(kwargs or {}))


def test_tensorfloat_is_off_in_the_first_layer_only():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with Watched() as watched, low_precision("tf32", "cpu"):  # the outer mode sees calls as the inner one makes them
        FirstLayerExact(model)(torch.zeros(1, 8))
    assert watched.seen == ["ieee", "tf32"]


def test_outside_low_precision_it_is_the_model_itself():
    model = Noting(small_network())
    images, _ = images_and_maps(2)
    with Watched(), torch.no_grad():
        assert torch._C._len_torch_function_stack() == 1
        assert torch.equal(FirstLayerExact(model)(images), model(images))


@pytest.mark.slow
def test_a_compiler_follows():
    model, (images, _) = small_network(), images_and_maps(4)
    compiled = torch.compile(FirstLayerExact(model), dynamic=False)
    exact = lowered(FirstLayerExact(model), images)
    off = (lowered(compiled, images) - exact).abs().max()
    assert off < (lowered(model, images) - exact).abs().max()


# -- weights that are rounded once -------------------------------------------------------------------------------


class Casts(TorchDispatchMode):
    """Counts the roundings of what has one of these shapes."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32:
            self.count += tuple(args[0].shape) in self.shapes
        return func(*args, **(kwargs or {}))


def several_layers():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.ConvTranspose2d(6, 5, 3), nn.Flatten(1)]
    layers += [nn.Linear(5 * 14 * 14, 48), Product("@"), nn.Linear(10, 10)]
    return nn.Sequential(*layers).requires_grad_(False), torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", LOW)
def test_kept_weights_are_what_autocast_makes_of_them(dtype, memory_format, monkeypatch):
    model, images = several_layers()
    model.to(memory_format=memory_format)
    images = images.contiguous(memory_format=memory_format)
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    exact = FirstLayerExact(model)
    with monkeypatch.context() as patch:
        patch.setattr(low_precision_module, "CAST", frozenset())
        expected = lowered(exact, images, dtype)
    assert not exact.kept._copies
    assert torch.equal(lowered(exact, images, dtype), expected)
    with Casts({tuple(parameter.shape) for parameter in model.parameters()} - {(8,)}) as casts:
        assert torch.equal(lowered(exact, images, dtype), expected)
    assert casts.count == 0
    assert {name: (p, p.data_ptr()) for name, p in model.named_parameters()} == before
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", sorted(CAST))
def test_autocast_casts_every_argument_of_such_calls(name):
    """So that to round one of them before is the same."""
    torch.manual_seed(0)
    function, square, cube = getattr(torch, name, None), torch.randn(4, 4), torch.randn(4, 4, 4)
    if name.startswith("conv"):
        dims = int(name[-2])
        arguments = torch.randn(2, 4, *[6] * dims), torch.randn(4, 4, *[3] * dims), torch.randn(4)
    elif name == "linear":
        function, arguments = nn.functional.linear, (square, torch.randn(3, 4), torch.randn(3))
    elif name.startswith("__"):
        function, arguments = getattr(torch.Tensor, name), (square, torch.randn(4, 4))
    else:
        first = cube if "b" in name.removeprefix("add") else square
        arguments = (square, first, first) if name == "addbmm" else (first,) * (3 if "add" in name else 2)
    with torch.no_grad(), low_precision("bfloat16", "cpu"):
        expected = function(*arguments)
        for i, argument in enumerate(arguments):
            rounded = argument.to(torch.bfloat16)
            assert torch.equal(function(*arguments[:i], rounded, *arguments[i + 1 :]), expected)
    assert expected.dtype == torch.bfloat16


def test_weights_that_change_are_rounded_anew():
    """By an operation that torch counts at once; by one that it does not count at the next search."""
    model, images = several_layers()
    exact = FirstLayerExact(model)
    runner = PlainRunner(exact)
    runner.begin(), runner.end()  # it has seen where the weights lie
    first = lowered(exact, images)
    copies = [copy.data_ptr() for *_, copy in exact.kept._copies.values()]
    assert copies
    model[5].weight.mul_(2)
    second = lowered(exact, images)
    assert not torch.equal(second, first) and torch.equal(second, lowered(FirstLayerExact(model), images))
    model[2].weight.data.mul_(-1)
    runner.begin()
    third = lowered(exact, images)
    runner.end()
    assert not torch.equal(third, second) and torch.equal(third, lowered(FirstLayerExact(model), images))
    assert [copy.data_ptr() for *_, copy in exact.kept._copies.values()] == copies  # where graphs look for them
    model[5].weight = nn.Parameter(torch.zeros_like(model[5].weight), requires_grad=False)
    runner.begin()
    assert torch.equal(lowered(exact, images), lowered(FirstLayerExact(model), images))
    assert len(exact.kept._copies) == len(copies)
    runner.end()


def test_a_gradient_still_reaches_the_weights():
    model, images = several_layers()
    model[5].requires_grad_()
    with low_precision("bfloat16", "cpu"):
        FirstLayerExact(model)(images).sum().backward()
    assert model[5].weight.grad.abs().sum() > 0
