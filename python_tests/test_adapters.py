"""APEM by way of torchmetrics, Quantus and Captum is the metric's own."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import captum.attr
import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from test_metric import assert_same, snapshot
from torch import nn

import apem_fast as af
from apem_fast.adapters import captum as captum_adapter
from apem_fast.adapters import quantus as quantus_adapter

ROOT = Path(__file__).parent.parent
GRID = {"step": 0.25, "max_epsilon": 40.0}


def attributions(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return af.explain.Gradient()(model, images)


def expected_scores(model, images, attribution, **options) -> torch.Tensor:
    return af.apem(model, images, af.relevance_map(attribution, **options), **GRID).score


# -- torchmetrics ------------------------------------------------------------------------------------------------


@pytest.fixture
def torchmetrics_adapter():
    pytest.importorskip("torchmetrics")
    from apem_fast.adapters import torchmetrics

    return torchmetrics


def test_torchmetrics_accumulates_batches(torchmetrics_adapter):
    model, (images, relevance) = small_network(), images_and_maps(5)
    whole = af.apem(model, images, relevance, **GRID)
    metric = torchmetrics_adapter.Apem(model, **GRID)
    batch = metric(images[:2], relevance[:2])  # forward: the batch's own value, and accumulated
    assert float(batch) == pytest.approx(float(whole.score[:2].mean()))
    metric.update(images[2:], relevance[2:], labels=whole.labels[2:])
    assert float(metric.compute()) == pytest.approx(whole.mean)
    seen = metric.result()
    for name in list(torchmetrics_adapter.COLUMNS)[:-1]:  # all but the probes, of which a small batch may take others
        assert torch.equal(getattr(seen, name), getattr(whole, name))
    assert (seen.max_epsilon, seen.step) == (40.0, 0.25)
    metric.reset()
    metric.update(images[:1], relevance[:1])
    assert len(metric.result().score) == 1


def test_torchmetrics_leaves_the_model_alone(torchmetrics_adapter):
    model, (images, relevance) = small_network(), images_and_maps(2)
    before = snapshot(model, images)
    metric = torchmetrics_adapter.Apem(model, **GRID)
    metric.train().to(torch.float64)
    metric.set_dtype(torch.float64)
    twin = copy.deepcopy(metric)
    metric.update(images, relevance)
    twin.update(images, relevance)
    assert metric.compute() == twin.compute() and not list(metric.parameters()) and not metric.state_dict()
    assert_same(before, snapshot(model, images))


def test_torchmetrics_in_a_collection(torchmetrics_adapter):
    from torchmetrics import MetricCollection

    model, (images, relevance) = small_network(), images_and_maps(2)
    both = MetricCollection(
        {"fine": torchmetrics_adapter.Apem(model, **GRID), "coarse": torchmetrics_adapter.Apem(model, step=2.0)}
    )
    both.update(images, relevance)
    values = both.compute()
    assert float(values["fine"]) == pytest.approx(af.apem(model, images, relevance, **GRID).mean)
    assert float(values["coarse"]) == pytest.approx(af.apem(model, images, relevance, step=2.0).mean)


def test_torchmetrics_merges_processes(torchmetrics_adapter):
    model, (images, relevance) = small_network(), images_and_maps(4)
    metric = torchmetrics_adapter.Apem(
        model,
        **GRID,
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda mine, group: [mine, 3 * mine],  # as if another process had epsilons three times as large
    )
    metric.update(images, relevance)
    own = af.apem(model, images, relevance, **GRID)
    assert own.mean != 0 and float(metric.compute()) == pytest.approx(2 * own.mean)
    assert torch.equal(metric.result().score, own.score)


RANK = """
import os, sys, torch
from torch import distributed
sys.path.insert(0, "python_tests")
from networks import images_and_maps, small_network
import apem_fast as af
from apem_fast.adapters.torchmetrics import Apem
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model, (images, relevance) = small_network(), images_and_maps(3)
metric = Apem(model, step=0.25, max_epsilon=40.0)
if rank == 0:  # the other one has no images
    metric.update(images, relevance)
value = metric.compute()
assert abs(value - af.apem(model, images, relevance, step=0.25, max_epsilon=40.0).mean) < 1e-12, value
print("the same")
"""


def test_torchmetrics_without_images_sends_what_the_others_send(torchmetrics_adapter):
    model, (images, relevance) = small_network(), images_and_maps(2)
    sent = []
    for count in (2, 0):
        metric = torchmetrics_adapter.Apem(
            model,
            **GRID,
            distributed_available_fn=lambda: True,
            dist_sync_fn=lambda mine, group: [sent.append((mine.dtype, mine.dim())), mine][1:],
        )
        if count:
            metric.update(images, relevance)
        metric.sync(dist_sync_fn=metric.dist_sync_fn, distributed_available=lambda: True)
    assert len(sent) == 2 * len(torchmetrics_adapter.COLUMNS) and sent[: len(sent) // 2] == sent[len(sent) // 2 :]


@pytest.mark.slow
def test_torchmetrics_merges_with_a_process_without_images(torchmetrics_adapter, tmp_path):
    command = [sys.executable, "-c", RANK]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")], env=environment, cwd=ROOT, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    assert [rank.communicate()[0] for rank in ranks] == [b"the same\n"] * 2


def test_torchmetrics_in_inference_mode(torchmetrics_adapter):
    """As the validation loops of trainers run."""
    model, (images, relevance) = small_network(), images_and_maps(2)
    metric = torchmetrics_adapter.Apem(model, **GRID)
    with torch.inference_mode():
        metric.update(images * 1, relevance * 1)
        mean = metric.compute()
    assert float(mean) == pytest.approx(af.apem(model, images, relevance, **GRID).mean)
    assert torch.is_grad_enabled()


def test_torchmetrics_plots(torchmetrics_adapter):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    model, (images, relevance) = small_network(), images_and_maps(1)
    metric = torchmetrics_adapter.Apem(model, precision="float32", **GRID)
    metric.update(images, relevance)
    figure, axis = metric.plot()
    assert axis.lines[0].get_ydata().tolist() == [float(metric.compute())]
    matplotlib.pyplot.close(figure)


def test_torchmetrics_says_a_bad_option_at_once(torchmetrics_adapter):
    with pytest.raises(ValueError, match=r"^Apem: step must be positive and finite \(got 0\)$"):
        torchmetrics_adapter.Apem(small_network(), step=0)


def test_missing_torchmetrics_is_said_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "apem_fast.adapters.torchmetrics", raising=False)
    expected = r"^apem_fast\.adapters\.torchmetrics needs torchmetrics, which the extra torchmetrics brings: pip "
    with pytest.raises(ImportError, match=expected):
        import apem_fast.adapters.torchmetrics  # noqa: F401


# -- Quantus -----------------------------------------------------------------------------------------------------


def test_quantus_convention_numpy_in_a_list_out():
    model, (images, _) = small_network(), images_and_maps(4)
    attribution = attributions(model, images)
    labels = model(images).argmax(dim=1)
    metric = quantus_adapter.Apem(**GRID)
    scores = metric(
        model=model,
        x_batch=images.numpy(),
        y_batch=labels.numpy(),
        a_batch=attribution.numpy(),
        s_batch=None,
        channel_first=True,
        explain_func=None,
        explain_func_kwargs=None,
        model_predict_kwargs=None,
        softmax=True,
        device="cpu",
        batch_size=3,
        custom_batch=None,
    )
    assert scores == expected_scores(model, images, attribution).tolist() == metric.evaluation_scores
    summed = metric(model, images.numpy(), a_batch=attribution.sum(dim=1).numpy())  # (N, H, W), and no labels
    assert summed == expected_scores(model, images, attribution.sum(dim=1)).tolist()
    assert metric.all_evaluation_scores == scores + summed
    last = {name: x.movedim(1, -1).numpy() for name, x in {"x_batch": images, "a_batch": attribution}.items()}
    assert metric(model, **last, channel_first=False) == scores
    keep = quantus_adapter.Apem(channels="keep", percentile=None, **GRID)
    expected = expected_scores(model, images, attribution, channels="keep", percentile=None)
    assert keep(model, images.numpy(), labels.numpy(), attribution.numpy()) == expected.tolist()


def test_quantus_explains_by_its_function_and_leaves_out_what_has_no_apem():
    model, (images, _) = small_network(), images_and_maps(4)
    labels = model(images).argmax(dim=1).numpy()
    labels[1] = (labels[1] + 1) % 10
    asked = []

    def explain(model, inputs, targets, **kwargs):
        asked.append((type(inputs), targets.tolist(), kwargs))
        attribution = attributions(model, torch.from_numpy(inputs))
        attribution[2] = 0
        return attribution.numpy()

    metric = quantus_adapter.Apem(**GRID, return_aggregate=True)
    (mean,) = metric(model, images.numpy(), labels, explain_func=explain, explain_func_kwargs={"method": "mine"})
    assert asked == [(np.ndarray, labels.tolist(), {"method": "mine"})]
    expected = expected_scores(model, images, attributions(model, images))
    assert mean == pytest.approx(float(expected[[0, 3]].mean()))
    left_out = quantus_adapter.Apem(**GRID, missing="left out")(model, images.numpy(), labels, explain_func=explain)
    assert left_out == expected[[0, 3]].tolist()
    each = quantus_adapter.Apem(**GRID)(model, images.numpy(), labels, explain_func=explain)
    assert np.isnan(each).tolist() == [False, True, True, False]


def test_quantus_accessories(capsys, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    model, (images, relevance) = small_network(), images_and_maps(2)
    metric = quantus_adapter.Apem(**GRID)
    metric(model, images.numpy(), a_batch=relevance.numpy())
    assert metric.get_params["step"] == 0.25 and metric.get_params["channels"] == "sum"
    metric.interpret_scores  # noqa: B018  (a property that prints, as Quantus has it)
    assert "High is good" in capsys.readouterr().out
    drawn = []
    metric.plot(drawn.append, False, None, 3)
    metric.plot(show=False, path_to_save=str(tmp_path / "scores.png"))
    assert drawn == [3] and (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r'^Apem: missing must be "nan" or "left out" \(got 0\)$'):
        quantus_adapter.Apem(missing=0)


@pytest.mark.parametrize(
    "changes, error, sentence",
    [
        ({"a_batch": None}, ValueError, r"Apem: a_batch must be given where there is no explain_func \(got None\)"),
        ({"y_batch": np.zeros(3)}, ValueError, r"Apem: y_batch must have shape \(2,\) \(got \(3,\)\)"),
        ({"model_predict_kwargs": {"x": 1}}, ValueError, r"Apem: model_predict_kwargs must be empty \(got x\)"),
        ({"model": small_network().train()}, ValueError, r"Apem: model must be in eval mode, .*"),
        ({"x_batch": np.zeros((2, 3))}, ValueError, r"Apem: images must have shape \(N, C, H, W\) .*"),
    ],
)
def test_quantus_bad_input_is_one_sentence(changes, error, sentence):
    images, relevance = images_and_maps(2)
    arguments = {"model": small_network(), "x_batch": images.numpy(), "a_batch": relevance.numpy()} | changes
    with pytest.raises(error, match=f"^{sentence}$"):
        quantus_adapter.Apem(**GRID)(**arguments)


# -- Captum ------------------------------------------------------------------------------------------------------


def test_captum_signature():
    model, (images, _) = small_network(), images_and_maps(3)
    target = model(images).argmax(dim=1)
    attribution = captum.attr.Saliency(model).attribute(images.clone().requires_grad_(), target=target, abs=False)
    expected = expected_scores(model, images, attribution)
    assert torch.equal(captum_adapter.apem(model, images, attribution, target=target, **GRID), expected)
    assert torch.equal(captum_adapter.apem(model, (images,), (attribution,), **GRID), expected)
    one = captum_adapter.apem(model.forward, images[:1], attribution[:1], target=int(target[0]), **GRID)
    assert torch.equal(one, expected[:1])
    each = captum_adapter.apem(model, images, attribution, None, None, target.tolist(), **GRID)  # in Captum's order
    assert torch.equal(each, expected)
    keep = captum_adapter.apem(model, images, attribution, channels="keep", max_examples_per_batch=2, **GRID)
    assert torch.equal(keep, expected_scores(model, images, attribution, channels="keep"))


def test_captum_and_quantus_multiply_by_the_image():
    """The papers' stage times-image; `pixels` undoes the normalisation of what the model receives."""
    model, (images, _) = small_network(), images_and_maps(3)
    attribution = attributions(model, images)

    def pixels(values: torch.Tensor) -> torch.Tensor:
        return (values - images.min()) / (images.max() - images.min())

    expected = af.apem(model, images, af.relevance_map(attribution, pixels(images)), **GRID).score
    assert not torch.equal(expected, expected_scores(model, images, attribution))
    assert torch.equal(captum_adapter.apem(model, images, attribution, pixels=pixels, **GRID), expected)
    metric = quantus_adapter.Apem(pixels=pixels, **GRID)
    assert metric(model, images.numpy(), None, attribution.numpy()) == expected.tolist()
    last = metric(model, images.movedim(1, -1).numpy(), None, attribution.movedim(1, -1).numpy(), channel_first=False)
    assert last == expected.tolist() and metric.get_params["pixels"] is pixels


def test_captum_functions_with_further_arguments_and_an_untouched_model():
    model, (images, _) = small_network(), images_and_maps(2)
    attribution = attributions(model, images)
    before = snapshot(model, images)

    def flipped(x, factor, *, offset=0.0):
        return model(x) * factor + offset

    with pytest.warns(RuntimeWarning, match="float32 decides"):  # no copy reaches a model within a function
        scores = captum_adapter.apem(flipped, images, attribution, additional_forward_args=(2.0,), **GRID)
        assert torch.equal(captum_adapter.apem(flipped, images, attribution, None, 2.0, **GRID), scores)
    assert (scores - expected_scores(model, images, attribution)).abs().max() <= GRID["step"]
    assert_same(before, snapshot(model, images))


@pytest.mark.parametrize(
    "changes, error, sentence",
    [
        ({"forward_func": 3}, TypeError, r"apem: forward_func must be callable \(got int\)"),
        ({"forward_func": small_network().train()}, ValueError, r"apem: model must be in eval mode, .*"),
        ({"inputs": (1, 2)}, TypeError, r"apem: inputs must be one torch.Tensor \(got 2 of them\)"),
        ({"attributions": None}, TypeError, r"apem: attributions must be one torch.Tensor \(got NoneType\)"),
        ({"baselines": 0}, ValueError, r"apem: baselines must be None, for APEM has none \(got int\)"),
        ({"target": [(1, 2)]}, TypeError, r"apem: target must be a class for each image \(got a list with \(1, 2\)\)"),
        ({"target": 11}, ValueError, r"apem: labels must be the model's predictions \(got 11 at index 0, .*"),
        (
            {"additional_forward_args": torch.ones(2)},
            TypeError,
            r"apem: additional_forward_args must not hold tensors .*",
        ),
    ],
)
def test_captum_bad_input_is_one_sentence(changes, error, sentence):
    images, relevance = images_and_maps(2)
    arguments = {"forward_func": small_network(), "inputs": images, "attributions": relevance} | changes
    with pytest.raises(error, match=f"^{sentence}$"):
        captum_adapter.apem(**arguments, **GRID)


# -- another implementation ----------------------------------------------------------------------------------------


def test_captums_linear_search_finds_the_same_epsilon():
    """Which is a loop over the grid, written by others, without anything of this package."""
    from captum.robust import MinParamPerturbation

    model, (images, relevance) = small_network(), images_and_maps(4)
    sign = torch.stack([sign_gradient(model, image) for image in images.split(1)])[:, 0]
    result = af.apem(model, images, relevance, **GRID)
    found = {"minus": [], "plus": []}
    for name, maps in (("minus", relevance), ("plus", 1 - relevance)):
        for i in range(len(images)):
            applied = maps[i : i + 1].expand(1, *images.shape[1:])
            direction = applied / applied.sum() * sign[i : i + 1]
            search = MinParamPerturbation(
                model,
                lambda x, epsilon, direction=direction: x + epsilon * direction,
                arg_name="epsilon",
                arg_min=GRID["step"],
                arg_max=GRID["max_epsilon"] + GRID["step"],
                arg_step=GRID["step"],
                mode="linear",
            )
            _, epsilon = search.evaluate(images[i : i + 1], target=int(result.labels[i]))
            found[name].append(GRID["max_epsilon"] if epsilon is None else epsilon)
    assert found == {"minus": result.epsilon_minus.tolist(), "plus": result.epsilon_plus.tolist()}
    assert result.flipped_minus.any()


def sign_gradient(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    image = image.clone().requires_grad_()
    logits = model(image)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, logits.argmax(dim=1)), image)
    return gradient.sign()
