"""Runs probes in batches. This is the only file that runs the user's model on perturbed images.

It is a `Prober`. In addition it offers probes in a low precision for the screen, probes on other rays over the same
images for the filter, and the gradient at a probe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import ops
from apem_fast.ops.reference import image_format
from apem_fast.probing.columns import ProbesOf, columns_of, singly
from apem_fast.probing.prober import Answers
from apem_fast.probing.rays import Rays
from apem_fast.running.batching import BatchTuner, first_size, is_out_of_memory
from apem_fast.running.beside import Beside
from apem_fast.running.clean import without
from apem_fast.running.low_precision import low_precision
from apem_fast.running.outputs import ModelOutputError, logits_of
from apem_fast.running.record import Record
from apem_fast.running.runners import PlainRunner
from apem_fast.running.segments import least_margins
from apem_fast.running.transfer import fetched, sent
from apem_fast.running.waiting import Waiting, result_of

SEGMENTS, VALUES_OF_SEGMENTS = 64, 2**20  # the most segments in one batch, and the most values of their inputs
COMPARED = 8  # probes that are run again alone to find the noise of a batch, if it is not known


class Started:
    """Batches under way, and their answers on the way to the host.

    Args:
        answers: (3, M) of each batch, `fetched` in the stream that is current.
        device: the model's.
        worked: told in the end how many seconds it all took.
    """

    def __init__(
        self,
        answers: Sequence[Tensor],
        device: torch.device,
        worked: Callable[[float], None] | None = None,
        begin: float = 0.0,
    ):
        self._answers, self._worked, self._begin = answers, worked, begin
        self._there: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(device))

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        """The margins, flips and greatest logits of the M probes. Waits for them."""
        if self._there is not None:
            self._there.synchronize()
        margin, flipped, greatest = np.concatenate([one.numpy() for one in self._answers], axis=1)
        if self._worked is not None:
            self._worked(time.perf_counter() - self._begin)
        return margin, flipped != 0, greatest


class BatchProber:
    """A `Prober` that runs probes of `rays` through `model`, in batches whose size a tuner chooses.

    It is a context manager, to be entered within `undisturbed`: while it is open, the model's weights are in the memory
    format of the batches.
    """

    def __init__(self, model: nn.Module, rays: Rays, tuner: BatchTuner, runner: PlainRunner, record: Record):
        """Args:
        model: the user's.
        rays: to be probed; their labels and signs are those of `record`.
        tuner: names the batches.
        runner: runs them.
        record: decides where a batch's margin is too close to 0.
        """
        self.tuner = tuner
        self._model, self._rays, self._runner, self._record = model, rays, runner, record
        self._device = rays.images.device
        self._format: torch.memory_format | None = None
        self._recipe: ProbesOf | None = None
        self._owner = object()  # of what is placed for it
        self._beside = Beside(self._device)

    def __enter__(self) -> Self:
        self._runner.begin()
        self._beside.may_use_what_there_is()
        return self

    def __exit__(self, *exception: object) -> None:
        self._beside.close()
        self._runner.end()

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        self._runner.lay_out(memory_format)
        if memory_format is not self._format:
            self._format, self._recipe = memory_format, None

    def _probes(self) -> ProbesOf:
        """Probes of rays whose tensors lie where batches read them, in the format of the batches, or, before there is
        one, of the images. What a search within this one has overwritten is put there again."""
        if self._recipe is None or not self._runner.placed_last(self._owner):
            memory_format = self._format or image_format(self._rays.images)
            tensors, place = self._runner.place(self._rays.tensors, memory_format, self._owner)
            self._recipe = ProbesOf(self._rays.lying_in(tensors), place)
            self._beside.may_use_what_there_is()
        return self._recipe

    @property
    def rays(self) -> Rays:
        return self._rays

    @property
    def size(self) -> int:
        return self.tuner.best.size

    @property
    def lanes(self) -> int:
        return 1 if self._device.type == "cpu" else 2

    def answers(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], rays: Rays | None = None
    ) -> Waiting[Answers]:
        """See `Prober`. If `rays` are given, the probes are on these, over the same images and maps."""
        if not len(ray):
            return Answers(np.zeros(0), np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64))
        order = np.argsort(ray, kind="stable")  # neighbours share image and map, which stay in the cache
        ray, epsilon = ray[order], epsilon[order]
        started = self.start(ray, epsilon, rays=rays)
        yield
        margin, flipped, greatest = started.read()
        _check_finite(margin, greatest)
        probes = np.ones(len(ray), np.int64)

        def alone(rows: NDArray[np.int64]) -> Waiting[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
            """Runs these probes again singly; the difference calibrates the noise of batches."""
            probes[rows] += 1
            exact, its_flipped = yield from self._alone(ray[rows], epsilon[rows], rays)
            off = np.abs(margin[rows] - exact) / np.maximum(greatest[rows], np.finfo(np.float64).tiny)
            self._runner.differed(self.tuner.best, float(np.max(off, initial=0.0)))
            return exact, its_flipped

        if not self._runner.knows_noise_of(self.tuner.best):  # another batch size may use another algorithm
            yield from alone(np.arange(min(COMPARED, len(ray))))
        noise = greatest * self._runner.noise
        close = np.flatnonzero(np.abs(margin) <= noise)
        margin[close], flipped[close] = yield from alone(close)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return Answers(margin[back], flipped[back], noise[back], probes[back])

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """None is wrong, since all were asked in full precision."""
        yield from ()
        return np.zeros(len(ray), bool), np.zeros(len(ray), np.int64)

    def start(
        self,
        ray: NDArray[np.int64],
        epsilon: NDArray[np.float64],
        *,
        rays: Rays | None = None,
        precision: str | None = None,
        tuner: BatchTuner | None = None,
    ) -> Started:
        """Starts these probes, and does not wait for them.

        Args:
            rays: the rays of the probes, over the same images and maps; None for the prober's own.
            precision: "bfloat16", "float16" or "tf32"; None for the images' own type.
            tuner: chooses the batches; None for the prober's own.
        """
        begin, tuner = time.perf_counter(), tuner or self.tuner
        answers = list(self._batches(ray, epsilon, rays or self._rays, tuner, precision))
        return Started(answers, self._device, tuner.worked, begin)

    @contextmanager
    def broken_off_at(self, deadline: float) -> Iterator[None]:
        """Within the block, batches in low precision raise `TooSlow` once the clock has reached that time."""
        with self._runner.broken_off_at(deadline):
            yield

    def predictions(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.int64]:
        """The predicted class at each probe, (M,), by the answer of record for each image alone."""
        columns, probes = columns_of(self._rays, ray, epsilon), self._probes()
        with torch.no_grad(), self._beside.the_batches():
            predicted = [int(self._record.answered(probes, one)[1].argmax()) for one in singly(columns)]
        return np.array(predicted, np.int64)

    def flips_of_record(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the answer of record is a flip at these points, each alone."""
        _, flipped = result_of(self._alone(ray, epsilon, None))
        return flipped

    @property
    def segments_at_once(self) -> int:
        """How many segments fill a batch. Their values are in float64, and at least three times in memory."""
        return max(1, min(SEGMENTS, VALUES_OF_SEGMENTS // self._rays.images[0].numel()))

    def least_margins(
        self, ray: NDArray[np.int64], first: NDArray[np.float64], last: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds segments, each from epsilon first[i] to last[i] of ray[i].

        Returns for each a number below every margin of record on it, and the approximate margin in its middle.

        Raises:
            NotBounded: the model has an operation whose values cannot be bounded.
        """
        try:
            with torch.no_grad():
                probes = self._probes()
                columns, upto = (sent(columns_of(self._rays, ray, end), self._device) for end in (first, last))
                inputs = probes.on_segments(columns, upto)
                logits = logits_of(self._record.model, inputs)
                lowest, middle = least_margins(logits, probes.labels(columns), probes.above(columns))
                return lowest.cpu().numpy(), middle.cpu().numpy()
        except RuntimeError as error:
            if len(ray) == 1 or not is_out_of_memory(error):
                raise
        half = len(ray) // 2
        parts = (
            self.least_margins(ray[:half], first[:half], last[:half]),
            self.least_margins(ray[half:], first[half:], last[half:]),
        )
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def input_gradient(self, ray: int, epsilon: float, rays: Rays) -> Tensor:
        """The gradient of the margin at one probe with respect to the model's input, (C, H, W)."""
        probes = self._probes()
        columns = sent(columns_of(rays, np.array([ray]), np.array([epsilon])), self._device)
        with torch.no_grad():
            inputs = probes.inputs(columns)
        with torch.enable_grad():
            leaf = inputs.requires_grad_(True)
            logits = without(logits_of(self._model, leaf), probes.above(columns))
            margin, _ = ops.label_margin(logits, probes.labels(columns))
            (gradient,) = torch.autograd.grad(margin.sum(), leaf)
        return gradient[0]

    def _batches(
        self,
        ray: NDArray[np.int64],
        epsilon: NDArray[np.float64],
        rays: Rays,
        tuner: BatchTuner,
        precision: str | None,
    ) -> Iterator[Tensor]:
        at = 0
        while at < len(ray):
            plan = tuner.plan(len(ray) - at)
            batch = slice(at, at + plan.size)
            try:
                self._lay_out(plan.memory_format)
                timed = len(ray[batch]) == plan.size and tuner.wants_time_of(plan)
                begin = self._clock() if timed else 0.0
                settled = tuner.is_settled_on(plan)
                answer = self._measured(columns_of(rays, ray[batch], epsilon[batch]), plan.size, precision, settled)
                if timed:
                    tuner.ran(plan, len(ray[batch]), self._clock() - begin)
            except RuntimeError as error:
                if plan.size == 1 or not is_out_of_memory(error):
                    raise
                tuner.did_not_fit(plan)
                continue
            yield answer
            at += len(ray[batch])

    def _clock(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _alone(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], rays: Rays | None
    ) -> Waiting[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Margins and flips of record: each image alone and contiguous, as in a plain loop.

        They do not wait for batches of other lanes that the device has not run yet."""
        if not len(ray):
            return np.zeros(0), np.zeros(0, bool)
        columns = columns_of(rays or self._rays, ray, epsilon)
        probes = self._probes()  # held until the answers are there: another lane may lay them out otherwise meanwhile
        with torch.no_grad(), self._beside.the_batches():
            answers = [fetched(self._record.answered(probes, one)[0]) for one in singly(columns)]
            self._runner.placed_is_read(self._device)
            started = Started(answers, self._device)
        yield
        margin, flipped, greatest = started.read()
        _check_finite(margin, greatest)
        return margin, flipped

    def _measured(self, columns: Tensor, size: int, precision: str | None, settled: bool) -> Tensor:
        """(3, M) float64, on the way to the host: margin, whether flipped, and the greatest logit, in a batch of
        `size`."""
        probes, count = self._probes(), columns.shape[1]
        with torch.no_grad():
            if precision is None:
                answers = self._runner(probes, columns, size, True, settled)
            else:
                with low_precision(precision, self._device.type):
                    answers = self._runner(probes, columns, size, False, settled)
            self._runner.placed_is_read(self._device)
            return fetched(answers)[:, :count]


def _check_finite(margin: NDArray[np.float64], greatest: NDArray[np.float64]) -> None:
    if not (np.isfinite(margin).all() and np.isfinite(greatest).all()):
        raise ModelOutputError("model must return finite logits (got NaN or infinity for a perturbed image)")


def tuner_for(
    images: Tensor, batch_size: int | None, one_shape: bool = False, low_precision: bool = False
) -> BatchTuner:
    """A tuner for inputs like these: batches of the given size, or of the size that turns out fastest.

    Args:
        one_shape: whether every new shape is expensive, so that the first guess is kept.
        low_precision: whether batches are in low precision, which a GPU runs fastest in channels-last.
    """
    device = images.device.type
    formats = [torch.channels_last, torch.contiguous_format]
    if device == "cuda" and not low_precision:
        formats.reverse()
    if images.shape[1] == 1:  # the memory formats are the same for one channel
        formats = [torch.contiguous_format]
    if one_shape:
        batch_size = batch_size or first_size(device)
    return BatchTuner(formats, device, batch_size)
