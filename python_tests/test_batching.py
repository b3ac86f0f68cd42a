"""The batch tuner against scripted seconds: no model, no clock."""

from __future__ import annotations

import pytest
import torch

from apem_fast.running.batching import FIRST_SIZE, FREE_TRIALS, SHARE_OF_TRIALS, BatchPlan, BatchTuner, is_out_of_memory

LAST, FIRST = torch.channels_last, torch.contiguous_format


def run(tuner, seconds_an_input, inputs, waiting=512):
    """Works off so many inputs; returns the seconds it took by plan."""
    taken = {}
    while inputs > 0:
        plan = tuner.plan(min(waiting, inputs))
        count = min(plan.size, inputs)
        seconds = count * seconds_an_input(plan)
        tuner.ran(plan, count, seconds)
        tuner.worked(seconds)
        taken[plan] = taken.get(plan, 0.0) + seconds
        inputs -= count
    return taken


def landscape(best, format_cost):
    """Each doubling or halving away from the best size costs a quarter more."""

    def seconds(plan):
        return 0.01 * 1.25 ** abs(plan.size.bit_length() - best.bit_length()) * format_cost[plan.memory_format]

    return seconds


@pytest.mark.parametrize("best", [1, 2, 4, 8, 64, 512])
@pytest.mark.parametrize("format_cost", [{LAST: 1, FIRST: 2}, {LAST: 1.5, FIRST: 1}], ids=["last", "first"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_finds_the_best_plan(best, format_cost, device):
    tuner = BatchTuner((LAST, FIRST), device)
    run(tuner, landscape(best, format_cost), 30_000 if best < 512 else 100_000)
    assert tuner.best == BatchPlan(best, min(format_cost, key=format_cost.__getitem__))


def test_trials_are_a_small_share_of_the_work():
    tuner, seconds = BatchTuner((LAST, FIRST), "cpu"), landscape(32, {LAST: 1, FIRST: 5})
    for _ in range(200):
        before = tuner.best
        run(tuner, seconds, 64)
        # A trial is estimated by the best plan's speed and may cost more, here up to five times.
        assert tuner._tried <= 5 * (FREE_TRIALS + SHARE_OF_TRIALS * tuner._worked)
        assert seconds(tuner.best) <= seconds(before)


@pytest.mark.parametrize("images_a_second", [2_000, 10_000, 30_000])
def test_what_a_first_batch_prepares_does_not_end_the_search(images_a_second):
    """Each takes .15 s, the time of many trials."""
    tuner, seen, rates = BatchTuner((FIRST, LAST), "cuda"), set(), landscape(512, {LAST: 2, FIRST: 1})

    def seconds(plan):
        prepared = 0.0 if plan in seen else 0.15 / plan.size
        seen.add(plan)
        return prepared + 100 * rates(plan) / images_a_second

    run(tuner, seconds, 30 * images_a_second)
    assert tuner.best == BatchPlan(512, FIRST)


def test_batches_are_prepared_for_what_has_won():
    tuner, prepared = BatchTuner((FIRST, LAST), "cuda"), set()

    def seconds(plan):
        if tuner.is_settled_on(plan):
            prepared.add(plan)
        return landscape(512, {LAST: 2, FIRST: 1})(plan) / 100

    run(tuner, seconds, 100_000)
    assert BatchPlan(512, FIRST) in prepared and BatchPlan(512, LAST) not in prepared
    asked_for = BatchTuner((FIRST, LAST), "cuda", 3)
    assert asked_for.is_settled_on(asked_for.best)


def test_a_larger_batch_must_be_worth_its_memory():
    tuner = BatchTuner((LAST,), "cpu")
    run(tuner, lambda plan: 0.01 * 0.99 ** plan.size.bit_length(), 10_000)
    assert tuner.best.size == FIRST_SIZE["cpu"]


def test_a_size_that_was_asked_for_stays():
    tuner = BatchTuner((LAST, FIRST), "cpu", 3)
    assert set(run(tuner, landscape(64, {LAST: 3, FIRST: 1}), 1000)) == {BatchPlan(3, LAST)}


def test_no_batch_is_larger_than_what_waits():
    tuner = BatchTuner((LAST,), "cpu")
    taken = run(tuner, landscape(64, {LAST: 1}), 5000, waiting=8)
    assert max(plan.size for plan in taken) == 8


def test_what_did_not_fit_bounds_the_size_for_good():
    tuner = BatchTuner((LAST, FIRST), "cpu")
    run(tuner, landscape(64, {LAST: 1, FIRST: 2}), 10_000)
    assert tuner.best.size == 64
    tuner.did_not_fit(tuner.best)
    taken = run(tuner, landscape(64, {LAST: 1, FIRST: 2}), 10_000)
    assert max(plan.size for plan in taken) == 32 == tuner.best.size
    for _ in range(8):
        tuner.did_not_fit(tuner.best)
    assert tuner.best.size == 1


def test_partial_batches_and_first_batches_tell_nothing():
    tuner = BatchTuner((LAST,), "cpu")
    tuner.ran(tuner.best, tuner.best.size, 99.0)  # pays for what later ones reuse
    tuner.ran(tuner.best, 3, 99.0)
    assert tuner.wants_time_of(tuner.best) and not tuner._seconds


def test_memory_is_recognised_behind_the_error_of_an_ended_capture():
    with pytest.raises(RuntimeError) as failed:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise RuntimeError("capture failed") from None
    assert is_out_of_memory(failed.value)
    assert not is_out_of_memory(RuntimeError("capture failed"))
