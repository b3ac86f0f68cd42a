"""How a batch is run: by the plain model; or in one fixed shape, compiled by `torch.compile` when asked, on CUDA by a
captured graph that is replayed. In a graph is all of it, from the columns that ask for a batch to its answers.

Fixed shapes want the same batch size every time: the first full batch prepares it. Later ones that are not full are
filled up with copies of the last input, whose answers are not looked at. What was prepared is compared with the plain
model on its first batch. If it cannot be prepared, or answers otherwise, the plain model runs instead, and one warning
says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from apem_fast.running.batching import BatchPlan, is_out_of_memory
from apem_fast.running.capture import Pool, captured, warn_of_way_back
from apem_fast.running.fingerprint import Fingerprint
from apem_fast.running.layouts import WeightLayouts
from apem_fast.running.low_precision import FirstLayerExact
from apem_fast.running.outputs import ModelOutputError, as_logits, logits_of
from apem_fast.running.places import Places, laid_out
from apem_fast.running.recipe import Recipe, padded, to_device

Forward = Callable[[Tensor], object]
Answered = tuple[Tensor, Tensor]  # what is read off the logits, and the logits
Prepared = Callable[[Tensor], Answered]  # of columns of at most so many inputs as it was prepared for

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

    def begin(self) -> None:
        """Before the batches of a search."""
        if not self._layouts.begin():
            self.forget()
        if self._kept is not None:
            self._kept.refresh()

    def end(self) -> None:
        """After them: the weights lie where they lay, and what was too much to be placed is let go."""
        self._layouts.end()

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """The next batches come in this format."""
        self._layouts.use(memory_format)

    def place(
        self, tensors: Mapping[str, Tensor], memory_format: torch.memory_format, owner: object
    ) -> tuple[dict[str, Tensor], Hashable]:
        """What a recipe is to read, in that format, and a key for its place: see `Places.put`."""
        return laid_out(tensors, memory_format), None

    def placed_last(self, owner: object) -> bool:
        """Whether what that owner placed is still there."""
        return True

    def placed_is_read(self, device: torch.device) -> None:
        """Notes that the device's current stream has been asked to read what was placed."""

    def __call__(self, recipe: Recipe, columns: Tensor, size: int, exact: bool, settled: bool = True) -> Tensor:
        """What is read off the model's answers to at most `size` inputs: (L, M) on the device, to be copied before the
        next batch. More than M columns may come, of which the others mean nothing.

        Args:
            recipe: makes the inputs, and reads the answers.
            columns: (K, M), on the host.
            size: of a full batch.
            exact: whether it has to be what float32 says.
            settled: whether more such batches will come, so that it pays to prepare for them; not while other sizes are
                still tried.
        """
        return self._answered(recipe, to_device(recipe, columns))[0]

    def _answered(self, recipe: Recipe, columns: Tensor) -> Answered:
        logits = as_logits(self._model(recipe.inputs(columns)), columns.shape[1])
        return recipe.answers(logits, columns), logits

    def alone(self, recipe: Recipe, columns: Tensor, dtype: torch.dtype) -> Answered:
        """The same of one input, contiguous and in that type, with the weights as the user has them."""
        with self._layouts.as_given():
            return self._answered_alone(recipe, to_device(recipe, columns), dtype)

    def _answered_alone(self, recipe: Recipe, columns: Tensor, dtype: torch.dtype) -> Answered:
        logits = logits_of(self._model, recipe.inputs(columns).contiguous().to(dtype))
        return recipe.answers(logits, columns), logits

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
        self._ready: dict[tuple[object, ...], Prepared] = {}  # by size, recipe and whether exact
        self._wanted: Counter[tuple[object, ...]] = Counter()
        self._seen: set[BatchPlan] = set()
        self._given_up = False

    @abstractmethod
    def prepare(self, recipe: Recipe, size: int) -> Prepared:
        """The model for batches of that size, and for smaller ones."""

    def knows_noise_of(self, plan: BatchPlan) -> bool:
        return plan in self._seen

    def differed(self, plan: BatchPlan | None, by: float) -> None:
        super().differed(plan, by)
        if plan is not None:
            self._seen.add(plan)

    def shapes(self, size: int) -> tuple[int, ...]:
        """The batches that may be prepared where full ones are of `size`, smallest first."""
        return (size,)

    def __call__(self, recipe: Recipe, columns: Tensor, size: int, exact: bool, settled: bool = True) -> Tensor:
        inputs = columns.shape[1]
        for shape in self.shapes(size):
            if shape < inputs or self._given_up:
                continue
            key = (shape, recipe.key, exact)
            if key not in self._ready and self._is_worthwhile(key, inputs, size, settled):
                self._prepare(key, recipe, columns, shape, exact)
            if key in self._ready:
                self._ready[key] = ready = self._ready.pop(key)  # the last of those that were used
                return ready(columns)[0]
        return super().__call__(recipe, columns, size, exact)

    def _is_worthwhile(self, key: tuple[object, ...], inputs: int, size: int, settled: bool) -> bool:
        """Whether to prepare this shape: with the first full batch, or once a smaller one was wanted a few times."""
        self._wanted[key] += 1
        return (inputs == size and settled) or (key[0] != size and self._wanted[key] >= WANTED)

    def _prepare(self, key: tuple[object, ...], recipe: Recipe, columns: Tensor, size: int, exact: bool) -> None:
        _make_room(self._ready)

        def plainly() -> Answered:
            return self._answered(recipe, to_device(recipe, padded(columns, size)))

        ready = self._compared(lambda: self.prepare(recipe, size), columns, plainly, self.noise if exact else None)
        if ready is None:
            self._given_up = True
        else:
            self._ready[key] = ready

    def forget(self) -> None:
        super().forget()
        self._ready.clear()

    def _compared(
        self,
        prepare: Callable[[], Prepared],
        columns: Tensor,
        plainly: Callable[[], Answered],
        tolerance: float | None,
    ) -> Prepared | None:
        """What is prepared, if it can be and its logits for these columns are off by at most so much of the greatest
        from those that are found plainly."""
        try:
            ready = prepare()
            if tolerance is not None:
                plain, prepared = (logits[: columns.shape[1]] for _, logits in (plainly(), ready(columns)))
                off = float((plain - prepared).abs().max() / plain.abs().max())
                if not off <= tolerance:
                    raise RuntimeError(f"its logits are off by {off:.1e} of the greatest")
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, ModelOutputError):
                raise
            warn_of_way_back(self.doing, error)
            return None
        return ready


def _make_room(prepared: dict[tuple[object, ...], Prepared]) -> None:
    while len(prepared) >= KEPT:
        del prepared[next(iter(prepared))]  # used longest ago


class CompiledRunner(_PreparedRunner):
    """The model through `torch.compile`, for one shape at a time."""

    doing = "compiling the model"
    noise = 2.0**-14  # fused operators round elsewhere; seen: about 1e-6 as well

    def __init__(self, model: Forward):
        super().__init__(model)
        self._compiled = torch.compile(model, dynamic=False)

    def prepare(self, recipe: Recipe, size: int) -> Prepared:
        def run(columns: Tensor) -> Answered:
            filled = to_device(recipe, padded(columns, size))
            logits = as_logits(self._compiled(recipe.inputs(filled)), size)
            return recipe.answers(logits, filled), logits

        return run


class GraphedRunner(_PreparedRunner):
    """The model as a captured CUDA graph, with the making of its inputs before it and the reading of its answers behind
    it: all kernels are started by one call. Single images too, which a host would take several times as long to start
    as a GPU to run."""

    doing = "capturing the model in a CUDA graph"

    def __init__(self, model: Forward):
        super().__init__(model)
        self._alone: dict[tuple[object, ...], Prepared] = {}  # by recipe and type
        self._given_up_alone = False
        self._captured_of: Fingerprint | None = None
        # One memory for all batches: they run one after the other, and answers are copied out. Single images may run
        # beside them.
        self._memory: dict[str, tuple[torch.cuda.Stream, Pool]] = {}
        self._places = Places()

    def begin(self) -> None:
        super().begin()
        now = Fingerprint(self._model)
        if now != self._captured_of:
            self.forget()
        self._captured_of = now

    def place(
        self, tensors: Mapping[str, Tensor], memory_format: torch.memory_format, owner: object
    ) -> tuple[dict[str, Tensor], Hashable]:
        return self._places.put(tensors, memory_format, owner)

    def end(self) -> None:
        super().end()
        self._places.let_go()

    def placed_last(self, owner: object) -> bool:
        return self._places.belong_to(owner)

    def placed_is_read(self, device: torch.device) -> None:
        self._places.are_read_by(torch.cuda.current_stream(device))

    def shapes(self, size: int) -> tuple[int, ...]:
        """Also size / 4 and size / 16: a graph always costs its full size, and the last rays fill no batch."""
        return tuple(sorted({size, *(part for part in (size // 4, size // 16) if part >= LEAST)}))

    def prepare(self, recipe: Recipe, size: int) -> Prepared:
        return self._graph(lambda columns: self._answered(recipe, columns), recipe, size, "batches")

    def _graph(self, function: Callable[[Tensor], Answered], recipe: Recipe, size: int, memory: str) -> Prepared:
        if memory not in self._memory:
            self._memory[memory] = torch.cuda.Stream(recipe.device), torch.cuda.graph_pool_handle()
        graph = captured(function, recipe.unlike_any(size).to(recipe.device), *self._memory[memory])

        def run(columns: Tensor) -> Answered:  # without a reference to the recipe, and so to what lies in its place
            answers, logits = graph.replay(padded(columns, size).pin_memory())
            return answers, logits

        return run

    def alone(self, recipe: Recipe, columns: Tensor, dtype: torch.dtype) -> Answered:
        with self._layouts.as_given():
            key = recipe.key, dtype
            if key not in self._alone and not (self._given_up or self._given_up_alone):
                self._prepare_alone(key, recipe, columns, dtype)
            if key not in self._alone:
                return self._answered_alone(recipe, to_device(recipe, columns), dtype)
            self._alone[key] = ready = self._alone.pop(key)  # the last of those that were used
            return ready(columns)

    def _prepare_alone(self, key: tuple[object, ...], recipe: Recipe, columns: Tensor, dtype: torch.dtype) -> None:
        _make_room(self._alone)

        def there(columns: Tensor) -> Answered:
            return self._answered_alone(recipe, columns, dtype)

        def prepare() -> Prepared:
            return self._graph(there, recipe, 1, "single images")

        ready = self._compared(prepare, columns, lambda: there(to_device(recipe, columns)), 0.0)
        if ready is None:
            self._given_up_alone = True
        else:
            self._alone[key] = ready

    def forget(self) -> None:
        super().forget()
        self._alone.clear()
        self._memory.clear()
        self._places.forget()


def runner_for(model: Forward, device: torch.device, compile: bool) -> PlainRunner:
    """How to run a model there."""
    if compile:
        return CompiledRunner(model)
    return GraphedRunner(model) if device.type == "cuda" else PlainRunner(model)
