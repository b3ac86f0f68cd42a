"""The evaluator: a model and its images made ready once, for any number of relevance maps and directions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence, warn
from apem_fast.metric.results import ApemResult, EpsilonResult
from apem_fast.options import BoundOf, EngineOptions, Options, documented
from apem_fast.probing.batch_prober import BatchProber, tuner_for
from apem_fast.probing.engine import Flips, Progress, find_flips
from apem_fast.probing.prober import Prober
from apem_fast.probing.proving import proved
from apem_fast.probing.rays import Rays, direction_rays, relevance_rays
from apem_fast.probing.screening import ScreeningProber
from apem_fast.probing.trial import Trial
from apem_fast.progress import shown
from apem_fast.results import counted
from apem_fast.running.clean import Clean
from apem_fast.running.low_precision import FirstLayerExact
from apem_fast.running.outputs import check_scale
from apem_fast.running.record import record_for, run_of_record
from apem_fast.running.repeated import require_repeatable
from apem_fast.running.runners import runner_for
from apem_fast.running.undisturbed import undisturbed
from apem_fast.search import Certified

FEW = 4  # images on which it is tried whether a network can be bounded


@documented()
class Evaluator:
    """A model and its images, prepared once for any number of relevance maps: sign gradients are not computed again.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes), or what `Classifier` reads as such.
        images: (N, C, H, W) float32 or float64 as the model receives them, on the model's device.
        labels: the predictions, (N,) int64, if known; an error if they are not the model's.
        target: a class to follow instead of the prediction, one for all images or (N,) int64: see `apem`.
        options: see `apem_fast.options.Options`.

    The model, its mode, parameters, gradients and hooks, the images and the random state are left as they were.
    """

    @said_by("Evaluator")
    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        target: int | Tensor | None = None,
        **options: Unpack[EngineOptions],
    ):
        self.options = Options.of(**options)
        validation.model(model)
        validation.images(images, model)
        validation.takes_one_image(model, images)
        validation.precision(self.options.precision, images)
        self._model = model
        compile = self.options.compile
        self._runner = runner_for(FirstLayerExact(model), images.device, compile)
        self._record = record_for(self.options.record, model, images, self._runner)
        self._tuner, self._screen_tuner = (
            tuner_for(images, self.options.batch_size, compile, low_precision) for low_precision in (False, True)
        )
        self._trial = Trial(clock_is_free=images.device.type == "cpu")
        require_repeatable(model, images, in_batches=self.options.batch_size != 1)
        self._look_at(images, labels, target)

    def _look_at(self, images: Tensor, labels: Tensor | None, target: int | Tensor | None) -> None:
        self._images = images.detach()
        validation.within_bounds(self._images, *map(self._bound, self.options.bounds))
        targets = validation.target(target, labels, self._images)
        with undisturbed(self._model, self._images):
            self._clean: Clean
            self._clean, self._record = run_of_record(self._record, self._model, self._images, self._runner, targets)
        check_scale(self._model, self._clean.logits)
        validation.labels(labels, self._clean.labels)
        validation.moving(self._clean.sign)
        self._versions = validation.versions_of(self._model, self._images)
        if self._certified is not None:
            self._check_provable()

    def __setstate__(self, state: dict[str, object]) -> None:
        """A copy has images and a model of its own."""
        self.__dict__.update(state)
        self._versions = validation.versions_of(self._model, self._images)

    @property
    def _certified(self) -> Certified | None:
        policy = self.options.policy
        return policy if isinstance(policy, Certified) else None

    def _check_provable(self) -> None:
        """Raises, before any search, if the record is not float64 or an operation of the model cannot be bounded."""
        if self.record != "float64":
            raise ValueError(
                sentence(
                    'search="certified" proves the answers of record in float64, so record must be "float64" (got '
                    f'"{self.record}")'
                )
            )
        few = self._images[:FEW]
        rays = direction_rays(few, self._clean, torch.ones_like(few))
        row = np.arange(len(few))
        with self.probing_exactly(self._bounded(rays)) as prober:
            lowest, _ = prober.least_margins(row, np.zeros(len(few)), np.zeros(len(few)))
        if not (lowest > 0).any():
            warn(
                'search="certified": the network is so deep that the bounds on its rounding errors prove nothing, so '
                "every grid point up to a flip is computed in float64, which is as slow as a scan"
            )

    @said_by("Evaluator.on")
    def on(self, images: Tensor, labels: Tensor | None = None, target: int | Tensor | None = None) -> Evaluator:
        """An evaluator with the same model and options for other images of the same shape.

        The tuned batch sizes and captured graphs are shared with it, not made again.
        """
        validation.images(images, self._model)
        if images.shape[1:] != self._images.shape[1:] or images.dtype != self._images.dtype:
            raise ValueError(
                sentence(
                    f"images must have shape (N, {', '.join(map(str, self._images.shape[1:]))}) and "
                    f"{self._images.dtype} like the evaluator's first ones (got {tuple(images.shape)} and "
                    f"{images.dtype})"
                )
            )
        other = copy.copy(self)
        other._look_at(images, labels, target)
        return other

    def __repr__(self) -> str:
        o, shape = self.options, " x ".join(map(str, self._images.shape[1:]))
        grid = f"max_epsilon={o.max_epsilon:g}, step={o.step:g}, record={self.record}"
        return f"<Evaluator: {counted(len(self._images), 'image')} of {shape}, {grid}>"

    @property
    def model(self) -> nn.Module:
        """The model, as it was given."""
        return self._model

    @property
    def images(self) -> Tensor:
        """The images, as they were given: (N, C, H, W)."""
        return self._images

    @property
    def labels(self) -> Tensor:
        """The model's predictions, or the targets: (N,) int64."""
        return self._clean.labels

    @property
    def record(self) -> str:
        """The type that decides labels, sign gradients, and margins close to 0: "float64" or "float32"."""
        return self._record.precision

    @property
    def logits(self) -> Tensor:
        """The model's logits for each image alone, (N, classes), in the type of the record."""
        return self._clean.logits

    @property
    def sign_gradient(self) -> Tensor:
        """The sign of the gradient of the prediction's cross entropy: (N, C, H, W) int8."""
        return self._clean.sign

    def rays(self, maps: Tensor, image_of_map: NDArray[np.int64]) -> Rays:
        """Two rays for each map: ray 2m along the relevance of map m, ray 2m + 1 along its irrelevance."""
        return self._bounded(relevance_rays(self._images, self._clean, maps, image_of_map))

    @contextmanager
    def probing(self, rays: Rays, precision: str | None = None) -> Iterator[Prober]:
        """A prober of `rays`, usable within the block, with the batch size and the precision of the options."""
        precision = precision or self.options.precision
        with self.probing_exactly(rays) as exact:
            if precision == "float32":
                yield exact
            else:
                yield ScreeningProber(exact, precision, self._screen_tuner, self._trial)

    @contextmanager
    def probing_exactly(self, rays: Rays) -> Iterator[BatchProber]:
        """The same in the images' own type, without the screen that `precision` asks for."""
        validation.model(self._model)  # its mode may have changed since
        validation.unchanged(self._versions, self._model, self._images)
        prober = BatchProber(self._model, rays, self._tuner, self._runner, self._record)
        with undisturbed(self._model, self._images), prober:
            self._record.refresh()
            yield prober

    @said_by("Evaluator.apem")
    def apem(
        self, relevance: Mapping[str, Tensor], progress: Progress | bool | None = None, *, on_bad_map: str = "raise"
    ) -> dict[str, ApemResult]:
        """The metric of several sets of maps of these images, which share their batches.

        Args:
            relevance: by name, (N, 1, H, W) or (N, C, H, W) in [0, 1]; none all 0 or all 1.
            progress: True for a line on standard error, or a function called with (rays decided, rays in all, probes
                so far) after every round.
            on_bad_map: see the function `apem`.

        Raises:
            TypeError: `relevance` is a tensor, not a dictionary; the function `apem` takes a tensor.
        """
        progress = shown(progress)
        validation.on_bad_map(on_bad_map)
        validation.maps_by_name(relevance)
        bad: dict[str, Tensor] = {}
        if on_bad_map == "flag":
            bad = {name: validation.maps_without_rays(maps, self._images) for name, maps in relevance.items()}
            relevance = {
                name: maps.masked_fill(bad[name][:, None, None, None], 0.5) for name, maps in relevance.items()
            }
        groups: dict[int, list[str]] = {}
        for name, maps in relevance.items():
            validation.relevance(maps, self._images, name if len(relevance) > 1 else None)
            groups.setdefault(maps.shape[1], []).append(name)
        total = 2 * len(self._images) * len(relevance)
        decided = probes = 0
        results: dict[str, ApemResult] = {}
        for names in groups.values():  # maps with and without channels do not fit into one tensor

            def report(done: int, _: int, probes_here: int, decided: int = decided, probes: int = probes) -> None:
                if progress is not None:
                    progress(decided + done, total, probes + probes_here)

            maps = torch.cat([relevance[name].detach() for name in names])
            image_of_map = np.tile(np.arange(len(self._images)), len(names))
            rays = self.rays(maps, image_of_map)
            flips = self._find(rays, report)
            decided, probes = decided + len(rays), probes + int(flips.probes.sum())
            for i, name in enumerate(names):
                rows = slice(2 * i * len(self._images), 2 * (i + 1) * len(self._images))
                results[name] = self._result(flips, rows)
        return {name: _without(results[name], bad.get(name)) for name in relevance}

    @said_by("Evaluator.minimum_epsilon")
    def minimum_epsilon(self, direction: Tensor, progress: Progress | bool | None = None) -> EpsilonResult:
        """The least epsilon at which x + epsilon * direction is no longer predicted as x is."""
        progress = shown(progress)
        validation.direction(direction, self._images)
        rays = direction_rays(self._images, self._clean, direction.detach())
        flips = self._find(self._bounded(rays), progress)
        return EpsilonResult(
            torch.from_numpy(flips.step * self.options.step),
            torch.from_numpy(flips.flipped),
            self._clean.labels.cpu(),
            torch.from_numpy(flips.probes),
            self.record,
            self._certified is not None,
        )

    def at(self, direction: Tensor, epsilon: Tensor) -> Tensor:
        """The images at x + epsilon * direction, within the bounds of the options.

        Args:
            direction: (N, C, H, W), as of `minimum_epsilon`.
            epsilon: (N,), one for each image.
        """
        validation.direction(direction, self._images)
        rays = self._bounded(direction_rays(self._images, self._clean, direction.detach()))
        device, each = self._images.device, torch.arange(len(self._images), device=self._images.device)
        one = torch.ones(len(each), dtype=torch.float64, device=device)
        return rays.inputs(one, each, each, each < 0, epsilon.to(device=device, dtype=torch.float64), 0 * one)

    def _bounded(self, rays: Rays) -> Rays:
        lower, upper = (self._bound(bound) for bound in self.options.bounds)
        return replace(rays, lower=lower, upper=upper)

    def _bound(self, bound: BoundOf) -> float | Tensor | None:
        """One number, or one for each channel as a tensor beside the images."""
        if bound is None or isinstance(bound, (int, float)):
            return bound
        if len(bound) != self._images.shape[1]:
            raise ValueError(
                sentence(
                    f"bounds must be numbers or have one for each of the images' {self._images.shape[1]} channels "
                    f"(got {len(bound)})"
                )
            )
        return torch.tensor(bound, dtype=self._images.dtype, device=self._images.device)[:, None, None]

    def _find(self, rays: Rays, progress: Progress | None) -> Flips:
        o = self.options
        with self.probing(rays) as prober:
            flips = find_flips(prober, o.policy, step=o.step, last_step=o.last_step, progress=progress)
        if self._certified is None:
            return flips
        with self.probing_exactly(rays) as exact:
            return proved(exact, flips, self._certified, step=o.step, last_step=o.last_step, progress=progress)

    def _result(self, flips: Flips, rows: slice) -> ApemResult:
        epsilon = torch.from_numpy(flips.step[rows] * self.options.step)
        flipped, probes = torch.from_numpy(flips.flipped[rows]), torch.from_numpy(flips.probes[rows])
        return ApemResult(
            epsilon[0::2],
            epsilon[1::2],
            flipped[0::2],
            flipped[1::2],
            self._clean.labels.cpu(),
            probes[0::2] + probes[1::2],
            self.options.max_epsilon,
            self.options.step,
            self.record,
            self._certified is not None,
        )


def _without(result: ApemResult, bad: Tensor | None) -> ApemResult:
    """The result with NaN for the bad maps, in whose place a dummy map was measured."""
    if bad is None or not bool(bad.any()):
        return result
    bad = bad.cpu()
    return replace(
        result,
        epsilon_minus=result.epsilon_minus.masked_fill(bad, math.nan),
        epsilon_plus=result.epsilon_plus.masked_fill(bad, math.nan),
        flipped_minus=result.flipped_minus & ~bad,
        flipped_plus=result.flipped_plus & ~bad,
    )
