"""Prepared batches: filled-up batches, the comparison with the plain model, and the way back."""

from __future__ import annotations

import warnings

import pytest
import torch
from networks import Given, images_and_maps, small_network

import apem_fast as af
from apem_fast.running import runners
from apem_fast.running.batching import BatchPlan, BatchTuner
from apem_fast.running.recipe import padded
from apem_fast.running.runners import CompiledRunner, GraphedRunner, PlainRunner, _PreparedRunner, runner_for

GRID = {"max_epsilon": 40.0, "step": 0.25}


class Recorded(_PreparedRunner):
    """Stands for a capture: the shape is fixed, what the graph reads lies where it lay, and its answer is overwritten
    by the next batch."""

    doing = "recording the model"

    def __init__(self, model, wrong=lambda logits: logits):
        super().__init__(model)
        self.wrong, self.prepared, self.seen = wrong, 0, set()

    def prepare(self, recipe, size):
        self.prepared += 1
        static, results = recipe.unlike_any(size), []

        def replay(columns):
            self.seen.add(size)
            static.copy_(padded(columns, size))
            logits = self.wrong(self._answered(recipe, static)[1])
            answered = recipe.answers(logits, static), logits
            results[:] = results or [torch.empty_like(new) for new in answered]
            for result, new in zip(results, answered):
                result.copy_(new)
            return tuple(results)

        return replay


def asked(runner, given, count, size):
    """The logits of the first images, in a batch that may hold more."""
    return runner(given, given.columns[:, :count], size, True)[:count].clone()


@pytest.fixture
def recorded(monkeypatch):
    made = []

    def instead(model, device, compile):
        made.append(Recorded(model))
        return made[-1]

    monkeypatch.setattr("apem_fast.metric.evaluator.runner_for", instead)
    return made


@pytest.mark.parametrize("batch_size", [5, None])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_fixed_shapes_change_no_epsilon(
    recorded, screened_throughout, batch_size, precision, memory_format, monkeypatch
):
    monkeypatch.setattr(BatchTuner, "is_settled_on", lambda self, plan: True)  # as if every size had won
    model = small_network()
    images, relevance = images_and_maps(6)
    images = images.contiguous(memory_format=memory_format)
    result = af.apem(model, images, relevance, batch_size=batch_size, precision=precision, **GRID)
    assert recorded[0].prepared
    if batch_size:
        assert recorded[0].seen == {5}
    plain = small_plain(model, images, relevance)
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus"):
        assert torch.equal(getattr(result, name), getattr(plain, name)), name


def small_plain(model, images, relevance):
    """A run that cannot have been recorded: one image at a time, every grid point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apem_fast.metric.evaluator.runner_for", lambda model, device, compile: PlainRunner(model))
        return af.apem(model, images, relevance, batch_size=1, search="exhaustive", **GRID)


def test_only_a_few_shapes_stay_prepared():
    one = Recorded(small_network())
    given = Given(images_and_maps(13)[0])
    with torch.no_grad():
        for size in range(13, 3, -1):
            plain = asked(one, given, 3, size)
            assert torch.equal(plain, one._model(given.images[:3]))  # not full: nothing is prepared
            assert one.prepared == 13 - size
            full = asked(one, given, size, size)
            torch.testing.assert_close(asked(one, given, 3, size), full[:3])
    assert one.prepared == 10 and len(one._ready) == runners.KEPT
    one.forget()
    assert not one._ready


class RecordedLikeGraphs(Recorded):
    """In the shapes that graphs are captured in."""

    shapes = GraphedRunner.shapes


def test_few_images_get_a_smaller_shape_once_that_was_wanted_a_few_times():
    one = RecordedLikeGraphs(small_network())
    assert one.shapes(512) == (32, 128, 512) and one.shapes(64) == (16, 64) and one.shapes(8) == (8,)
    given = Given(images_and_maps(64)[0])

    def shape_for(count):
        """The fixed size that runs them; None where none does."""
        ran, ready = [], dict(one._ready)
        for key, forward in ready.items():
            one._ready[key] = lambda batch, key=key, forward=forward: (ran.append(key[0]), forward(batch))[1]
        logits = asked(one, given, count, 64)
        one._ready.update(ready)
        torch.testing.assert_close(logits, one._model(given.images[:count]))
        return ran[0] if ran else None

    with torch.no_grad():
        assert shape_for(5) is None and not one.prepared  # the plain model
        asked(one, given, 64, 64)
        assert shape_for(5) == 64  # a graph that is there already
        assert one.prepared == 1
        asked(one, given, 5, 64)
        assert one.prepared == 2
        assert shape_for(5) == 16 and shape_for(16) == 16 and shape_for(17) == 64 and shape_for(64) == 64


@pytest.mark.parametrize("wrong", [lambda logits: logits * 1.01, lambda logits: logits * torch.nan], ids=["off", "nan"])
def test_wrong_logits_are_seen_and_said_once(wrong):
    model = small_network()
    images, _ = images_and_maps(4)
    one, given = Recorded(model, wrong), Given(images)
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match="apem_fast: recording the model failed, the plain model runs instead"):
            assert torch.equal(asked(one, given, 4, 4), model(images))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(asked(one, given, 2, 2), model(images[:2]))


def test_what_cannot_be_captured_runs_plain(monkeypatch):
    """Without a GPU every capture fails: the way back, in the class that CUDA uses."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: 1 / 0)
    model = small_network()
    images, _ = images_and_maps(4)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="capturing the model in a CUDA graph failed"):
        assert torch.equal(asked(GraphedRunner(model), Given(images), 4, 4), model(images))


def test_memory_is_not_a_reason_to_give_up():
    one = Recorded(small_network(), lambda logits: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        asked(one, Given(images_and_maps(4)[0]), 4, 4)


def test_kinds():
    model = small_network()
    assert type(runner_for(model, torch.device("cpu"), False)) is PlainRunner
    assert type(runner_for(model, torch.device("cuda"), False)) is GraphedRunner
    assert type(runner_for(model, torch.device("cpu"), True)) is CompiledRunner


@pytest.mark.slow
def test_compiled_models_give_the_same_epsilons():
    model = small_network()
    images, relevance = images_and_maps(4)
    plain = af.apem(model, images, relevance, **GRID)
    compiled = af.apem(model, images, relevance, compile=True, **GRID)
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus"):
        assert torch.equal(getattr(compiled, name), getattr(plain, name)), name


# -- how far a batch is off from an image alone ------------------------------------------------------------------


class OffInBatches(torch.nn.Module):
    """A network whose logits come out a little different for images in company, as other algorithms would give them."""

    def __init__(self, by):
        super().__init__()
        self.network, self.by = small_network(), by

    def forward(self, x):
        logits = self.network(x)
        return logits if len(x) == 1 else logits + self.by * logits.abs().max() * torch.linspace(-1, 1, 10)


@pytest.mark.parametrize("by", [0.0, 1e-6, 1e-3])
def test_the_answer_alone_counts_however_far_batches_are_off(recorded, by):
    model = OffInBatches(by).eval()
    images, relevance = images_and_maps(6)
    result = af.apem(model, images, relevance, batch_size=5, **GRID)
    # Eight times the most that was seen, and two classes are between 2 / 9 and 2 of `by` apart.
    least, most = (max(PlainRunner.noise, 8 * apart * by) for apart in (2 / 9, 2))
    assert 0.9 * least <= recorded[0].noise <= 1.5 * most
    plain = small_plain(model, images, relevance)
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus"):
        assert torch.equal(getattr(result, name), getattr(plain, name)), name


def test_what_is_seen_later_widens_the_noise_too():
    runner = PlainRunner(small_network())
    plan = BatchPlan(8, torch.channels_last)
    runner.differed(plan, 1e-9)
    assert runner.noise == PlainRunner.noise
    runner.differed(plan, 1e-3)
    assert runner.noise == 8e-3 and PlainRunner.noise == 2.0**-16


def test_an_image_alone_meets_the_weights_as_given():
    model = small_network()
    seen = []
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append((len(inputs[0]), module.weight.stride())))
    images, _ = images_and_maps(2)
    given = model[0].weight.stride()
    runner, both = PlainRunner(model), Given(images)
    runner.begin()
    runner.lay_out(torch.channels_last)
    with torch.no_grad():
        asked(runner, both, 2, 2)
        runner.alone(both, both.columns[:, :1], images.dtype)
        asked(runner, both, 2, 2)
    runner.end()
    laid_out = model[0].weight.contiguous(memory_format=torch.channels_last).stride()
    assert laid_out != given
    assert seen == [(2, laid_out), (1, given), (2, laid_out)] and model[0].weight.stride() == given
