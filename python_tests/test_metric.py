"""APEM against a loop a reader of P1 would write, and what must hold whatever the batch, search or model."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import epsilons_of, images_and_maps, literal_epsilons, small_network
from torch import nn

import apem_fast as af
from apem_fast.probing import batch_prober, columns, rays
from apem_fast.probing.prober import answered
from apem_fast.running.clean import run_clean
from apem_fast.running.record import Record
from apem_fast.running.runners import PlainRunner
from apem_fast.running.undisturbed import undisturbed
from apem_fast.search import Isolate

GRID = {"step": 0.25, "max_epsilon": 40.0}


@pytest.mark.parametrize("map_channels", [1, 3])
@pytest.mark.parametrize("search", ["exhaustive", "isolate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_literal_loop(search, map_channels, dtype):
    model = small_network(dtype=dtype)
    images, relevance = images_and_maps(4, map_channels=map_channels, dtype=dtype)
    result = af.apem(model, images, relevance, search=search, **GRID)
    assert epsilons_of(result) == [literal_epsilons(model, x, r, **GRID) for x, r in zip(images, relevance)]
    assert result.labels.tolist() == model(images).argmax(1).tolist()
    assert (result.score == result.epsilon_plus - result.epsilon_minus).all()


def test_the_demonstration_networks_kinds_of_rays_are_covered():
    """The oracle above is worth something only if it sees censored and uncensored rays."""
    model = small_network()
    images, relevance = images_and_maps(4)
    short = af.apem(model, images, relevance, step=0.25, max_epsilon=8.0)
    flags = torch.cat([short.flipped_minus, short.flipped_plus])
    assert flags.any() and not flags.all()
    assert (short.epsilon_minus[~short.flipped_minus] == 8.0).all()
    assert epsilons_of(short) == [literal_epsilons(model, x, r, 0.25, 8.0) for x, r in zip(images, relevance)]


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_depends_on_neither_batch_nor_format_nor_company(batch_size, memory_format):
    model = small_network()
    images, relevance = images_and_maps(6)
    together = af.apem(model, images.contiguous(memory_format=memory_format), relevance, batch_size=batch_size, **GRID)
    alone = [af.apem(model, images[i : i + 1], relevance[i : i + 1], batch_size=1, **GRID) for i in range(6)]
    assert epsilons_of(together) == [epsilons_of(result)[0] for result in alone]


def test_many_maps_of_the_same_images_share_a_search():
    model = small_network()
    images, one = images_and_maps(3)
    _, three = images_and_maps(3, map_channels=3, seed=1)
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    evaluator = af.Evaluator(model, images, batch_size=4, **GRID)
    assert calls.count(True) == 3  # one forward with a gradient for each image, however many maps follow
    results = evaluator.apem({"a": one, "b": three, "c": one.flip(0)})
    assert calls.count(True) == 3
    handle.remove()
    for name, maps in {"a": one, "b": three, "c": one.flip(0)}.items():
        assert epsilons_of(results[name]) == epsilons_of(af.apem(model, images, maps, **GRID))


def test_scale_of_a_map_does_not_matter():
    model = small_network()
    images, relevance = images_and_maps(3)
    half = af.Evaluator(model, images, **GRID).apem({"x": relevance * 0.5})["x"]
    assert torch.equal(half.epsilon_minus, af.apem(model, images, relevance, **GRID).epsilon_minus)


def test_a_uniform_map_scores_zero():
    model = small_network()
    images, _ = images_and_maps(3)
    result = af.apem(model, images, torch.full((3, 1, 16, 16), 0.5), **GRID)
    assert torch.equal(result.epsilon_minus, result.epsilon_plus) and (result.score == 0).all()


def test_epsilon_is_a_whole_multiple_of_step():
    """0.1 added up 100 times is not 10: the grid has no drift."""
    model = small_network()
    images, relevance = images_and_maps(4)
    result = af.apem(model, images, relevance, step=0.1, max_epsilon=30)
    for value in torch.cat([result.epsilon_minus, result.epsilon_plus]).tolist():
        assert value == round(value / 0.1) * 0.1


def test_an_evaluator_takes_maps_by_name():
    evaluator = af.Evaluator(small_network(), images_and_maps(2)[0], **GRID)
    with pytest.raises(TypeError, match=r"Evaluator.apem: relevance must be maps by name, .* \(got Tensor\)"):
        evaluator.apem(images_and_maps(2)[1])


def test_minimum_epsilon_along_any_direction():
    model = small_network()
    images, relevance = images_and_maps(4)
    evaluator = af.Evaluator(model, images, **GRID)
    direction = af.ops.directed_relevance(relevance, evaluator.sign_gradient)
    along = af.minimum_epsilon(model, images, direction, **GRID)
    assert torch.equal(along.epsilon, af.apem(model, images, relevance, **GRID).epsilon_minus)
    # Against the gradient nothing flips: that makes the model surer.
    back = af.minimum_epsilon(model, images[:1], -direction[:1], step=0.25, max_epsilon=2.0)
    assert not back.flipped[0] and back.epsilon[0] == 2.0


def test_bounds_clamp_the_perturbed_image():
    model = small_network()
    images, relevance = images_and_maps(2)
    images = images.clamp(-1, 1)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().abs().max().item()))
    af.apem(model, images, relevance, bounds=(-1.0, 1.0), **GRID)
    handle.remove()
    assert max(seen) <= 1.0


class Saturated(nn.Module):
    """A network so sure of itself that its softmax is exactly 1 in float32 and in float64."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) * 1e5


def test_a_saturated_softmax_still_has_a_sign_gradient():
    plain = small_network()
    images, _ = images_and_maps(3)
    assert (Saturated(plain)(images).double().softmax(1).amax(1) == 1).all()
    sure = af.Evaluator(Saturated(plain).eval(), images, **GRID)
    assert (sure.sign_gradient != 0).float().mean() > 0.9
    top_two = plain(images).topk(2, dim=1)
    with torch.enable_grad():  # far from a tie, the gradient is that of the margin to the runner-up
        leaf = images.clone().requires_grad_()
        logits = plain(leaf)
        runner_up = logits.gather(1, top_two.indices)
        (gradient,) = torch.autograd.grad((runner_up[:, 1] - runner_up[:, 0]).sum(), leaf)
    assert torch.equal(sure.sign_gradient, gradient.sign().to(torch.int8))


def test_first_order_estimate_is_close_to_the_true_slope():
    model = small_network(dtype=torch.float64)
    images, relevance = images_and_maps(3, dtype=torch.float64)
    two = nn.Sequential(model, nn.Linear(10, 2, dtype=torch.float64)).eval()  # with two classes loss and margin agree
    clean = run_clean(two, images)
    some = rays.relevance_rays(images, clean, relevance, np.arange(3))
    runner, tuner = PlainRunner(two), batch_prober.tuner_for(images, 4)
    with (
        undisturbed(two),
        batch_prober.BatchProber(two, some, tuner, runner, Record(two, runner, images)) as prober,
    ):
        margin = answered(prober, np.arange(6), np.full(6, 1e-5)).margin
    np.testing.assert_allclose((some.margin - margin) / 1e-5, some.slope, rtol=1e-3)


# -- nothing of the user's is changed ----------------------------------------------------------------------------


def snapshot(model: nn.Module, images: torch.Tensor) -> dict:
    return {
        "state": copy.deepcopy(model.state_dict()),
        "pointers": [p.data_ptr() for p in model.parameters()],
        "strides": [p.stride() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "images": images.clone(),
        "random": torch.get_rng_state(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(before: dict, after: dict) -> None:
    torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


class NoisyThenBroken(nn.Module):
    """Draws random numbers as it runs, and breaks after a number of calls."""

    def __init__(self, model: nn.Module, calls: int):
        super().__init__()
        self.model, self.left = model, calls

    def forward(self, x):
        torch.rand(3)
        self.left -= 1
        if self.left < 0:
            raise KeyError("out of calls")
        return self.model(x)


@pytest.mark.parametrize("calls", [10_000, 8, 2])
def test_leaves_everything_as_it_was_also_after_an_exception(calls):
    inner = small_network()
    images, relevance = images_and_maps(3)
    images.requires_grad_(True)
    next(inner.parameters()).requires_grad_(False)
    inner[0].bias.grad = torch.ones_like(inner[0].bias)
    model = NoisyThenBroken(inner, calls).eval()
    before = snapshot(model, images)
    if calls == 10_000:
        af.apem(model, images, relevance, **GRID)
    else:
        with pytest.raises(KeyError, match="out of calls"):
            af.apem(model, images, relevance, batch_size=2, **GRID)
    assert_same(before, snapshot(model, images))
    assert images.grad is None


class Small(nn.Module):
    """Runs out of memory when more than `fits` images come at once."""

    def __init__(self, model: nn.Module, fits: int, error: RuntimeError):
        super().__init__()
        self.model, self.fits, self.error, self.sizes = model, fits, error, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.fits:
            raise self.error
        return self.model(x)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 12")],
    ids=["cuda", "cpu"],
)
@pytest.mark.parametrize("batch_size", [16, None])
def test_out_of_memory_halves_the_batch_and_goes_on(error, batch_size):
    model = Small(small_network(), 3, error).eval()
    images, relevance = images_and_maps(6)
    result = af.apem(model, images, relevance, batch_size=batch_size, **GRID)
    assert epsilons_of(result) == epsilons_of(af.apem(model.model, images, relevance, **GRID))
    if batch_size == 16:
        assert [size for size in model.sizes if size > 3] == [12, 8, 4] or max(model.sizes) == 16


def test_out_of_memory_with_one_image_is_an_error():
    model = Small(small_network(), 0, torch.OutOfMemoryError("CUDA out of memory")).eval()
    images, relevance = images_and_maps(1)
    with pytest.raises(torch.OutOfMemoryError):
        af.apem(model, images, relevance, **GRID)


# -- progress and results ----------------------------------------------------------------------------------------


def test_progress_and_stopping():
    model = small_network()
    images, relevance = images_and_maps(4)
    heard = []
    result = af.apem(model, images, relevance, batch_size=2, progress=lambda *now: heard.append(now), **GRID)
    assert heard[-1] == (8, 8, int(result.probes.sum()))
    assert heard == sorted(heard) and all(total == 8 for _, total, _ in heard)

    def stop(done, total, probes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        af.apem(model, images, relevance, progress=stop, **GRID)


def test_isolate_needs_far_fewer_probes():
    model = small_network()
    images, relevance = images_and_maps(6)
    few = af.apem(model, images, relevance, step=0.01, max_epsilon=60)
    many = af.apem(model, images, relevance, step=0.01, max_epsilon=60, search="exhaustive")
    assert epsilons_of(few) == epsilons_of(many)
    assert few.probes.sum() * 10 < many.probes.sum()


def test_a_policy_of_ones_own():
    model = small_network()
    images, relevance = images_and_maps(2)
    result = af.apem(model, images, relevance, search=Isolate(safety=6), **GRID)
    assert epsilons_of(result) == epsilons_of(af.apem(model, images, relevance, **GRID))


def test_result_as_a_table():
    model = small_network()
    images, relevance = images_and_maps(3)
    result = af.apem(model, images, relevance, **GRID)
    table = result.to_dataframe()
    assert list(table) == ["label", "epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus", "probes"]
    assert table["score"].mean() == pytest.approx(result.mean) and table["score"].median() == result.median
    with pytest.raises(AttributeError):
        result.max_epsilon = 3


def test_an_evaluator_says_what_it_is():
    evaluator = af.Evaluator(small_network(), images_and_maps(3)[0], **GRID)
    assert repr(evaluator) == (
        f"<Evaluator: 3 images of 3 x 16 x 16, max_epsilon={GRID['max_epsilon']:g}, step={GRID['step']:g}, "
        "record=float64>"
    )


def test_equation_2_is_the_mean_gap():
    model = small_network()
    images, relevance = images_and_maps(5)
    result = af.apem(model, images, relevance, **GRID)
    total, rows = (
        0.0,
        [literal_epsilons(model, x, r, GRID["step"], GRID["max_epsilon"]) for x, r in zip(images, relevance)],
    )
    for (minus, _), (plus, _) in rows:
        total += plus - minus
    assert result.mean == pytest.approx(total / len(rows), rel=1e-12) and total != 0


# -- bad input ---------------------------------------------------------------------------------------------------


def _replaced(index, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


SURE = torch.tensor([5.0, 0.0, 0.0])
NAN_LATER = Returns(lambda x: x.flatten(1)[:, :3] * 1e-3 + torch.where(x.abs().amax() > 6, torch.nan, SURE))

BAD = {
    "images not a tensor": (dict(images=[1]), TypeError, r"apem: images must be a torch.Tensor \(got list\)"),
    "images of another shape": (
        dict(images=lambda x: x[0]),
        ValueError,
        r"apem: images must have shape \(N, C, H, W\) and not be empty \(got \(3, 16, 16\)\); images\[None\] is .*",
    ),
    "no images": (
        dict(images=lambda x: x[:0]),
        ValueError,
        r"apem: images must have shape .* \(got \(0, 3, 16, 16\)\)",
    ),
    "images of another dtype": (
        dict(images=lambda x: x.half()),
        TypeError,
        r"apem: images must be float32 or float64 \(got float16\)",
    ),
    "images with NaN": (
        dict(images=_replaced((1, 0, 2, 2), torch.nan)),
        ValueError,
        r"apem: images must be finite \(got NaN\)",
    ),
    "images with infinity": (
        dict(images=_replaced((1, 0, 2, 2), torch.inf)),
        ValueError,
        r"apem: images must be finite \(got infinity\)",
    ),
    "images on another device": (
        dict(images=lambda x: x.to("meta")),
        ValueError,
        r"apem: images must be on the model's device, cpu \(got meta\); images.to\(\"cpu\"\) moves them",
    ),
    "relevance not a tensor": (
        dict(relevance=None),
        TypeError,
        r"apem: relevance must be a torch.Tensor \(got NoneType\)",
    ),
    "relevance of another shape": (
        dict(relevance=lambda r: r[:, 0]),
        ValueError,
        r"apem: relevance must have shape \(2, 1, 16, 16\) or \(2, 3, 16, 16\) \(got \(2, 16, 16\)\); .* that shape",
    ),
    "relevance of another dtype": (
        dict(relevance=lambda r: r.double()),
        TypeError,
        r"apem: relevance must be float32 like images \(got float64\); relevance.to\(images.dtype\) is",
    ),
    "relevance on another device": (
        dict(relevance=lambda r: r.to("meta")),
        ValueError,
        r"apem: relevance must be on the device of images, cpu \(got meta\); relevance.to\(images.device\) is",
    ),
    "relevance with NaN": (
        dict(relevance=_replaced((0, 0, 1, 1), torch.nan)),
        ValueError,
        r"apem: relevance must be finite \(got NaN\)",
    ),
    "relevance below 0": (
        dict(relevance=_replaced((0, 0, 1, 1), -0.3)),
        ValueError,
        r"apem: relevance must lie in \[0, 1\] \(got min=-0.3, max=[\d.]+\); relevance_map makes .*",
    ),
    "relevance above 1": (
        dict(relevance=_replaced((0, 0, 1, 1), 1.5)),
        ValueError,
        r"apem: relevance must lie in \[0, 1\] \(got min=[\d.e-]+, max=1.5\); relevance_map makes .*",
    ),
    "relevance all zeros": (
        dict(relevance=_replaced(1, 0.0)),
        ValueError,
        r"apem: relevance must not be all 0, which leaves no relevance ray \(got such a map at index 1\)",
    ),
    "relevance all ones": (
        dict(relevance=_replaced(0, 1.0)),
        ValueError,
        r"apem: relevance must not be all 1, which leaves no irrelevance ray \(got such a map at index 0\)",
    ),
    "labels that are not the predictions": (
        dict(labels=torch.tensor([11, 11])),
        ValueError,
        r"apem: labels must be the model's predictions \(got 11 at index 0, predicted \d\); without labels .*",
    ),
    "labels of another shape": (
        dict(labels=torch.tensor([1])),
        ValueError,
        r"apem: labels must be int64 of shape \(2,\) \(got int64 of shape \(1,\)\)",
    ),
    "a model in training mode": (
        dict(model=lambda m: m.train()),
        ValueError,
        r"apem: model must be in eval mode, call model.eval\(\) \(it is in training mode\)",
    ),
    "a module in training mode": (
        dict(model=lambda m: (m[6].train(), m)[1]),
        ValueError,
        r"apem: model must be in eval mode, .* \(its module '6' is in training mode\)",
    ),
    "not a model": (
        dict(model=lambda m: lambda x: x),
        TypeError,
        r"apem: model must be a torch.nn.Module \(got function\)",
    ),
    "a model with a map as output": (
        dict(model=Returns(lambda x: x)),
        ValueError,
        r"model must return logits of shape \(1, classes\) with at least 2 classes, .* \(got shape \(1, 3, 16, 16\)\);"
        r" Classifier\(model, output=...\) says where they are",
    ),
    "a model without an output": (
        dict(model=Returns(lambda x: x.flatten(1)[:, :0])),
        ValueError,
        r"model must return logits .* \(got shape \(1, 0\)\); .*",
    ),
    "a model with a tuple as output": (
        dict(model=Returns(lambda x: ([x], x))),
        ValueError,
        r"model must return logits .* \(got tuple\); .*",
    ),
    "a model that gives NaN on perturbed images": (
        dict(model=NAN_LATER),
        ValueError,
        r"model must return finite logits \(got NaN or infinity for a perturbed image\)",
    ),
    "max_epsilon below step": (
        dict(max_epsilon=0.1),
        ValueError,
        r"apem: max_epsilon must be at least step=0.25 \(got 0.1\)",
    ),
    "step of 0": (dict(step=0), ValueError, r"apem: step must be positive and finite \(got 0\)"),
    "step not a number": (dict(step="1"), TypeError, r"apem: step must be a number \(got str\)"),
    "max_epsilon infinite": (
        dict(max_epsilon=float("inf")),
        ValueError,
        r"apem: max_epsilon must be positive and finite \(got inf\)",
    ),
    "batch_size of 0": (dict(batch_size=0), ValueError, r"apem: batch_size must be at least 1 \(got 0\)"),
    "batch_size of 2.5": (
        dict(batch_size=2.5),
        TypeError,
        r"apem: batch_size must be a whole number or None \(got float\)",
    ),
    "bounds upside down": (dict(bounds=(1.0, 0.0)), ValueError, r"apem: bounds must have lower < upper \(got 1, 0\)"),
    "bounds not a pair": (dict(bounds=3), TypeError, r"apem: bounds must be a pair \(lower, upper\) \(got 3\)"),
    "an unknown search": (
        dict(search="bisect"),
        ValueError,
        r'apem: search must be "isolate" or "fast" or .* or "certified" or a policy \(got "bisect"\)',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    changes, error, sentence = BAD[case]
    images, relevance = images_and_maps(2)
    arguments = {"model": small_network(), "images": images, "relevance": relevance, **GRID, "max_epsilon": 4000.0}
    for name, change in changes.items():
        plain = not callable(change) or isinstance(change, nn.Module)
        arguments[name] = change if plain else change(arguments[name])
    if isinstance(arguments["model"], Returns):
        arguments["model"].eval()
    kept = {
        name: value.clone()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.device.type == "cpu"
    }
    with pytest.raises(error, match=f"^{sentence}$") as caught:
        af.apem(**arguments)
    assert "\n" not in str(caught.value)
    for name, value in kept.items():
        assert torch.equal(value, arguments[name]) or value.isnan().any()


def test_a_bad_direction_is_one_sentence():
    images, _ = images_and_maps(2)
    model = small_network()
    with pytest.raises(
        ValueError, match=r"^minimum_epsilon: direction must not be all 0 \(got such a one at index 1\)$"
    ):
        af.minimum_epsilon(model, images, _replaced(1, 0.0)(torch.ones_like(images)), **GRID)
    with pytest.raises(
        ValueError, match=r"^minimum_epsilon: direction must have shape \(2, 3, 16, 16\) \(got \(2, 1, 16, 16\)\)$"
    ):
        af.minimum_epsilon(model, images, torch.ones(2, 1, 16, 16), **GRID)


KINDS_OF_NUMBER = {
    "int": lambda v: int(v),
    "Fraction": Fraction,
    "numpy.int64": lambda v: np.int64(v),
    "numpy.float32": lambda v: np.float32(v),
    "numpy array of no dimensions": lambda v: np.array(v),
    "tensor of no dimensions": lambda v: torch.tensor(int(v)),
}


@pytest.mark.parametrize("kind", KINDS_OF_NUMBER)
@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_a_number_of_any_kind_means_what_a_float_means(kind, search):
    """An int step once made every epsilon a denormal, and so every ray censored, without a word."""
    number = KINDS_OF_NUMBER[kind]
    model = small_network()
    images, relevance = images_and_maps(3)
    meant = af.apem(model, images, relevance, step=1.0, max_epsilon=40.0, search=search)
    assert meant.flipped_minus.any()
    result = af.apem(model, images, relevance, step=number(1.0), max_epsilon=number(40.0), search=search)
    assert epsilons_of(result) == epsilons_of(meant)
    assert type(result.step) is float and type(result.max_epsilon) is float


def test_bits_of_anything_but_float64_are_refused():
    with pytest.raises(TypeError, match="float64"):
        columns._bits(np.arange(3))


def test_maps_without_a_ray_are_flagged_where_that_is_asked_for():
    images, relevance = images_and_maps(5)
    expected = af.apem(small_network(), images, relevance, max_epsilon=40.0)
    bad = relevance.clone()
    bad[1], bad[2], bad[4] = 0, 1, float("nan")
    with pytest.raises(ValueError, match="relevance must"):
        af.apem(small_network(), images, bad, max_epsilon=40.0)
    came = af.apem(small_network(), images, bad, max_epsilon=40.0, on_bad_map="flag")
    assert came.measured.tolist() == [True, False, False, True, False]
    for name in ("epsilon_minus", "epsilon_plus", "score", "flipped_minus"):
        assert torch.equal(getattr(came, name)[[0, 3]], getattr(expected, name)[[0, 3]])
    assert came.score.isnan().tolist() == [False, True, True, False, True] and not came.flipped_plus[1]
    assert came.mean == float(expected.score[[0, 3]].mean()) == came.median
    with pytest.raises(ValueError, match='on_bad_map must be "raise" or "flag"'):
        af.apem(small_network(), images, bad, on_bad_map="skip")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        af.apem(small_network(), images, bad * 2, on_bad_map="flag")
