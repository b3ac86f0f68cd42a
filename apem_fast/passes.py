"""Forward passes of one fixed shape: compiled by `torch.compile` when asked, on CUDA a captured graph that is replayed.

Both want the same batch size every time: the first full batch prepares it, and later ones that are not full are filled up
with copies of their last image. What was prepared is compared with the plain model on its first batch. If it cannot be prepared, or answers otherwise, the
plain model runs instead, and one warning says so.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from apem_fast.batching import is_out_of_memory

Forward = Callable[[Tensor], Tensor]

KEPT = 3  # shapes that stay prepared; each may hold the memory of a whole pass


class PlainPasses:
    """The model as it is."""

    noise = 2.0**-16
    """A margin this close to 0, relative to the greatest logit, may change sign with the batch that its image was in
    (sums in another order). Seen: about 1e-6 on EfficientNet-Lite0."""

    def __init__(self, model: Forward):
        self._model = model

    def __call__(self, inputs: Tensor, size: int, exact: bool) -> Tensor:
        """What the model says of at most `size` images; `exact` if it has to be what float32 says."""
        return self._model(inputs)

    def forget(self) -> None:
        """The model's weights are about to move."""


class _PreparedPasses(PlainPasses, ABC):
    """What compiled and captured passes share: fixed shapes, the comparison, and the way back."""

    doing = ""

    def __init__(self, model: Forward):
        super().__init__(model)
        self._ready: dict[tuple[object, ...], Forward] = {}
        self._given_up = False

    @abstractmethod
    def prepare(self, example: Tensor) -> Forward:
        """The model for batches like the example."""

    def __call__(self, inputs: Tensor, size: int, exact: bool) -> Tensor:
        if self._given_up:
            return self._model(inputs)
        batch = _filled_up(inputs, size)
        key = (size, batch.stride(), exact)
        if key not in self._ready:
            if len(inputs) < size:  # too few to begin with
                return self._model(inputs)
            while len(self._ready) >= KEPT:
                del self._ready[next(iter(self._ready))]
            self._ready[key] = self._compared(batch, exact)
            if self._given_up:
                return self._model(inputs)
        return self._ready[key](batch)[: len(inputs)]

    def forget(self) -> None:
        self._ready.clear()

    def _compared(self, batch: Tensor, exact: bool) -> Forward:
        try:
            ready = self.prepare(batch)
            if exact:
                plain, prepared = self._model(batch), ready(batch)
                off = float((plain - prepared).abs().max() / plain.abs().max())
                if not off <= self.noise:
                    raise RuntimeError(f"its logits are off by {off:.1e} of the greatest")
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a capture raises, the plain model still runs
            if is_out_of_memory(error):
                raise
            self._given_up = True
            reason = str(error).strip().splitlines()
            warnings.warn(
                f"apem: {self.doing} failed, the plain model runs instead ({reason[0] if reason else type(error).__name__})",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip
            return self._model
        return ready


class CompiledPasses(_PreparedPasses):
    """The model through `torch.compile`, for one shape at a time."""

    doing = "compiling the model"
    noise = 2.0**-14  # fused operators round elsewhere; seen: about 1e-6 as well

    def __init__(self, model: Forward):
        super().__init__(model)
        self._compiled = torch.compile(model, dynamic=False)

    def prepare(self, example: Tensor) -> Forward:
        return self._compiled

    def forget(self) -> None:
        """It finds its weights wherever they are."""


class GraphedPasses(_PreparedPasses):
    """The model as a captured CUDA graph: its kernels are started by one call."""

    doing = "capturing the model in a CUDA graph"

    def prepare(self, example: Tensor) -> Forward:
        static = example.clone()
        stream = torch.cuda.Stream(example.device)
        stream.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(stream):  # what the first passes allocate and choose must not be captured
            for _ in range(2):
                self._model(static)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = self._model(static)

        def replay(batch: Tensor) -> Tensor:
            static.copy_(batch)
            graph.replay()
            return captured.clone()  # the next replay overwrites it

        return replay


def passes_for(model: Forward, device: torch.device, compile: bool) -> PlainPasses:
    """How to run a model there."""
    if compile:
        return CompiledPasses(model)
    return GraphedPasses(model) if device.type == "cuda" else PlainPasses(model)


def _filled_up(inputs: Tensor, size: int) -> Tensor:
    missing = size - len(inputs)
    if missing <= 0:
        return inputs
    last = inputs[-1:].expand(missing, *inputs.shape[1:])
    memory_format = (
        torch.channels_last if inputs.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    return torch.cat([inputs, last]).contiguous(memory_format=memory_format)
