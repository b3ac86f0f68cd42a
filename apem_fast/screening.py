"""Verified low precision: probes are screened in a faster type, and whatever sets an epsilon is confirmed in float32.

A screened margin is corrected by what is known of the difference between the two on its ray, and taken for an answer
where it is farther from 0 than that correction may be off (`differences.py`); elsewhere float32 is asked. Once a ray is
decided, its flip and the point just before it have been, or are now, asked in float32. With what is then known every
"still the label" of the screen before them is judged anew, and asked in float32 where it has become doubtful. "No
longer the label" needs no such care: nothing follows from it once an earlier flip is certain. A ray of which the
screen turns out wrong is searched again in float32; where the screen is seen to cost more than it spares, all go on so.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast.batching import BatchTuner, is_out_of_memory
from apem_fast.differences import ENOUGH, Differences
from apem_fast.low_precision import ROUNDING, first_layer_exact, low_precision
from apem_fast.passes import CompiledPasses, PlainPasses
from apem_fast.rays import Answers, ModelOutputError, Prober, Rays, logits_of

ON_TRIAL = 64  # screened probes before it is judged whether the screen pays


@dataclass(frozen=True)
class _Probes:
    """What the screen said of M probes."""

    ray: NDArray[np.int64]
    epsilon: NDArray[np.float64]
    margin: NDArray[np.float64]  # NaN where there is no answer
    rounding: NDArray[np.float64]  # how much of it is rounding of the logits

    def __getitem__(self, rows: NDArray) -> _Probes:
        return _Probes(self.ray[rows], self.epsilon[rows], self.margin[rows], self.rounding[rows])

    def __len__(self) -> int:
        return len(self.ray)


@dataclass
class _Told:
    """What was told of a ray under search."""

    unflipped: list[tuple[float, float, float]]  # by the screen alone: epsilon, screened margin, rounding
    flipped: list[tuple[float, float, float]]  # the same
    flip: float = np.inf  # the least epsilon that float32 says is flipped


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
        # A compiler cannot see through the mode that keeps the first layer exact.
        compiled = isinstance(passes, CompiledPasses)
        self._screen_passes = passes if compiled else type(passes)(first_layer_exact(model, precision))
        self._in_low_precision = False
        self._exactly = np.zeros(len(rays), bool)  # (R,) rays that go on in float32
        self._at_zero: dict[int, float] = {}  # by image: the difference there
        self._differences = Differences()
        self._told: defaultdict[int, _Told] = defaultdict(lambda: _Told([], []))  # by ray
        self._asked = self._spared = 0  # screened probes, and those among them that needed no float32 pass

    @property
    def size(self) -> int:
        return max(super().size, self._screen_tuner.best.size)

    def __exit__(self, *exception: object) -> None:
        self._screen_passes.forget()
        super().__exit__(*exception)

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        if memory_format is not self._format:
            self._screen_passes.forget()
        super()._lay_out(memory_format)

    def __call__(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Answers:
        if not len(ray):
            return super().__call__(ray, epsilon)
        runs = self._enter(ray)
        screened = np.flatnonzero(~self._exactly[ray])
        runs[screened] += 1
        probes = _Probes(ray, epsilon, np.full(len(ray), np.nan), np.zeros(len(ray)))
        probes.margin[screened], probes.rounding[screened] = self._screen(ray[screened], epsilon[screened])
        self._exactly[ray[screened[np.isnan(probes.margin[screened])]]] = True  # the low precision overflows here
        answers = Answers(np.zeros(len(ray)), np.zeros(len(ray), bool), np.zeros(len(ray)), runs)

        left = np.flatnonzero(~np.isnan(probes.margin))
        margin, band = self._judged(probes[left])
        untested = np.flatnonzero(np.isinf(band))
        if len(untested):  # of these the likeliest to be in doubt anyway
            sample = untested[np.argsort(np.abs(margin[untested]), kind="stable")[:ENOUGH]]
            self._ask(probes, left[sample], answers)
            left = np.delete(left, sample)
            margin, band = self._judged(probes[left])
        certain = np.abs(margin) > band
        self._tell(probes[left[certain]], margin[certain])
        answers.margin[left[certain]], answers.noise[left[certain]] = margin[certain], band[certain]
        answers.flipped[left[certain]] = margin[certain] < 0
        self._ask(probes, np.union1d(left[~certain], np.flatnonzero(np.isnan(probes.margin))), answers)
        self._asked, self._spared = self._asked + len(screened), self._spared + int(certain.sum())
        if self._is_wasteful():
            self._exactly[:] = True
        return answers

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Asks in float32 what the screen alone said and an answer rests on; a ray of which it was wrong goes on so."""
        row_of, last = {r: i for i, r in enumerate(ray.tolist())}, dict(zip(ray.tolist(), epsilon.tolist()))
        refuted, runs = super().confirm(ray, epsilon)

        def check(wanted: list[tuple[int, tuple[float, float, float]]], flipped: NDArray[np.bool_]) -> None:
            if not wanted:
                return
            probes = _Probes(np.array([r for r, _ in wanted]), *np.array([told for _, told in wanted]).T)
            answers = Answers(
                np.zeros(len(probes)), np.zeros(len(probes), bool), np.zeros(len(probes)), np.zeros(len(probes), np.int64)
            )
            self._ask(probes, np.arange(len(probes)), answers)
            rows = np.array([row_of[r] for r in probes.ray.tolist()])
            np.add.at(runs, rows, answers.runs)
            refuted[rows[answers.flipped != flipped]] = True
            self._spared -= len(probes)

        ends, expected, before = [], [], {}
        for r, end in last.items():
            told = self._told[r]
            beyond = min((t for t in told.flipped if t[0] > end), default=None)
            before[r] = [t for t in told.unflipped if t[0] < end]
            at = [t for t in told.unflipped if t[0] == end]
            ends += [(r, t) for t in at]
            expected += [False] * len(at)
            if beyond is not None and beyond[0] < told.flip:
                ends.append((r, beyond))
                expected.append(True)
        check(ends, np.array(expected, bool))

        on_the_way = [(r, t) for r in last if not refuted[row_of[r]] for t in before[r]]
        if on_the_way:
            probes = _Probes(np.array([r for r, _ in on_the_way]), *np.array([t for _, t in on_the_way]).T)
            margin, band = self._judged(probes)
            doubtful = np.flatnonzero(margin <= band)
            check([on_the_way[i] for i in doubtful], np.zeros(len(doubtful), bool))
        for r in last:
            del self._told[r]
            if not refuted[row_of[r]]:
                self._differences.forget(r)
        self._exactly[ray[refuted]] = True
        return refuted, runs

    def _judged(self, probes: _Probes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corrected margins, and the bands within which they say nothing."""
        correction = self._differences.correction(probes.ray, probes.epsilon)
        return probes.margin - correction, self._differences.band(probes.ray) + probes.rounding

    def _tell(self, probes: _Probes, margin: NDArray[np.float64]) -> None:
        """Remembers what is answered by the screen alone."""
        columns = (probes.ray.tolist(), (margin < 0).tolist(), probes.epsilon.tolist())
        for r, flipped, *said in zip(*columns, probes.margin.tolist(), probes.rounding.tolist()):
            (self._told[r].flipped if flipped else self._told[r].unflipped).append(tuple(said))

    def _ask(self, probes: _Probes, rows: NDArray[np.int64], answers: Answers) -> None:
        """Answers these rows in float32, and learns how far off the screen was."""
        ray, epsilon = probes.ray[rows], probes.epsilon[rows]
        exact = super().__call__(ray, epsilon)
        answers.margin[rows], answers.flipped[rows], answers.noise[rows] = exact.margin, exact.flipped, exact.noise
        answers.runs[rows] += exact.runs
        for r, e in zip(ray[exact.flipped].tolist(), epsilon[exact.flipped].tolist()):
            self._told[r].flip = min(self._told[r].flip, e)
        both = np.flatnonzero(~np.isnan(probes.margin[rows]))
        self._differences.learn(ray[both], epsilon[both], (probes.margin[rows] - exact.margin)[both])

    def _is_wasteful(self) -> bool:
        """Whether the screen costs more than the float32 passes it spares."""
        screen, exact = self._screen_tuner.seconds_an_input, self._tuner.seconds_an_input
        if self._asked < ON_TRIAL or screen is None or exact is None:
            return False
        return self._spared * exact < self._asked * screen

    def _enter(self, ray: NDArray[np.int64]) -> NDArray[np.int64]:
        """Measures how far the screen is off on unperturbed images that are new; the passes each probe is to pay for."""
        runs = np.zeros(len(ray), np.int64)
        new = np.array([r for r in np.unique(ray[~self._exactly[ray]]).tolist() if r not in self._differences], np.int64)
        images, first = np.unique(self._rays.image[new], return_index=True)
        unseen = np.array([i not in self._at_zero for i in images.tolist()], bool)
        first = new[first[unseen]]
        margin, _ = self._screen(first, np.zeros(len(first)))
        self._at_zero.update(zip(images[unseen].tolist(), (margin - self._rays.margin[first]).tolist()))
        runs[np.isin(ray, first)] = 1
        for r in new.tolist():
            at_zero = self._at_zero[int(self._rays.image[r])]
            self._exactly[r] |= np.isnan(at_zero)
            self._differences.enter(r, at_zero)
        return runs

    def _screen(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
        """Margins in low precision, NaN where they are not finite, and how much of them is rounding of the logits."""
        if not len(ray):
            return np.zeros(0), np.zeros(0)
        self._in_low_precision = True
        try:
            margin, _, noise = self._run(ray, epsilon, self._screen_tuner)
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
        bad = ~(np.isfinite(margin) & np.isfinite(noise))
        rounding = noise * (ROUNDING[self._precision] / self._passes.noise)
        return np.where(bad, np.nan, margin), np.where(bad, 0.0, rounding)

    def _logits(self, inputs: Tensor, size: int, exact: bool = True) -> Tensor:
        if not self._in_low_precision:
            return super()._logits(inputs, size)
        with low_precision(self._precision, inputs.device.type):
            return logits_of(lambda batch: self._screen_passes(batch, size, False), inputs)
