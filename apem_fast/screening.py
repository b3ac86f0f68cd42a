"""Verified low precision: probes are screened in a faster type, and whatever sets an epsilon is confirmed in float32.

How far the two differ is measured on each ray, at epsilon 0 and at its first probe. Along a ray the difference drifts
slowly, because most of it comes from rounded weights; its range so far, several times over, is the band within which
a screened margin says nothing. Only "still the label, by more than the band" is taken from the screen. Flips, margins
within the band, and the point just before the flip are decided in float32; a ray whose band has caught a probe goes on
in float32, since it is near its flip or the band is too wide to help. Where the screen is seen to cost more than it
spares, all go on in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast.batching import BatchTuner, is_out_of_memory
from apem_fast.clean import ModelOutputError
from apem_fast.passes import PlainPasses
from apem_fast.rays import Answers, Prober, Rays
from apem_fast.waiting import Waiting

ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}  # of one value
BAND = 3.0  # how many times further than seen the difference may drift
ON_TRIAL = 64  # screened probes before it is judged whether the screen pays


def low_precision(precision: str, device_type: str) -> AbstractContextManager[object]:
    """Inside, convolutions and matrix products are in that precision."""
    if precision == "tf32":
        return _tf32()
    return torch.autocast(device_type, getattr(torch, precision))


class _tf32:
    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def __exit__(self, *exception: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


class ScreeningProber(Prober):
    """A `Prober` that asks a low precision first.

    Args:
        tuner: of float32 passes.
        screen_tuner: of low-precision passes, whose best batch is another one.
    """

    def __init__(
        self, model: nn.Module, rays: Rays, tuner: BatchTuner, passes: PlainPasses, precision: str,
        screen_tuner: BatchTuner,
    ):  # fmt: skip
        super().__init__(model, rays, tuner, passes)
        self._precision, self._screen_tuner = precision, screen_tuner
        self._in_low_precision = False
        self._exactly = np.zeros(len(rays), bool)  # (R,) rays that go on in float32
        self._calibrated = np.zeros(len(rays), bool)  # (R,) rays with a measured difference besides that at epsilon 0
        self._least = np.full(len(rays), np.nan)  # (R,) of the differences, screened less float32
        self._most = np.full(len(rays), np.nan)
        self._taken = np.zeros(len(rays))  # (R,) the largest epsilon that was answered by the screen alone
        self._asked = self._answered = 0  # screened probes, and those that needed no float32 pass

    @property
    def size(self) -> int:
        return max(super().size, self._screen_tuner.best.size)

    def answers(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        if not len(ray):
            return (yield from super().answers(ray, epsilon))
        runs = yield from self._differences_at_zero(ray)
        screened = ~self._exactly[ray]
        margin, noise = np.full(len(ray), -np.inf), np.zeros(len(ray))
        margin[screened], noise[screened] = yield from self._screen(ray[screened], epsilon[screened])
        runs = runs + screened
        middle = (self._least[ray] + self._most[ray]) / 2
        band = BAND * (self._most[ray] - self._least[ray]) + noise
        self._asked += int(screened.sum())
        decided = screened & self._calibrated[ray] & (margin - middle > band)
        self._exactly[ray[screened & self._calibrated[ray] & ~decided]] = True

        self._answered += int(decided.sum())
        if self._is_wasteful():
            self._exactly[:] = True

        margin = margin - middle
        flipped = np.zeros(len(ray), bool)
        np.maximum.at(self._taken, ray[decided], epsilon[decided])
        rest = np.flatnonzero(~decided)
        exact = yield from super().answers(ray[rest], epsilon[rest])
        again = screened[rest]
        self._learn(ray[rest][again], (margin + middle)[rest][again] - exact.margin[again])
        margin[rest], flipped[rest], noise[rest] = exact.margin, exact.flipped, exact.noise
        runs[rest] += exact.runs
        return Answers(margin, flipped, np.where(decided, band, noise), runs)

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """Asks in float32 where the screen alone said so; a ray of which it was wrong goes on in float32."""
        refuted, runs = yield from super().confirm(ray, epsilon)
        asked = np.flatnonzero((self._taken[ray] >= epsilon) & (epsilon > 0))
        exact = yield from super().answers(ray[asked], epsilon[asked])
        refuted[asked], runs[asked] = exact.flipped, exact.runs
        self._exactly[ray[refuted]] = True
        return refuted, runs

    def _is_wasteful(self) -> bool:
        """Whether the screen costs more than the float32 passes it spares."""
        screen, exact = self._screen_tuner.seconds_an_input, self._tuner.seconds_an_input
        if self._asked < ON_TRIAL or screen is None or exact is None:
            return False
        return self._answered * exact < self._asked * screen

    def _differences_at_zero(self, ray: NDArray[np.int64]) -> Waiting[NDArray[np.int64]]:
        """Measures how far the screen is off on unperturbed images that are new; the passes each ray is to pay for."""
        runs = np.zeros(len(ray), np.int64)
        new = np.unique(ray[np.isnan(self._least[ray]) & ~self._exactly[ray]])
        if not len(new):
            return runs
        images, first = np.unique(self._rays.image[new], return_index=True)
        margin, _ = yield from self._screen(new[first], np.zeros(len(first)))
        difference = dict(zip(images.tolist(), margin - self._rays.margin[new[first]]))
        # The other rays of these images need no pass of theirs.
        every = np.flatnonzero(np.isin(self._rays.image, images))
        self._learn(every, np.array([difference[i] for i in self._rays.image[every].tolist()]), calibrated=False)
        runs[np.isin(ray, new[first])] = 1
        return runs

    def _learn(self, ray: NDArray[np.int64], difference: NDArray[np.float64], calibrated: bool = True) -> None:
        finite = np.isfinite(difference)
        self._exactly[ray[~finite]] = True  # the low precision overflows here
        ray, difference = ray[finite], difference[finite]
        np.fmin.at(self._least, ray, difference)
        np.fmax.at(self._most, ray, difference)
        if calibrated:
            self._calibrated[ray] = True

    def _screen(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[tuple[NDArray, NDArray]]:
        """Margins in low precision, -inf where they are not finite, and how much of them is rounding of the logits."""
        if not len(ray):
            return np.zeros(0), np.zeros(0)
        self._in_low_precision = True
        try:
            passes = self._start(ray, epsilon, self._screen_tuner)
        except ModelOutputError:
            raise
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f'apem: precision="{self._precision}" needs a model that runs in it (got {first_line})'
            ) from error
        finally:
            self._in_low_precision = False
        yield
        margin, _, noise = passes.read()
        bad = ~(np.isfinite(margin) & np.isfinite(noise))
        return np.where(bad, -np.inf, margin), np.where(
            bad, 0.0, noise * (ROUNDING[self._precision] / self._passes.noise)
        )

    def _logits(self, inputs: Tensor, size: int, exact: bool = True) -> Tensor:
        if not self._in_low_precision:
            return super()._logits(inputs, size)
        with low_precision(self._precision, inputs.device.type):
            return super()._logits(inputs, size, exact=False)
