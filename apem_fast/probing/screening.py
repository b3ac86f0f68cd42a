"""Verified low precision: probes run in a faster type first, and those that set an epsilon are confirmed in float32.

1. A probe is screened (run in low precision), unless its ray is near its flip, where the screen rarely decides.
2. The screened margin is corrected by the known difference between the two types on its ray (`screen_errors.py`). If it
   is farther from 0 than the possible error, it is the answer; otherwise the probe runs in float32.
3. Once a ray is decided, its flip and the step before it run in float32, if they have not. Then every screened "still
   the label" before them is judged again with all known differences, and runs in float32 if it is doubtful now.
   "No longer the label" needs no such check: it no longer matters once an earlier flip is certain.
4. A ray on which the screen was wrong is searched again in float32. If the screen costs more than it saves, all rays
   continue in float32.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apem_fast.callers import sentence
from apem_fast.probing.batch_prober import BatchProber
from apem_fast.probing.prober import Answers
from apem_fast.probing.rays import Rays
from apem_fast.probing.screen_errors import ENOUGH, ScreenErrors
from apem_fast.probing.trial import Trial
from apem_fast.running.batching import BatchTuner, is_out_of_memory
from apem_fast.running.low_precision import ROUNDING
from apem_fast.running.outputs import ModelOutputError
from apem_fast.running.waiting import Waiting, result_of

NEAR = 2.0  # in bands: after so small a margin, the screen of the next probe is unlikely to decide
ON_TRIAL = 24  # screened probes before it is decided whether the screen pays

_epsilon = attrgetter("epsilon")


@dataclass(slots=True)
class _Point:
    """A reported margin and the precision that gave it."""

    epsilon: float
    margin: float
    flipped: bool
    exact: bool  # whether it ran in float32
    screened: float  # the screened margin; NaN if it was not screened or not finite
    rounding: float  # the part of it that may be rounding of the logits


class ScreeningProber:
    """A `Prober` that tries a low precision first and gives the answers of `exact`.

    Args:
        exact: an open prober, which runs the model in float32, and in low precision on request.
        precision: "bfloat16", "float16" or "tf32".
        screen_tuner: chooses the batches in low precision, whose best size differs.
        trial: tests whether the precision is fast on this machine; until that is known, float32 answers.
    """

    def __init__(self, exact: BatchProber, precision: str, screen_tuner: BatchTuner, trial: Trial):
        self._exact, self._precision, self._screen_tuner, self._trial = exact, precision, screen_tuner, trial
        self._exactly = np.zeros(len(exact.rays), bool)  # (R,) rays that continue in float32
        self._at_zero: dict[int, float] = {}  # by image: the difference there
        self._errors = ScreenErrors()
        self._told: defaultdict[int, list[_Point]] = defaultdict(list)  # by ray, with ascending epsilon
        self._asked = self._spared = 0  # screened probes, and those of them that needed no float32

    @property
    def rays(self) -> Rays:
        return self._exact.rays

    @property
    def size(self) -> int:
        return max(self._exact.size, self._screen_tuner.best.size)

    @property
    def lanes(self) -> int:
        return self._exact.lanes

    def answers(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        if not len(ray):
            return (yield from self._exact.answers(ray, epsilon))
        tried = self._try(ray[:1], epsilon[:1]) if self._trial.is_due else 0
        wanted = np.flatnonzero(~self._exactly[ray]) if self._trial.pays else np.arange(0)
        wanted = wanted[~self._near_the_flip(ray[wanted], epsilon[wanted])]
        screened, rounding, probes = yield from self._screened(ray, epsilon, wanted)
        probes[0] += tried
        self._exactly[ray[wanted[np.isnan(screened[wanted])]]] = True  # the low precision overflows here

        margin, band = self._judged(ray, epsilon, screened, rounding)
        untested = np.flatnonzero(np.isinf(band))
        sample = untested[np.argsort(np.abs(margin[untested]), kind="stable")[:ENOUGH]]  # likely to be in doubt anyway
        asked = yield from self._ask(ray[sample], epsilon[sample], screened[sample])
        if len(sample):
            margin, band = self._judged(ray, epsilon, screened, rounding)
        decided = np.abs(margin) > band  # never where it is NaN
        decided[sample] = False
        self._asked += len(wanted) - len(sample)
        self._spared += int(decided.sum())

        answers = Answers(margin, margin < 0, np.where(decided, band, 0.0), probes)
        rest = np.setdiff1d(np.flatnonzero(~decided), sample)
        asked_too = yield from self._ask(ray[rest], epsilon[rest], screened[rest])
        for rows, exact in ((sample, asked), (rest, asked_too)):
            answers.margin[rows], answers.flipped[rows], answers.noise[rows] = exact.margin, exact.flipped, exact.noise
            answers.probes[rows] += exact.probes
        columns = (epsilon, answers.margin, answers.flipped, ~decided, screened, rounding)
        for r, *told in zip(ray.tolist(), *(column.tolist() for column in columns)):
            insort(self._told[r], _Point(*told), key=_epsilon)
        if self._is_wasteful():
            self._exactly[:] = True
            self._trial.was_wasteful()
        return answers

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """Confirms in float32 the screened answers that results depend on; a refuted ray continues in float32."""
        refuted, probes = yield from self._exact.confirm(ray, epsilon)
        while True:
            rests_on = [
                (row, point)
                for row in np.flatnonzero(~refuted).tolist()
                for point in self._unverified(int(ray[row]), float(epsilon[row]))
            ]
            if not rests_on:
                break
            row = np.array([row for row, _ in rests_on])
            points = [point for _, point in rests_on]
            at, screened, rounding = (
                np.array([getattr(p, name) for p in points]) for name in ("epsilon", "screened", "rounding")
            )
            margin, band = self._judged(ray[row], at, screened, rounding)
            wanted = np.flatnonzero((at >= epsilon[row]) | (margin <= band))
            if not len(wanted):
                break
            exact = yield from self._ask(ray[row[wanted]], at[wanted], screened[wanted])
            np.add.at(probes, row[wanted], exact.probes)
            for i, flipped in zip(wanted.tolist(), exact.flipped.tolist()):
                points[i].exact = True
                refuted[row[i]] |= flipped != points[i].flipped
            self._spared -= len(wanted)
        self._exactly[ray[refuted]] = True
        for r in ray.tolist():
            self._told.pop(r, None)
        for r in ray[~refuted].tolist():
            self._errors.forget(r)
        return refuted, probes

    def _unverified(self, ray: int, epsilon: float) -> list[_Point]:
        """A ray's answers that were only screened, up to its last unflipped epsilon, and the flip after it."""
        told = self._told[ray]
        end = bisect_right(told, epsilon, key=_epsilon)
        return [p for p in told[:end] if not p.exact] + [p for p in told[end : end + 1] if not p.exact and p.flipped]

    def _judged(
        self,
        ray: NDArray[np.int64],
        epsilon: NDArray[np.float64],
        screened: NDArray[np.float64],
        rounding: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corrected margins and their bands; NaN if a probe was not screened."""
        asked = np.flatnonzero(~np.isnan(screened))
        margin, band = np.full(len(ray), np.nan), np.full(len(ray), np.nan)
        margin[asked] = screened[asked] - self._errors.correction(ray[asked], epsilon[asked])
        band[asked] = self._errors.band(ray[asked]) + rounding[asked]
        return margin, band

    def _near_the_flip(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the margin at the nearest smaller epsilon is small, so that screening is likely to be in vain."""
        behind = self.rays.margin[ray]
        for i, (r, e) in enumerate(zip(ray.tolist(), epsilon.tolist())):
            told = self._told[r]
            at = bisect_left(told, e, key=_epsilon)
            if at:
                behind[i] = told[at - 1].margin
        band = self._errors.band(ray)
        return np.isfinite(band) & (np.abs(behind) <= NEAR * band)

    def _ask(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], screened: NDArray[np.float64]
    ) -> Waiting[Answers]:
        """The answers in float32; the errors of the screen are learnt from them."""
        exact = yield from self._exact.answers(ray, epsilon)
        self._trial.answered(len(ray))
        both = np.flatnonzero(~np.isnan(screened))
        self._errors.learn(ray[both], epsilon[both], (screened - exact.margin)[both])
        return exact

    def _try(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> int:
        """Runs one probe in low precision to see whether that is faster here; returns how often it was run."""
        seconds, probes = self._exact.tuner.seconds_an_input, 0

        def run_until(deadline: float) -> None:
            nonlocal probes
            probes += 1
            with self._exact.broken_off_at(deadline):
                result_of(self._screen(ray, epsilon))

        if seconds is not None:
            self._trial.run(run_until, seconds)
        return probes

    def _is_wasteful(self) -> bool:
        """Whether the screen costs more than the float32 probes that it saves."""
        screen, exact = self._screen_tuner.seconds_an_input, self._exact.tuner.seconds_an_input
        if self._asked < ON_TRIAL or screen is None or exact is None:
            return False
        return self._spared * exact < self._asked * screen

    def _screened(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], wanted: NDArray[np.int64]
    ) -> Waiting[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]]:
        """Screens the `wanted` of these probes: margins (M,), NaN for the others; their rounding; and the probes.

        Unperturbed images that are new are screened with them, so that the difference at epsilon 0 is known.
        """
        screened, rounding = np.full(len(ray), np.nan), np.zeros(len(ray))
        probes = np.zeros(len(ray), np.int64)
        first, image = self._new_images(ray, wanted)
        rows = np.concatenate([first, wanted])
        at = np.concatenate([np.zeros(len(first)), epsilon[wanted]])
        margin, off = yield from self._screen(ray[rows], at)
        np.add.at(probes, rows, 1)
        self._at_zero.update(zip(image.tolist(), (margin[: len(first)] - self.rays.margin[ray[first]]).tolist()))
        screened[wanted], rounding[wanted] = margin[len(first) :], off[len(first) :]
        for r in np.unique(ray[wanted]).tolist():
            if r not in self._errors:
                self._errors.enter(r, self._at_zero[int(self.rays.image[r])])
        unknown = np.isnan([self._at_zero[i] for i in self.rays.image[ray[wanted]].tolist()])
        screened[wanted[unknown]] = np.nan
        return screened, rounding, probes

    def _new_images(
        self, ray: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The images of the wanted probes without a known difference, and a probe of each."""
        image, first = np.unique(self.rays.image[ray[wanted]], return_index=True)
        new = np.array([i not in self._at_zero for i in image.tolist()], bool)
        return wanted[first[new]], image[new]

    def _screen(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[Any], NDArray[Any]]]:
        """Margins in low precision, NaN if not finite, and the part of them that may be rounding of the logits."""
        if not len(ray):
            return np.zeros(0), np.zeros(0)
        try:
            started = self._exact.start(ray, epsilon, precision=self._precision, tuner=self._screen_tuner)
        except ModelOutputError:
            raise
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                sentence(f'precision="{self._precision}" needs a model that runs in it (got {first_line})')
            ) from error
        yield
        margin, _, greatest = started.read()
        bad = ~(np.isfinite(margin) & np.isfinite(greatest))
        rounding = greatest * ROUNDING[self._precision]
        return np.where(bad, np.nan, margin), np.where(bad, 0.0, rounding)
