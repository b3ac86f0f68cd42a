"""Selectivity and continuity against P2's words, one feature and one neighbour at a time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from test_metric import NoisyThenBroken, Small, assert_same, snapshot
from torch import nn

import apem_fast as af


def tiny_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 6)).eval()


def tiny_images(n: int, map_channels: int = 1):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(n, 3, 5, 5, generator=generator)
    return images, torch.randint(0, 9, (n, map_channels, 5, 5), generator=generator) / 8  # with many ties


# -- selectivity -------------------------------------------------------------------------------------------------


def algorithm_1(model, image, relevance, label, output, baseline=0.0) -> list[float]:
    """P2 Algorithm 1: record, find the most relevant feature left, remove it, until all are gone."""
    x, left, record = image.clone(), relevance.clone(), []
    baseline = torch.as_tensor(baseline).expand_as(image)

    def value():
        with torch.no_grad():
            logits = model(x[None])[0].double()
        return float(logits.softmax(0)[label] if output == "probability" else logits[label])

    record.append(value())
    for _ in range(relevance.numel()):
        c, i, j = np.unravel_index(int(left.flatten().argmax()), left.shape)
        left[c, i, j] = -torch.inf
        channels = slice(None) if len(left) == 1 else c
        x[channels, i, j] = baseline[channels, i, j]
        record.append(value())
    return record


@pytest.mark.parametrize("map_channels", [1, 3])
@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("baseline", [0.0, torch.tensor([0.5, -1.0, 2.0])[:, None, None]], ids=["zero", "colour"])
def test_selectivity_is_algorithm_1(map_channels, output, baseline):
    model, (images, relevance) = tiny_network(), tiny_images(3, map_channels)
    result = af.selectivity(model, images, relevance, steps=None, output=output, baseline=baseline, batch_size=7)
    features = 25 * map_channels
    assert result.removed.tolist() == list(range(features + 1))
    for n in range(3):
        expected = algorithm_1(model, images[n], relevance[n], int(result.labels[n]), output, baseline)
        np.testing.assert_allclose(result.output[n].numpy(), expected, rtol=1e-5, atol=1e-6)
        area = np.trapezoid(expected, np.linspace(0, 1, features + 1))
        assert float(result.area[n]) == pytest.approx(area, rel=1e-5)


def test_steps_are_points_of_the_whole_curve():
    model, (images, relevance) = tiny_network(), tiny_images(3)
    whole = af.selectivity(model, images, relevance, steps=None)
    for steps in (1, 4, 25, 1000):
        some = af.selectivity(model, images, relevance, steps=steps)
        assert some.removed[0] == 0 and some.removed[-1] == 25 and len(some.removed) == min(steps, 25) + 1
        sizes = some.removed.diff()
        assert sizes.max() - sizes.min() <= 1
        torch.testing.assert_close(some.output, whole.output[:, some.removed], rtol=1e-5, atol=1e-6)


def test_a_better_map_is_more_selective():
    model, (images, _) = tiny_network(), tiny_images(8)
    logits = model(images)
    label = logits.argmax(dim=1)
    without = []  # what removing each pixel alone costs: the map that looks one step ahead
    for k in range(25):
        x = images.clone()
        x.flatten(2)[:, :, k] = 0
        without.append((logits - model(x)).gather(1, label[:, None])[:, 0].detach())
    oracle = torch.stack(without, dim=1).view(8, 1, 5, 5)
    good = af.selectivity(model, images, oracle, output="logit")
    assert good.mean < af.selectivity(model, images, -oracle, output="logit").mean
    assert good.mean == pytest.approx(float(good.area.mean())) and good.median == pytest.approx(np.median(good.area))


def test_selectivity_of_other_classes_and_as_a_table():
    model, (images, relevance) = tiny_network(), tiny_images(3)
    labels = torch.tensor([5, 0, 2])
    result = af.selectivity(model, images, relevance, labels=labels, steps=5)
    torch.testing.assert_close(
        result.output[:, 0], model(images).double().softmax(1).gather(1, labels[:, None])[:, 0].detach()
    )
    table = result.to_dataframe()
    assert list(table["selectivity"]) == result.area.tolist() and list(table["label"]) == labels.tolist()
    assert list(table["output_after"]) == result.output[:, -1].tolist()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.labels = None


def test_selectivity_survives_running_out_of_memory():
    images, relevance = tiny_images(3)
    model = Small(tiny_network(), 5, torch.OutOfMemoryError("CUDA out of memory")).eval()
    heard = []
    result = af.selectivity(model, images, relevance, steps=9, progress=lambda *now: heard.append(now))
    expected = af.selectivity(model.model, images, relevance, steps=9)
    torch.testing.assert_close(result.output, expected.output, rtol=1e-5, atol=1e-6)
    assert heard[-1] == (30, 30)
    with pytest.raises(torch.OutOfMemoryError):
        af.selectivity(Small(tiny_network(), 0, model.error).eval(), images, relevance, labels=expected.labels)


# -- continuity --------------------------------------------------------------------------------------------------


def squares(model, images, labels):
    return images**2


def test_continuity_is_the_greatest_ratio_over_the_neighbours():
    model, (images, _) = tiny_network(), tiny_images(3)
    neighbours = images[:, None] + 0.1 * torch.randn(3, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    result = af.continuity(model, images, squares, neighbours=neighbours, relevance=None)
    for n in range(3):
        ratios = [
            float((images[n] ** 2 - other**2).abs().sum() / ((images[n] - other) ** 2).sum().sqrt())
            for other in neighbours[n]
        ]
        np.testing.assert_allclose(result.ratio[n].numpy(), ratios, rtol=1e-4)
        assert float(result.continuity[n]) == pytest.approx(max(ratios), rel=1e-4)
    assert result.maximum == float(result.continuity.max())
    assert result.mean == pytest.approx(float(result.continuity.mean()))
    assert result.median == pytest.approx(float(np.median(result.continuity)))


def test_continuity_multiplies_each_map_by_the_pixels_of_its_own_image():
    """With an explanation that never changes, all that changes are the pixels it is multiplied by."""
    model, (images, _) = tiny_network(), tiny_images(2)
    neighbours = images[:, None] + 0.1 * torch.randn(2, 3, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    result = af.continuity(
        model,
        images,
        lambda model, x, labels: torch.ones_like(x),
        neighbours=neighbours,
        relevance=lambda attribution, pixels: attribution * pixels,
        pixels=lambda x: 2 * x + 1,
    )
    torch.testing.assert_close(result.change, 2 * (neighbours - images[:, None]).abs().double().sum(dim=(2, 3, 4)))


def test_continuity_explains_the_class_of_the_image_and_makes_maps_of_attributions():
    model, (images, _) = small_network(), images_and_maps(3)
    gradient = af.explain.Gradient()
    result = af.continuity(model, images, gradient, neighbours=3, distance=0.05)
    assert torch.equal(result.labels, model(images).argmax(dim=1))
    torch.testing.assert_close(
        result.distance, (0.05 * images.double().flatten(1).norm(dim=1))[:, None].expand(3, 3), rtol=1e-5, atol=0
    )
    seen = []

    def watched(model, images, labels):
        seen.append((images.clone(), labels.clone()))
        return gradient(model, images, labels)

    again = af.continuity(model, images, watched, neighbours=3, distance=0.05)
    torch.testing.assert_close(again.ratio, result.ratio, rtol=1e-4, atol=1e-4)
    assert len({tuple(x.flatten().tolist()) for x, _ in seen}) == 12
    x, x_of_class = torch.cat([x for x, _ in seen]), torch.cat([label for _, label in seen])
    assert torch.equal(x_of_class, result.labels.repeat_interleave(4))
    maps = af.relevance_map(gradient(model, x, x_of_class)).double().view(3, 4, -1)
    torch.testing.assert_close(result.change, (maps[:, 1:] - maps[:, :1]).abs().sum(dim=2), rtol=1e-4, atol=1e-4)


def test_continuity_of_a_constant_explanation_is_0_and_no_batch_changes_neighbours():
    model, (images, _) = small_network(), images_and_maps(3)
    assert af.continuity(model, images, af.explain.Uniform(), neighbours=2).maximum == 0
    gradient = af.explain.Gradient()
    heard = []
    whole = af.continuity(model, images, gradient, neighbours=3, progress=lambda *now: heard.append(now))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    alone = torch.cat([af.continuity(model, x[None], gradient, neighbours=3).ratio for x in images])
    torch.testing.assert_close(whole.ratio, alone, rtol=1e-5, atol=1e-6)
    other = af.continuity(model, images, gradient, neighbours=3, seed=1)
    assert not torch.equal(other.ratio, whole.ratio)
    assert list(whole.to_dataframe()["continuity"]) == whole.continuity.tolist()


# -- what is the user's stays as it was --------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [10_000, 5])
@pytest.mark.parametrize("measure", ["selectivity", "continuity"])
def test_leaves_everything_as_it_was_also_after_an_exception(measure, calls):
    images, relevance = images_and_maps(3)
    images.requires_grad_(True)
    inner = small_network()
    next(inner.parameters()).requires_grad_(False)
    model = NoisyThenBroken(inner, calls).eval()
    second = {"selectivity": relevance, "continuity": af.explain.Gradient()}[measure]
    before, given = snapshot(model, images), relevance.clone()

    def run():
        getattr(af, measure)(model, images, second)

    if calls == 10_000:
        run()
    else:
        with pytest.raises(KeyError, match="out of calls"):
            run()
    assert_same(before, snapshot(model, images))
    assert images.grad is None and torch.equal(relevance, given)


# -- bad input ---------------------------------------------------------------------------------------------------

BAD = {
    "selectivity": {
        "no model": (
            dict(model=print),
            TypeError,
            r"selectivity: model must be a torch.nn.Module \(got builtin_function_or_method\)",
        ),
        "training": (dict(model=small_network().train()), ValueError, r"selectivity: model must be in eval mode, .*"),
        "images": (
            dict(images=torch.ones(3, 16, 16)),
            ValueError,
            r"selectivity: images must have shape \(N, C, H, W\) .*",
        ),
        "relevance": (
            dict(relevance=torch.ones(2, 2, 16, 16)),
            ValueError,
            r"selectivity: relevance must have shape \(2, 1, 16, 16\) or \(2, 3, 16, 16\) \(got \(2, 2, 16, 16\)\)",
        ),
        "nan": (
            dict(relevance=torch.full((2, 1, 16, 16), torch.nan)),
            ValueError,
            r"selectivity: relevance must be finite \(got NaN\)",
        ),
        "labels": (
            dict(labels=torch.tensor([1, 10])),
            ValueError,
            r"selectivity: labels must lie in \[0, 10\) \(got 10\)",
        ),
        "labels of another shape": (
            dict(labels=torch.tensor([1])),
            ValueError,
            r"selectivity: labels must be int64 of shape \(2,\) \(got int64 of shape \(1,\)\)",
        ),
        "steps": (dict(steps=0), ValueError, r"selectivity: steps must be at least 1 \(got 0\)"),
        "batch size": (
            dict(batch_size=1.5),
            TypeError,
            r"selectivity: batch_size must be a whole number or None \(got float\)",
        ),
        "output": (
            dict(output="loss"),
            ValueError,
            r'selectivity: output must be "probability" or "logit" \(got \'loss\'\)',
        ),
        "baseline": (
            dict(baseline="mean"),
            TypeError,
            r"selectivity: baseline must be a number or a torch.Tensor \(got str\)",
        ),
        "baseline's shape": (
            dict(baseline=torch.ones(7)),
            ValueError,
            r"selectivity: baseline must broadcast to images \(2, 3, 16, 16\) \(got \(7,\)\)",
        ),
        "baseline infinite": (
            dict(baseline=float("inf")),
            ValueError,
            r"selectivity: baseline must be finite \(got NaN or infinity\)",
        ),
    },
    "continuity": {
        "no method": (
            dict(explain="gradient"),
            TypeError,
            r"continuity: explain must be an explanation method or a function \(got str\); .* is the method of .*",
        ),
        "labels": (dict(labels=[1, 2]), ValueError, r"continuity: labels must be int64 of shape \(2,\) \(got list\)"),
        "no neighbours": (dict(neighbours=0), ValueError, r"continuity: neighbours must be at least 1 \(got 0\)"),
        "neighbours": (
            dict(neighbours=torch.ones(2, 3, 16, 16)),
            ValueError,
            r"continuity: neighbours must have shape \(2, K, 3, 16, 16\) \(got \(2, 3, 16, 16\)\)",
        ),
        "the image itself": (
            dict(neighbours=images_and_maps(2)[0][:, None]),
            ValueError,
            r"continuity: neighbours must differ from their image \(got the image itself at index 0, 0\)",
        ),
        "distance": (dict(distance=-1.0), ValueError, r"continuity: distance must be positive and finite \(got -1\)"),
        "no scale": (
            dict(images=torch.zeros(2, 3, 16, 16)),
            ValueError,
            r"continuity: images must not be 0 throughout, .* \(got such a one at index 0\)",
        ),
        "relevance": (dict(relevance=1), TypeError, r"continuity: relevance must be a function or None \(got int\)"),
        "pixels": (dict(pixels=1), TypeError, r"continuity: pixels must be a function, .* \(got int\)"),
        "pixels alone": (
            dict(pixels=abs, relevance=None),
            TypeError,
            r"continuity: pixels must be .* \(got relevance=None\)",
        ),
    },
}


@pytest.mark.parametrize("measure, case", [(measure, case) for measure in BAD for case in BAD[measure]])
def test_bad_input_is_one_sentence(measure, case):
    changes, error, sentence = BAD[measure][case]
    images, relevance = images_and_maps(2)
    arguments = {"model": small_network(), "images": images}
    arguments |= {"relevance": relevance} if measure == "selectivity" else {"explain": af.explain.Gradient()}
    with pytest.raises(error, match=f"^{sentence}$"):
        getattr(af, measure)(**arguments | changes)


def test_no_library_of_an_extra_is_loaded_before_it_is_used():
    program = "import sys, apem_fast as af; af.selectivity; print({'scipy', 'pandas', 'captum'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match=r"^module 'apem_fast' has no attribute 'selectivty'$"):
        getattr(af, "selectivty")  # noqa: B009
