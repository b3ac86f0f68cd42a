"""Probes: the only file that runs the user's model on perturbed images.

A probe is one point of a ray, and so one input of the model. What is asked of the model is always the same: the margins
at some probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import ops
from apem_fast.probing.rays import Rays
from apem_fast.running.batching import BatchTuner, first_size, is_out_of_memory
from apem_fast.running.beside import Beside
from apem_fast.running.clean import logits_of, without
from apem_fast.running.outputs import ModelOutputError
from apem_fast.running.record import Record
from apem_fast.running.runners import PlainRunner
from apem_fast.running.transfer import sent
from apem_fast.running.waiting import Waiting, result_of

GRADIENT_COST = 3  # probes that a forward and a backward pass of one input take the time of
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
        return rays.inputs(self.norm, self.image, self.map, self.irrelevance, self.epsilon, self.level)


@dataclass(frozen=True)
class Answers:
    """The model's answers to M probes."""

    margin: NDArray[np.float64]  # (M,)
    flipped: NDArray[np.bool_]  # (M,)
    noise: NDArray[np.float64]  # (M,) how large a margin may be noise
    probes: NDArray[np.int64]  # (M,) model inputs it took: 2 where the margin was so close that it was run again, alone


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


class Prober:
    """Runs probes of `rays` through `model` in the batches that a tuner names.

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
        self._model, self._rays, self._tuner, self._runner, self._record = model, rays, tuner, runner, record
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
    def size(self) -> int:
        """How many probes fill a batch."""
        return self._tuner.best.size

    @property
    def lanes(self) -> int:
        """How many searches should go on side by side, so that a GPU computes for one while the host thinks for
        another."""
        return 1 if self._device.type == "cpu" else 2

    def __call__(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Answers:
        """Margins and flips of the probes (ray[i], epsilon[i])."""
        return result_of(self.answers(ray, epsilon))

    def answers(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        """The same, with pauses."""
        if not len(ray):
            return Answers(np.zeros(0), np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64))
        order = np.argsort(ray, kind="stable")  # neighbours in a batch share image and map, which stay in the cache
        ray, epsilon = ray[order], epsilon[order]
        started = self._start(ray, epsilon, self._tuner)
        yield
        margin, flipped, greatest = started.read()
        _check_finite(margin, greatest)
        probes = np.ones(len(ray), np.int64)

        def alone(rows: NDArray[np.int64]) -> Waiting[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
            """Runs these probes again singly; the difference calibrates the noise of batches."""
            probes[rows] += 1
            exact, its_flipped = yield from self._alone(ray[rows], epsilon[rows])
            off = np.abs(margin[rows] - exact) / np.maximum(greatest[rows], np.finfo(np.float64).tiny)
            self._runner.differed(self._tuner.best, float(np.max(off, initial=0.0)))
            return exact, its_flipped

        if not self._runner.knows_noise_of(self._tuner.best):  # other batches may be computed in another way
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
        """Which of these answers, the last unflipped ones of decided rays, turn out wrong; and model inputs it took."""
        yield from ()
        return np.zeros(len(ray), bool), np.zeros(len(ray), np.int64)

    def along(
        self,
        image: NDArray[np.int64],
        irrelevance: NDArray[np.bool_],
        norm: NDArray[np.float64],
        level: NDArray[np.float64],
        epsilon: NDArray[np.float64],
    ) -> Answers:
        """One probe on each of as many new rays of the same images and maps, map i being image i's; all are (M,)."""
        self._rays = replace(self._rays, image=image, map=image, irrelevance=irrelevance, norm=norm, level=level)
        return self(np.arange(len(image)), epsilon)

    def margin_gradient(
        self, image: int, irrelevance: bool, norm: float, level: float, epsilon: float
    ) -> tuple[NDArray[np.float64], int]:
        """How the margin at one probe grows with what each map value lets through, (1 or C, H, W) like the map: the
        margin's gradient with respect to the model's input times the sign, summed over the channels that share a map
        value; and its cost in model inputs."""
        one = np.array([image])
        rays = replace(
            self._rays,
            image=one,
            map=one,
            irrelevance=np.array([irrelevance]),
            norm=np.array([norm]),
            level=np.array([level]),
        )
        with torch.no_grad():
            inputs = self._located(np.zeros(1, np.int64), np.array([epsilon]), rays).inputs(rays)
        with torch.enable_grad():
            leaf = inputs.requires_grad_(True)
            above = None if rays.above is None else rays.above[image : image + 1]
            margin, _ = ops.label_margin(without(logits_of(self._model, leaf), above), rays.labels[image : image + 1])
            (gradient,) = torch.autograd.grad(margin.sum(), leaf)
        through = (gradient[0] * rays.sign[image]).double()
        if rays.relevance.shape[1] == 1:
            through = through.sum(dim=0, keepdim=True)
        return through.contiguous().cpu().numpy(), GRADIENT_COST

    def _start(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], tuner: BatchTuner) -> Started:
        """Starts these probes, in the batches that a tuner names."""
        begin = time.perf_counter()
        return Started(torch.cat(list(self._batches(ray, epsilon, tuner)), dim=1), tuner.worked, begin)

    def _batches(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], tuner: BatchTuner) -> Iterator[Tensor]:
        at = 0
        while at < len(ray):
            plan = tuner.plan(len(ray) - at)
            batch = slice(at, at + plan.size)
            try:
                self._lay_out(plan.memory_format)
                timed = len(ray[batch]) == plan.size and tuner.wants_time_of(plan)
                begin = self._clock() if timed else 0.0
                answer = self._measure(ray[batch], epsilon[batch], self._rays, plan.size)
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
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Margins and flips of record: each image alone and contiguous, as a plain loop would run it. They need not
        wait for the batches of other lanes that a device has still to run."""
        if not len(ray):
            return np.zeros(0), np.zeros(0, bool)
        rays = self._rays  # held until the answers are there: another lane may exchange them meanwhile
        with self._beside.the_batches():
            started = Started(torch.cat(self._each_alone(rays, ray, epsilon), dim=1))
        yield
        margin, flipped, greatest = started.read()
        _check_finite(margin, greatest)
        return margin, flipped

    def _each_alone(self, rays: Rays, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> list[Tensor]:
        answers = []
        for r, e in zip(ray.tolist(), epsilon.tolist()):
            image, row = rays.image[r], rays.map[r]
            one = replace(
                rays,
                images=rays.images[image][None].contiguous(),
                sign=rays.sign[image][None].contiguous(),
                relevance=rays.relevance[row][None].contiguous(),
                labels=rays.labels[image][None],
                above=None if rays.above is None else rays.above[image][None],
                image=np.zeros(1, np.int64),
                map=np.zeros(1, np.int64),
                irrelevance=rays.irrelevance[[r]],
                norm=rays.norm[[r]],
                level=rays.level[[r]],
            )
            answers.append(self._measure(np.zeros(1, np.int64), np.array([e]), one))
        return answers

    def _measure(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], rays: Rays, size: int | None = None
    ) -> Tensor:
        """(3, M) float64 on the model's device: margin, whether flipped, and the greatest logit; in a batch of
        `size`, or of record."""
        with torch.no_grad():
            probes = self._located(ray, epsilon, rays)
            inputs = probes.inputs(rays)
            logits = logits_of(self._record.logits, inputs) if size is None else self._logits(inputs, size)
            labels = rays.labels[probes.image]
            others = logits if rays.above is None else without(logits, rays.above[probes.image])
            margin, predicted = ops.label_margin(others, labels)
            greatest = logits.abs().amax(dim=1).double()
            return torch.stack([margin.double(), (predicted != labels).double(), greatest])

    def _logits(self, inputs: Tensor, size: int, exact: bool = True) -> Tensor:
        return logits_of(lambda batch: self._runner(batch, size, exact), inputs)

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
