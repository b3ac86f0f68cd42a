"""Finds the fastest batch size and memory format for a model on this machine, by measuring while it works.

On a CPU a larger batch can be several times slower per image, and channels-last several times faster. The batches that
must run anyway are the measurements: a search starts with a plan that is usually good, and tries others while that
costs only a small share of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

Format = torch.memory_format

FIRST_SIZE = {"cpu": 8, "cuda": 256}
LARGEST = 512
ENOUGH_GAIN = 0.95  # a larger batch must be worth its memory
FREE_TRIALS = 0.05  # seconds of trials that need no justification
SHARE_OF_TRIALS = 1 / 16  # the share of the work that further trials may take


def first_size(device_type: str) -> int:
    """The batch size to start with, which is usually good."""
    return FIRST_SIZE.get(device_type, FIRST_SIZE["cpu"])


Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchPlan:
    """How many model inputs a batch has, and in which memory format."""

    size: int
    memory_format: Format


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out.

    CUDA has its own exception, which another one hides during a capture; the CPU's allocator only has a message.
    """
    return (
        isinstance(error, torch.OutOfMemoryError)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
        or (error.__context__ is not None and is_out_of_memory(error.__context__))
    )


def in_batches(run: Callable[[int, int], Result], total: int, size: int) -> Iterator[tuple[int, Result]]:
    """Calls `run(first, last)` on consecutive items, and yields where each batch ends.

    Running out of memory halves the batch size for good; no computed result is lost.
    """
    at = 0
    while at < total:
        last = min(at + size, total)
        try:
            result = run(at, last)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size //= 2
            continue
        yield last, result
        at = last


class BatchTuner:
    """Chooses the plan for each batch, and learns from the batches that were run.

    From the first size it doubles while that is faster, or else halves while that is not slower, in the first memory
    format; the other formats are tried at the size that was found. A batch that did not fit into memory limits the size
    for good.

    Args:
        formats: memory formats to choose from, the likelier one first.
        device_type: "cpu" or "cuda".
        size: a batch size that was asked for; only smaller ones are used instead, where memory runs out.
    """

    def __init__(self, formats: Sequence[Format], device_type: str, size: int | None = None):
        self._formats = tuple(formats)
        self._fixed = size is not None
        self._first = size or first_size(device_type)
        self._limit = size or LARGEST
        self._clock_is_free = device_type == "cpu"
        self._warm: set[BatchPlan] = set()
        self._seconds: dict[BatchPlan, float] = {}  # the least an input took, by plan
        self._worked = self._tried = 0.0  # seconds
        self.best, self._wanted = self._explored()

    def plan(self, waiting: int) -> BatchPlan:
        """The plan for the next batch, of at most `waiting` inputs."""
        if self._wanted is not None and self._wanted.size <= waiting and self._affordable(self._wanted):
            return self._wanted
        return self.best

    @property
    def seconds_an_input(self) -> float | None:
        """The least that was measured with the best plan."""
        return self._seconds.get(self.best)

    def is_settled_on(self, plan: BatchPlan) -> bool:
        """Whether it pays to prepare batches like this one: not if it is a trial, or was never timed."""
        return self._fixed or (plan == self.best and plan in self._seconds)

    def wants_time_of(self, plan: BatchPlan) -> bool:
        """Whether a batch should be timed even if that means waiting for a GPU."""
        return self._clock_is_free or (not self._fixed and (plan != self.best or plan not in self._seconds))

    def ran(self, plan: BatchPlan, inputs: int, seconds: float) -> None:
        """Records that a batch of so many inputs took so long."""
        first = plan not in self._warm
        if plan != self.best:  # what a first batch has to prepare is not part of the speed that is looked for
            self._tried += min(seconds, inputs * self._seconds.get(self.best, seconds)) if first else seconds
        if inputs != plan.size:
            return
        if first:  # the first batch of a shape pays for what later ones reuse
            self._warm.add(plan)
            return
        self._seconds[plan] = min(self._seconds.get(plan, float("inf")), seconds / inputs)
        self.best, self._wanted = self._explored()

    def worked(self, seconds: float) -> None:
        """Records the total time since the last call."""
        self._worked += seconds

    def did_not_fit(self, plan: BatchPlan) -> None:
        """Records that a batch ran out of memory."""
        self._limit = max(1, plan.size // 2)
        self._first = min(self._first, self._limit)
        self._seconds = {fits: seconds for fits, seconds in self._seconds.items() if fits.size <= self._limit}
        self.best, self._wanted = self._explored()

    def _affordable(self, plan: BatchPlan) -> bool:
        expected = 2 * plan.size * self._seconds[self.best]
        return self._tried + expected <= FREE_TRIALS + SHARE_OF_TRIALS * self._worked

    def _explored(self) -> tuple[BatchPlan, BatchPlan | None]:
        """The best known plan, and the one to try next."""
        best, wanted = self._climbed(BatchPlan(self._first, self._formats[0]))
        for memory_format in self._formats[1:]:
            if wanted is not None:
                break
            other = BatchPlan(best.size, memory_format)
            if other not in self._seconds:
                return best, other if best in self._seconds and not self._fixed else None
            if self._seconds[other] < self._seconds[best]:
                best, wanted = self._climbed(other)
        return best, wanted

    def _climbed(self, plan: BatchPlan) -> tuple[BatchPlan, BatchPlan | None]:
        first = plan
        if self._fixed or plan not in self._seconds:
            return plan, None
        while 2 * plan.size <= self._limit:
            larger = replace(plan, size=2 * plan.size)
            if larger not in self._seconds:
                return plan, larger
            if self._seconds[larger] > ENOUGH_GAIN * self._seconds[plan]:
                break
            plan = larger
        while plan.size > 1 and (plan == first or plan.size < first.size):
            smaller = replace(plan, size=plan.size // 2)
            if smaller not in self._seconds:
                return plan, smaller
            if self._seconds[smaller] > self._seconds[plan]:
                break
            plan = smaller
        return plan, None
