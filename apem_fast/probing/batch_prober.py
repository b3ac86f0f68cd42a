"""Probes in batches: the only file that runs the user's model on perturbed images.

`Prober` says what is asked of it. What it adds is its own: probes in a low precision for the screen, rays exchanged for
others over the same images for the filter, and the gradient at a probe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import ops
from apem_fast.probing.prober import Answers
from apem_fast.probing.rays import Rays
from apem_fast.running.batching import BatchTuner, first_size, is_out_of_memory
from apem_fast.running.beside import Beside
from apem_fast.running.clean import without
from apem_fast.running.inputs import Inputs, format_of
from apem_fast.running.low_precision import low_precision
from apem_fast.running.outputs import ModelOutputError, as_logits, logits_of
from apem_fast.running.record import Record
from apem_fast.running.runners import PlainRunner
from apem_fast.running.segments import least_margins
from apem_fast.running.transfer import sent
from apem_fast.running.waiting import Waiting, result_of

SEGMENTS, VALUES_OF_SEGMENTS = 64, 2**20  # bounded at once, and their inputs' numbers
COMPARED = 8  # probes that are run again alone to see how far a batch is off, where that is not known


@dataclass(frozen=True)
class _Located:
    """M probes on the model's device: what distinguishes each, all (M,)."""

    image: Tensor  # int64: row of the rays' images
    map: Tensor  # int64: row of the rays' relevance
    irrelevance: Tensor  # bool
    norm: Tensor  # float64, as the two below
    epsilon: Tensor
    level: Tensor

    def inputs(self, rays: Rays) -> Tensor:
        """(M, C, H, W): what the model receives."""
        return rays.inputs(*self._columns)

    def batch(self, rays: Rays) -> Inputs:
        """The same, before it is written."""
        images = rays.images
        return Inputs(
            (len(self.image), *images.shape[1:]),
            images.dtype,
            format_of(images),
            make=lambda: rays.inputs(*self._columns),
            write=lambda out: rays.write_inputs(out, *self._columns),
        )

    @property
    def _columns(self) -> tuple[Tensor, ...]:
        return self.norm, self.image, self.map, self.irrelevance, self.epsilon, self.level


class Started:
    """Batches under way, and their answers on the way to the host.

    Args:
        answers: (3, M) on the model's device, from the stream that is current.
        worked: told in the end how many seconds it all took.
    """

    def __init__(self, answers: Tensor, worked: Callable[[float], None] | None = None, begin: float = 0.0):
        self._worked, self._begin = worked, begin
        self._there: torch.cuda.Event | None = None
        self._answers = answers
        if answers.device.type == "cuda":
            self._answers = torch.empty(answers.shape, dtype=answers.dtype, device="cpu", pin_memory=True)
            self._answers.copy_(answers, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(answers.device))

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        """Margins, flips and greatest logits of the M probes, waiting for them."""
        if self._there is not None:
            self._there.synchronize()
        margin, flipped, greatest = self._answers.numpy()
        if self._worked is not None:
            self._worked(time.perf_counter() - self._begin)
        return margin.copy(), flipped != 0, greatest


class BatchProber:
    """Runs probes of `rays` through `model` in the batches that a tuner names: a `Prober`.

    A context manager, to be entered inside `undisturbed`: while it is open the model's weights lie in the memory format
    of the batches.
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
            self._format, self._rays = memory_format, self._rays.in_format(memory_format)
            self._beside.may_use_what_there_is()

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
        """As of every `Prober`; of other rays over the same images and maps where they are given."""
        if not len(ray):
            return Answers(np.zeros(0), np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64))
        order = np.argsort(ray, kind="stable")  # neighbours in a batch share image and map, which stay in the cache
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

        if not self._runner.knows_noise_of(self.tuner.best):  # other batches may be computed in another way
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
        """None turns out wrong: they have been asked in full precision."""
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
            rays: that the probes are on, over the same images and maps; None for the prober's own.
            precision: "bfloat16", "float16" or "tf32"; None for the images' own type.
            tuner: names the batches; None for the prober's own.
        """
        begin, tuner = time.perf_counter(), tuner or self.tuner
        answers = list(self._batches(ray, epsilon, rays or self._rays, tuner, precision))
        return Started(torch.cat(answers, dim=1), tuner.worked, begin)

    @contextmanager
    def broken_off_at(self, deadline: float) -> Iterator[None]:
        """Inside, batches in low precision raise `TooSlow` once the clock has reached that time."""
        with self._runner.broken_off_at(deadline):
            yield

    def predictions(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.int64]:
        """The class that is predicted at each probe, (M,): of record, each image alone."""
        predicted = []
        with torch.no_grad():
            for i, r in enumerate(ray.tolist()):
                one = self._rays.alone(r)
                inputs = self._located(np.zeros(1, np.int64), epsilon[i : i + 1], one).inputs(one)
                predicted.append(int(logits_of(self._record.logits, inputs).argmax()))
        return np.array(predicted, np.int64)

    def flips_of_record(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the answer of record is a flip at these points, each alone."""
        _, flipped = result_of(self._alone(ray, epsilon, None))
        return flipped

    @property
    def segments_at_once(self) -> int:
        """How many segments fill a batch: all that a network computes on them is in memory three times and more, in
        float64."""
        return max(1, min(SEGMENTS, VALUES_OF_SEGMENTS // self._rays.images[0].numel()))

    def least_margins(
        self, ray: NDArray[np.int64], first: NDArray[np.float64], last: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the segments from epsilon first[i] to last[i] of ray[i]: a number below every margin of record on it, and
        about the margin in its middle.

        Raises:
            NotBounded: the model has an operation whose values cannot be bounded.
        """
        try:
            with torch.no_grad():
                at = self._located(ray, first, self._rays)
                ends = (sent(torch.from_numpy(end), self._device) for end in (first, last))
                inputs = self._rays.on_segments(at.norm, at.image, at.map, at.irrelevance, *ends)
                above = None if self._rays.above is None else self._rays.above[at.image]
                logits = logits_of(self._record.model, inputs)
                lowest, middle = least_margins(logits, self._rays.labels[at.image], above)
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
        one = rays.only(np.array([ray]))
        with torch.no_grad():
            probe = self._located(np.zeros(1, np.int64), np.array([epsilon]), one)
            inputs = probe.inputs(one)
        with torch.enable_grad():
            leaf = inputs.requires_grad_(True)
            above = None if one.above is None else one.above[probe.image]
            margin, _ = ops.label_margin(without(logits_of(self._model, leaf), above), one.labels[probe.image])
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
                lying = rays.over(self._rays)
                answer = self._measure(ray[batch], epsilon[batch], lying, plan.size, precision)
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
        """Margins and flips of record: each image alone and contiguous, as a plain loop would run it. They need not
        wait for the batches of other lanes that a device has still to run."""
        if not len(ray):
            return np.zeros(0), np.zeros(0, bool)
        # Held until the answers are there: another lane may lay the images out otherwise meanwhile.
        rays = self._rays if rays is None else rays.over(self._rays)
        with self._beside.the_batches():
            started = Started(torch.cat(self._each_alone(rays, ray, epsilon), dim=1))
        yield
        margin, flipped, greatest = started.read()
        _check_finite(margin, greatest)
        return margin, flipped

    def _each_alone(self, rays: Rays, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> list[Tensor]:
        first = np.zeros(1, np.int64)
        return [self._measure(first, epsilon[i : i + 1], rays.alone(r)) for i, r in enumerate(ray.tolist())]

    def _measure(
        self,
        ray: NDArray[np.int64],
        epsilon: NDArray[np.float64],
        rays: Rays,
        size: int | None = None,
        precision: str | None = None,
    ) -> Tensor:
        """(3, M) float64 on the model's device: margin, whether flipped, and the greatest logit; in a batch of
        `size`, or of record."""
        with torch.no_grad():
            probes = self._located(ray, epsilon, rays)
            if size is None:
                logits = logits_of(self._record.logits, probes.inputs(rays))
            else:
                logits = self._logits(probes.batch(rays), size, precision)
            labels = rays.labels[probes.image]
            return ops.probe_answers(logits, labels, None if rays.above is None else rays.above[probes.image])

    def _logits(self, inputs: Inputs, size: int, precision: str | None) -> Tensor:
        if precision is None:
            return as_logits(self._runner(inputs, size, True), len(inputs))
        with low_precision(precision, self._device.type):
            return as_logits(self._runner(inputs, size, False), len(inputs))

    def _located(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], rays: Rays) -> _Located:
        """These probes on the model's device, sent there in one copy."""
        whole = rays.image[ray], rays.map[ray], rays.irrelevance[ray].astype(np.int64)
        real = (_bits(column) for column in (rays.norm[ray], epsilon, rays.level[ray]))
        columns = sent(torch.from_numpy(np.stack([*whole, *real])), self._device)
        return _Located(columns[0], columns[1], columns[2] != 0, *columns[3:].view(torch.float64))


def _bits(column: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bits of float64 numbers, to travel beside whole ones; bits of anything else would be other numbers."""
    if column.dtype != np.float64:
        raise TypeError(f"probe columns must be float64 (got {column.dtype})")
    return np.ascontiguousarray(column).view(np.int64)


def _check_finite(margin: NDArray[np.float64], greatest: NDArray[np.float64]) -> None:
    if not (np.isfinite(margin).all() and np.isfinite(greatest).all()):
        raise ModelOutputError("model must return finite logits (got NaN or infinity for a perturbed image)")


def tuner_for(
    images: Tensor, batch_size: int | None, one_shape: bool = False, low_precision: bool = False
) -> BatchTuner:
    """Batches of the size asked for, or of the one that turns out best, for inputs like these.

    Args:
        one_shape: whether every new shape is expensive: then the first guess stays.
        low_precision: whether for batches in it, which a GPU runs fastest in channels-last.
    """
    device = images.device.type
    formats = [torch.channels_last, torch.contiguous_format]
    if device == "cuda" and not low_precision:
        formats.reverse()
    if images.shape[1] == 1:  # then the formats are the same
        formats = [torch.contiguous_format]
    if one_shape:
        batch_size = batch_size or first_size(device)
    return BatchTuner(formats, device, batch_size)
