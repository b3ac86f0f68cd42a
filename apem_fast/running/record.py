"""The answer of record: it decides labels, sign gradients, and probes whose margins are too close to 0 for float32.

Sums of float32 numbers differ between processors, libraries, numbers of threads and batch sizes, so a gradient or a
margin that is almost 0 may have another sign there. In float64 the differences are a billion times smaller, and no sign
is known to change: the answers of a float64 copy of the model for one image alone are the same everywhere.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from apem_fast import ops
from apem_fast.callers import sentence
from apem_fast.running.batching import is_out_of_memory
from apem_fast.running.clean import Clean, Gradients, gradients_for, run_clean, without
from apem_fast.running.depthwise import fast_depthwise
from apem_fast.running.fingerprint import Fingerprint
from apem_fast.running.outputs import ModelOutputError, logits_of
from apem_fast.running.recipe import Recipe
from apem_fast.running.runners import PlainRunner, runner_for

COMPARED = 8  # images on which the error of float32 is measured


class Record:
    """The user's model itself, in the type that its images have.

    Args:
        runner: of the model's batches.
    """

    def __init__(self, model: nn.Module, runner: PlainRunner, images: Tensor):
        self._runner, self._model = runner, model
        self.precision = str(images.dtype).removeprefix("torch.")
        """"float64" or "float32", whichever decides."""
        self.dtype = images.dtype
        self.gradients: Gradients = gradients_for(model, images.device)

    def refresh(self) -> None:
        """Updates the record from the model, before a search."""

    @property
    def model(self) -> nn.Module:
        """The module that decides, in the type of the record."""
        return getattr(self._model, "_orig_mod", self._model)  # what `torch.compile` wraps

    def answered(self, recipe: Recipe, columns: Tensor) -> tuple[Tensor, Tensor]:
        """What is said of one input, alone and contiguous: what the recipe reads off it, and the logits (1, classes) of
        the record's type. Both are to be copied before the next one.

        Args:
            columns: of the one input, on the host.
        """
        return self._runner.alone(recipe, columns, self.dtype)


class NotInFloat64(ModelOutputError):
    """The model cannot be copied to float64, or cannot run in it; the message says why."""


class Float64Record(Record):
    """A copy of the model with its weights in float64.

    Modules, hooks and attributes are copied too; tensors are converted, and updated before each search. The user's
    model is only read.
    """

    _copy: nn.Module

    def __init__(self, model: nn.Module, images: Tensor):
        self._model = getattr(model, "_orig_mod", model)  # what `torch.compile` wraps would be compiled anew
        self._device = images.device
        self._copied: Fingerprint | None = None  # of the model as it was copied
        self.precision, self.dtype = "float64", torch.float64

    def refresh(self) -> None:
        """Copies the present values of the model's tensors, or the whole model if anything else has changed.

        Raises:
            NotInFloat64: it cannot be copied, or there is not the memory for it.
        """
        now = Fingerprint(self._model)
        if now == self._copied:
            with torch.no_grad():
                for twin, own in zip(_tensors_of(self._copy), _tensors_of(self._model)):
                    twin.copy_(own)
            return
        try:
            self._copy = in_float64(self._model)
        except Exception as error:
            raise NotInFloat64(_why(error, f"a copy of {_megabytes(self._model)} MB")) from error
        self._copied = now
        watched = _Watched(self._copy)
        self.gradients = gradients_for(watched, self._device, torch.float64)
        self._runner = runner_for(watched, self._device, compile=False)

    @property
    def model(self) -> nn.Module:
        return self._copy


def record_for(record: str, model: nn.Module, images: Tensor, runner: PlainRunner) -> Record:
    """The record of that name."""
    if record == "float64" and images.dtype != torch.float64:
        return Float64Record(model, images)
    return Record(model, runner, images)


def run_of_record(
    record: Record, model: nn.Module, images: Tensor, runner: PlainRunner, targets: Tensor | None = None
) -> tuple[Clean, Record]:
    """What the record says of unperturbed images (N, C, H, W), and who decides from here on: where that is not possible
    in float64 it is the model itself, and a warning says so."""
    if not isinstance(record, Float64Record):
        return run_clean(model, images, record.gradients, targets), record
    try:
        record.refresh()
        clean = run_clean(model, images, record.gradients, targets)
    except Exception as error:
        if isinstance(error, ModelOutputError) and not isinstance(error, NotInFloat64):
            raise
        reason = error if isinstance(error, NotInFloat64) else _why(error, "one image")
    else:
        _compare(clean, model, images, runner)
        return clean, record
    record = Record(model, runner, images)
    clean = run_clean(model, images, record.gradients, targets)  # raises what is wrong with the model in any type
    warnings.warn(
        sentence(
            'record="float64" is not possible with this model, so float32 decides: an epsilon may differ by some '
            f"steps from one processor to another ({reason})"
        ),
        RuntimeWarning,
        stacklevel=5,  # a decorator is between
    )
    return clean, record


def _compare(clean: Clean, model: nn.Module, images: Tensor, runner: PlainRunner) -> None:
    """Measures on a few images the error of float32, which limits the margins that it may decide."""
    few = images[:COMPARED]
    with torch.no_grad():
        logits = torch.cat([logits_of(model, image) for image in few.split(1)]).double()
    above = None if clean.above is None else clean.above[: len(few)]
    margin, _ = ops.label_margin(without(logits, above), clean.labels[: len(few)])
    greatest = logits.abs().amax(dim=1).clamp(min=torch.finfo(torch.float64).tiny).cpu().numpy()
    off = np.abs(margin.cpu().numpy() - clean.margin[: len(few)]) / greatest
    runner.differed(None, float(np.max(off, where=np.isfinite(off), initial=0.0)))


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a module with every floating-point tensor in float64, and no parameter that wants a gradient."""
    converted: dict[int, object] = {}
    for own in _tensors_of(model):
        twin = own.detach().to(torch.float64 if own.is_floating_point() else own.dtype, copy=True)
        converted[id(own)] = nn.Parameter(twin, requires_grad=False) if isinstance(own, nn.Parameter) else twin
    # Converted first, so that no float32 copy is made on the way.
    return copy.deepcopy(model, converted).to(torch.float64).requires_grad_(False)


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes of a module."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


class _Watched(nn.Module):
    """A model in float64 that checks, the first time it runs, that nothing is rounded to less on the way, and whose
    depthwise convolutions are fast on a CPU."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = getattr(model, "training", False)  # frozen scripts have no mode
        self._seen = False

    def forward(self, inputs: Tensor) -> object:
        with fast_depthwise(inputs.device):
            return self._watched(inputs)

    def _watched(self, inputs: Tensor) -> object:
        if self._seen:
            return self.model(inputs)
        self._seen = True
        try:
            with _Roundings() as roundings:
                outputs = self.model(inputs)
        except ModelOutputError:
            raise
        except Exception as error:
            raise NotInFloat64(_why(error, "one image")) from error
        if roundings.seen:
            raise NotInFloat64(f"it rounds to less on the way, in {roundings.seen}")
        return outputs


class _Roundings(TorchDispatchMode):
    """Sees the first operation that makes less precise numbers of float64 ones."""

    seen = ""

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if not self.seen and _floats(args) == torch.float64 and _floats((result,)) not in (None, torch.float64):
            self.seen = str(func)
        return result


def _floats(values: tuple[Any, ...]) -> torch.dtype | None:
    """The type of the first floating-point tensor among these."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
        if isinstance(value, (tuple, list)) and (dtype := _floats(tuple(value))) is not None:
            return dtype
    return None


def _megabytes(model: nn.Module) -> int:
    return sum(t.numel() * 8 for t in (*model.parameters(), *model.buffers())) // 2**20


def _why(error: Exception, what: str) -> str:
    if is_out_of_memory(error):
        return f"{what} in float64 does not fit the memory"
    reason = str(error).strip().splitlines()
    return reason[0] if reason else type(error).__name__
