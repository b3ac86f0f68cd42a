"""How a batch is run: by the plain model; or in one fixed shape, compiled by `torch.compile` when asked, on CUDA by a
captured graph that is replayed.

Fixed shapes want the same batch size every time: the first full batch prepares it. Later ones that are not full leave
rows over, whose answers are not looked at: copies of the last image, or in a graph what an earlier batch left there.
What was prepared is compared with the plain model on its first batch. If it cannot be prepared, or answers otherwise,
the plain model runs instead, and one warning says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from apem_fast.running.batching import BatchPlan, is_out_of_memory
from apem_fast.running.capture import Pool, captured, warn_of_way_back
from apem_fast.running.fingerprint import Fingerprint
from apem_fast.running.inputs import Inputs
from apem_fast.running.layouts import WeightLayouts
from apem_fast.running.low_precision import FirstLayerExact

Forward = Callable[[Tensor], Tensor]
Prepared = Callable[[Inputs], Tensor]  # of at most so many inputs as it was prepared for; later rows mean nothing

NOISE_OVER_SEEN = 8.0  # noise is taken to be so many times the largest difference that was seen on a few inputs
KEPT = 8  # shapes that stay prepared, the last that were used
WANTED = 3  # times a smaller shape is wanted before it is prepared
LEAST = 8  # images; a GPU takes hardly less time for fewer


class PlainRunner:
    """The model as it is, but for the memory format of its weights, between `begin` and `end`."""

    noise = 2.0**-16
    """A margin this close to 0, relative to the greatest logit, may have another sign in float64, in another batch or
    on another processor (sums in another order). Seen: up to 1.7e-6 from float64 on EfficientNet-Lite0, with every kind
    of kernel alike."""

    def __init__(self, model: Forward):
        self._model = model
        self._layouts = WeightLayouts(model)
        self._kept = model.kept if isinstance(model, FirstLayerExact) else None
        self.prepares = True
        """Whether full batches may be prepared for; not while other sizes are still tried."""

    def begin(self) -> None:
        """Before the batches of a search."""
        if not self._layouts.begin():
            self.forget()
        if self._kept is not None:
            self._kept.refresh()

    def end(self) -> None:
        """After them: the weights lie where they lay."""
        self._layouts.end()

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """The next batches come in this format."""
        self._layouts.use(memory_format)

    def __call__(self, inputs: Inputs, size: int, exact: bool) -> Tensor:
        """What the model says of at most `size` images; `exact` if it has to be what float32 says."""
        return self._model(inputs.make())

    def alone(self, image: Tensor) -> Tensor:
        """What the model says of one image, (1, C, H, W) and contiguous, with its weights as the user has them."""
        with self._layouts.as_given():
            return self._model(image)

    @contextmanager
    def broken_off_at(self, deadline: float) -> Iterator[None]:
        """Inside, plain batches in low precision raise `TooSlow` when the clock has passed that time."""
        model = self._model if type(self) is PlainRunner else None
        if not isinstance(model, FirstLayerExact):
            yield
            return
        model.deadline = deadline
        try:
            yield
        finally:
            model.deadline = None

    def knows_noise_of(self, plan: BatchPlan) -> bool:
        """Whether `noise` is known to hold for such batches; otherwise it is to be measured first."""
        return True

    def differed(self, plan: BatchPlan | None, by: float) -> None:
        """Such batches, or for None any, were seen to be off by so much of the greatest logit from the answer of
        record."""
        self.noise = max(self.noise, NOISE_OVER_SEEN * by)

    def forget(self) -> None:
        """The model is not what it was at the last search."""
        if self._kept is not None:
            self._kept.forget()


class _PreparedRunner(PlainRunner, ABC):
    """What compiled and captured batches share: fixed shapes, the comparison, and the way back."""

    doing = ""

    def __init__(self, model: Forward):
        super().__init__(model)
        self._ready: dict[tuple[object, ...], Prepared] = {}  # by size, image, type, memory format and whether exact
        self._wanted: Counter[tuple[object, ...]] = Counter()
        self._seen: set[BatchPlan] = set()
        self._given_up = False

    @abstractmethod
    def prepare(self, example: Tensor) -> Prepared:
        """The model for batches like the example, and for smaller ones."""

    def knows_noise_of(self, plan: BatchPlan) -> bool:
        return plan in self._seen

    def differed(self, plan: BatchPlan | None, by: float) -> None:
        super().differed(plan, by)
        if plan is not None:
            self._seen.add(plan)

    def shapes(self, size: int) -> tuple[int, ...]:
        """The batches that may be prepared where full ones are of `size`, smallest first."""
        return (size,)

    def __call__(self, inputs: Inputs, size: int, exact: bool) -> Tensor:
        for shape in self.shapes(size):
            if shape < len(inputs) or self._given_up:
                continue
            key = (shape, inputs.shape[1:], inputs.dtype, inputs.memory_format, exact)
            if key not in self._ready and self._is_worthwhile(key, len(inputs), size):
                self._prepare(key, inputs, shape, exact)
            if key in self._ready:
                self._ready[key] = ready = self._ready.pop(key)  # the last of those that were used
                return ready(inputs)[: len(inputs)]
        return self._model(inputs.make())

    def _is_worthwhile(self, key: tuple[object, ...], inputs: int, size: int) -> bool:
        """Whether to prepare this shape: with the first full batch, or once a smaller one was wanted a few times."""
        self._wanted[key] += 1
        return (inputs == size and self.prepares) or (key[0] != size and self._wanted[key] >= WANTED)

    def _prepare(self, key: tuple[object, ...], inputs: Inputs, size: int, exact: bool) -> None:
        while len(self._ready) >= KEPT:
            del self._ready[next(iter(self._ready))]  # used longest ago
        ready = self._compared(inputs, inputs.filled_up(size), self.noise if exact else None, self.prepare)
        if ready is None:
            self._given_up = True
        else:
            self._ready[key] = ready

    def forget(self) -> None:
        super().forget()
        self._ready.clear()

    def _compared(
        self, inputs: Inputs, batch: Tensor, tolerance: float | None, prepare: Callable[[Tensor], Prepared]
    ) -> Prepared | None:
        """The model prepared for batches like this one, which holds these inputs, and whose logits may be off by so
        much of the greatest; if it can be."""
        try:
            ready = prepare(batch)
            if tolerance is not None:
                plain, prepared = self._model(batch)[: len(inputs)], ready(inputs)[: len(inputs)]
                off = float((plain - prepared).abs().max() / plain.abs().max())
                if not off <= tolerance:
                    raise RuntimeError(f"its logits are off by {off:.1e} of the greatest")
        except Exception as error:
            if is_out_of_memory(error):
                raise
            warn_of_way_back(self.doing, error)
            return None
        return ready


class CompiledRunner(_PreparedRunner):
    """The model through `torch.compile`, for one shape at a time."""

    doing = "compiling the model"
    noise = 2.0**-14  # fused operators round elsewhere; seen: about 1e-6 as well

    def __init__(self, model: Forward):
        super().__init__(model)
        self._compiled = torch.compile(model, dynamic=False)

    def prepare(self, example: Tensor) -> Prepared:
        size = len(example)
        return lambda inputs: self._compiled(inputs.filled_up(size))


class GraphedRunner(_PreparedRunner):
    """The model as a captured CUDA graph: its kernels are started by one call. Single images too, which a host would
    take several times as long to start as a GPU to run."""

    doing = "capturing the model in a CUDA graph"

    def __init__(self, model: Forward):
        super().__init__(model)
        self._alone: dict[tuple[object, ...], Forward] = {}
        self._captured_of: Fingerprint | None = None
        # One memory for all batches: they run one after the other, and answers are copied out. Single images may run
        # beside them.
        self._places: dict[str, tuple[torch.cuda.Stream, Pool]] = {}

    def begin(self) -> None:
        super().begin()
        now = Fingerprint(self._model)
        if now != self._captured_of:
            self.forget()
        self._captured_of = now

    def shapes(self, size: int) -> tuple[int, ...]:
        """Also size / 4 and size / 16: a graph always costs its full size, and the last rays fill no batch."""
        return tuple(sorted({size, *(part for part in (size // 4, size // 16) if part >= LEAST)}))

    def prepare(self, example: Tensor) -> Prepared:
        return self._graph(example, "batches")

    def _graph(self, example: Tensor, place: str) -> Prepared:
        if place not in self._places:
            self._places[place] = torch.cuda.Stream(example.device), torch.cuda.graph_pool_handle()
        graph = captured(lambda batch: (self._model(batch),), example, *self._places[place])

        def run(inputs: Inputs) -> Tensor:
            inputs.write(graph.input[: len(inputs)])
            return graph.replay()[0]

        return run

    def alone(self, image: Tensor) -> Tensor:
        with self._layouts.as_given():
            key = (*image.shape, image.dtype)
            if key not in self._alone:
                self._alone[key] = self._prepared_alone(image)
            return self._alone[key](image)

    def _prepared_alone(self, image: Tensor) -> Forward:
        if self._given_up:
            return self._model
        one = Inputs.of(image)
        graph = self._compared(one, image, 0.0, lambda example: self._graph(example, "single images"))
        return self._model if graph is None else lambda image: graph(Inputs.of(image))

    def forget(self) -> None:
        super().forget()
        self._alone.clear()
        self._places.clear()


def runner_for(model: Forward, device: torch.device, compile: bool) -> PlainRunner:
    """How to run a model there."""
    if compile:
        return CompiledRunner(model)
    return GraphedRunner(model) if device.type == "cuda" else PlainRunner(model)
