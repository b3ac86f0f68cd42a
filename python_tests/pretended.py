"""A pretended GPU: tensors that say `cuda:0`, hold a CPU tensor, and keep apart from CPU tensors as CUDA's do.

Code that is only ever run on a CPU mixes devices without noticing. With `PretendedGPU` it is told where, on any
machine: what CUDA refuses is refused in CUDA's words, and every time the host would wait for the device is counted with
the line of the program that made it wait. The arithmetic is the CPU's own, so results are equal to the bit.

    with PretendedGPU() as gpu:
        result = af.apem(model.to("cuda"), images.to("cuda"), relevance.to("cuda"))
    gpu.waits  # Counter({("apem_fast/rays.py:258", "copy to the host"): 12, ...})

Below Python the tensors live on "lazy", the one device type whose backward pass autograd runs without a driver. A
captured graph is a list of what was done, and its replay does it again.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

import apem_fast

aten = torch.ops.aten
GPU, BELOW = torch.device("cuda", 0), torch.device("lazy", 0)
PROGRAM = Path(apem_fast.__file__).resolve().parent

# Operators whose result the host has to wait for, besides reads of a value and copies.
WAITING = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Operators that take a CPU tensor without dimensions beside a tensor on the device, besides the pointwise ones.
TAKING_SCALARS = INDEXING | {
    aten.masked_fill_.Tensor,
    aten.masked_fill.Tensor,
    aten.fill_.Tensor,
    aten.index_fill.int_Tensor,
    aten.where.self,
    aten.clamp.Tensor,
}
PRODUCTS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.nn.functional.linear,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
}
ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.detach}
COPYING = {aten._to_copy.default, aten.copy_.default}


class OnGPU(Tensor):
    """A tensor that pretends."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=BELOW,
        )
        wrapper.inner = inner
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a pretended tensor is used outside of its PretendedGPU")

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {GPU} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
                "first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved, it is a CPU tensor: what reading with `map_location="cpu"` makes of one from a GPU."""
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True
            memo[id(self)] = copy
        return memo[id(self)]

    def __format__(self, specification: str) -> str:
        return format(self.item() if self.dim() == 0 else self.inner, specification)

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.inner!r})"


class PretendedGPU(TorchDispatchMode):
    """While it is entered, `cuda` is a device on which tensors can live."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        """How often the host waited for the device, by line of the program and reason."""
        self.uploads: Counter[str] = Counter()
        """Copies from pageable host memory to the device, by line of the program; they do wait, if only for the
        copy."""
        self.launches: Counter[str] = Counter()
        """What the host started on the device one by one, outside of graphs: operators and copies by name."""
        self.graph: PretendedGraph | None = None  # that is being captured
        self.graphs: list[PretendedGraph] = []
        self.stream: Any = None
        """The current one."""
        self.capture_is_invalid = False
        self.pools_under_way: list[Any] = []
        """Memory pools of captures that the allocator believes to be under way."""
        self.captures_random = False
        """Whether the random generators are in capture mode."""
        self.refuses_waits = False
        self.under_way: list[tuple[Tensor, Tensor]] = []
        """Copies to pinned memory that were started, and come when the host waits for them: target and source."""
        self.autocast: torch.dtype | None = None  # in which products are computed
        self.generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        """The random state of this GPU and of another one, which nobody may touch."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_cuda_stand_ins(self))
        self._stack.enter_context(_DevicesByName(self))
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._stack.close()

    def waits_of(self, reason: str) -> int:
        return sum(count for (_, why), count in self.waits.items() if why == reason)

    def waited(self, reason: str) -> None:
        if self.graph is not None:
            self.capture_is_invalid = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({reason})")
        if self.refuses_waits and reason != "synchronisation":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.waits[_line_of_program(), reason] += 1
        for target, source in self.under_way:
            target.copy_(source)
        self.under_way.clear()

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.refuses_waits = mode in (2, "error")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        here = [t for t in tensors if isinstance(t, OnGPU)]
        asked = kwargs.get("device")
        to_device = bool(here) if asked is None else torch.device(asked).type == BELOW.type
        if to_device and asked is not None:
            kwargs["device"] = torch.device("cpu")
        if not here and not to_device:
            return func(*args, **kwargs)
        self._refuse_mixtures(func, args, kwargs, tensors, to_device)
        is_random = torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if is_random and to_device and self.graph is None and self.captures_random:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        if self.graph is None and not func.is_view and func.overloadpacket not in ALLOCATIONS:
            self.launches[func.overloadpacket.__name__] += 1
        if func is aten.copy_.default and _is_started_only(*args, **kwargs):
            self.under_way.append((args[0], args[1].inner.clone()))
            return args[0].fill_(torch.nan) if args[0].is_floating_point() else args[0]
        self._count(func, args, kwargs, here, to_device)
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        if self.graph is not None:
            self.graph.record(func, inner_args, inner_kwargs, result)
        if not to_device or (func is aten.copy_.default and not isinstance(args[0], OnGPU)):
            return args[0] if func is aten.copy_.default else result
        wrapped = tree_map(lambda t: OnGPU(t) if isinstance(t, Tensor) else t, result)
        if func.namespace != "aten":
            return wrapped
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _refuse_mixtures(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], to_device: bool) -> None:
        generator = kwargs.get("generator")
        if generator is not None and to_device and generator.device.type != GPU.type:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")
        if func in COPYING:
            return
        strangers = [t for t in tensors if not isinstance(t, OnGPU)]
        if func in INDEXING and isinstance(args[0], OnGPU):
            indices = [t for t in tree_iter(args[1]) if isinstance(t, Tensor)]
            strangers = [t for t in strangers if not any(t is index for index in indices)]
        if torch.Tag.pointwise in func.tags or func in TAKING_SCALARS:
            strangers = [t for t in strangers if t.dim()]
        if strangers and len(strangers) < len(tensors):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {GPU} and cpu! "
                f"(in {func}, with shapes {[tuple(t.shape) for t in tensors]})"
            )

    def _count(self, func: Any, args: Any, kwargs: Any, here: list[Tensor], to_device: bool) -> None:
        if func is aten._local_scalar_dense.default:
            self.waited("read of a value")
        elif func in WAITING:
            self.waited(func.overloadpacket.__name__)
        elif func in INDEXING:
            indices = [t for t in tree_iter(args[1]) if isinstance(t, Tensor)]
            fills = len(args) > 2 and args[2].numel() == 1  # with one value, a mask need not become indices
            if any(t.dtype in (torch.bool, torch.uint8) for t in indices) and not fills:
                self.waited("boolean index")
            if any(not isinstance(t, OnGPU) for t in indices):
                self.waited("index from the host")
        elif func in COPYING:
            target_on_gpu = isinstance(args[0], OnGPU) if func is aten.copy_.default else to_device
            source = args[1] if func is aten.copy_.default else args[0]
            if isinstance(source, OnGPU) and not target_on_gpu:
                self.waited("copy to the host")
            elif not isinstance(source, OnGPU) and target_on_gpu and not getattr(source, "pretends_pinned", False):
                if self.graph is not None:
                    self.capture_is_invalid = True
                    raise RuntimeError("CUDA error: operation not permitted when stream is capturing (upload)")
                if self.refuses_waits:
                    raise RuntimeError("called a synchronizing CUDA operation")
                self.uploads[_line_of_program()] += 1


class _DevicesByName(TorchFunctionMode):
    """Says "lazy" to PyTorch wherever the program says "cuda", and answers what C++ would not ask a dispatch mode."""

    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is torch.device:  # only what is done on a device is done elsewhere
            return func(*args, **kwargs)
        if func is Tensor.pin_memory or kwargs.get("pin_memory"):
            if func is not Tensor.pin_memory and _is_gpu(kwargs.get("device")):
                raise RuntimeError("Only dense CPU tensors can be pinned")
            pinned = first.clone() if func is Tensor.pin_memory else func(*args, **{**kwargs, "pin_memory": False})
            pinned.pretends_pinned = True
            return pinned
        if isinstance(first, OnGPU):
            if func is Tensor.tolist:
                return first.cpu().tolist()
            if func is Tensor.data_ptr:
                return first.inner.data_ptr()
            if func in (Tensor.__getitem__, Tensor.__setitem__):  # a list becomes a tensor of the host
                index = args[1] if isinstance(args[1], tuple) else (args[1],)
                index = tuple(torch.tensor(part, device="cpu") if isinstance(part, list) else part for part in index)
                args = (first, index, *args[2:])
            if func == Tensor.data.__set__:  # bound anew at every look
                first.inner = args[1].inner
                return func(*args)
        if func in PRODUCTS and self._gpu.autocast is not None and first.is_floating_point():
            args = tree_map(lambda t: t.to(self._gpu.autocast) if isinstance(t, Tensor) else t, args)
        if func is Tensor.cuda:
            return first.to(BELOW)
        if func in (torch.tensor, torch.as_tensor) and _is_gpu(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(BELOW)
        return func(*map(_below, args), **{name: _below(value) for name, value in kwargs.items()})


class PretendedGraph:
    """A captured graph whose replay runs what was recorded once more, into the same memory."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self.pool: Any = None
        self.stream: Any = None
        self.priorities: set[int] = set()  # of the streams that it was replayed on

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.steps.append((func, args, kwargs, result))

    def replay(self) -> None:
        self.replays += 1
        self.priorities.add(torch.cuda.current_stream().priority)
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            for func, args, kwargs, before in self.steps:
                after = func(*args, **kwargs)
                for old, new in zip(tree_iter(before), tree_iter(after)):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _is_started_only(target: Tensor, source: Tensor, non_blocking: bool = False) -> bool:
    to_host = isinstance(source, OnGPU) and not isinstance(target, OnGPU)
    return to_host and non_blocking and hasattr(target, "pretends_pinned")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGPU) else value


def _is_gpu(device: Any) -> bool:
    return isinstance(device, torch.device | str) and str(device).split(":")[0] == GPU.type


def _index(device: int | str | torch.device) -> int:
    return device if isinstance(device, int) else torch.device(device).index or 0


def _below(value: Any) -> Any:
    return BELOW if _is_gpu(value) else value


def _line_of_program() -> str:
    """The innermost line of the program that is being run, or of the caller where it is none of the program's."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PROGRAM in path.parents:
            return f"{path.relative_to(PROGRAM.parent)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _streams_and_graphs(gpu: PretendedGPU) -> dict[str, Callable[..., Any] | type]:
    """Those of `torch.cuda` in which work is put in order and captured."""

    class Stream:
        def __init__(self, device: Any = None, priority: int = 0) -> None:
            self.device, self.priority = GPU, priority

        def wait_stream(self, other: Stream) -> None: ...
        def wait_event(self, event: Event) -> None: ...
        def synchronize(self) -> None:
            gpu.waited("synchronisation")

    class Event:
        def record(self, stream: Stream | None = None) -> None: ...
        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            gpu.waited("synchronisation")

    @contextlib.contextmanager
    def on_stream(stream: Stream) -> Iterator[None]:
        before, gpu.stream = gpu.stream, stream
        try:
            yield
        finally:
            gpu.stream = before

    def set_stream(stream: Stream) -> None:
        gpu.stream = stream

    @contextlib.contextmanager
    def capturing(
        graph: PretendedGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        """Leaves behind what torch leaves where CUDA has declared a capture invalid."""
        before, pool = gpu.stream, pool or object()
        gpu.stream, gpu.graph, gpu.captures_random = stream or Stream(), graph, True
        gpu.pools_under_way.append(pool)
        gpu.graphs.append(graph)
        graph.pool, graph.stream = pool, gpu.stream
        try:
            yield
        finally:
            gpu.graph = None
            if gpu.capture_is_invalid:
                gpu.capture_is_invalid = False
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            gpu.pools_under_way.remove(pool)
            gpu.captures_random, gpu.stream = False, before

    pools = itertools.count(1)
    gpu.stream = Stream()
    return {
        "Stream": Stream,
        "current_stream": lambda device=None: gpu.stream,
        "set_stream": set_stream,
        "is_current_stream_capturing": lambda: gpu.graph is not None,
        "get_sync_debug_mode": lambda: 2 if gpu.refuses_waits else 0,
        "set_sync_debug_mode": gpu.set_sync_debug_mode,
        "Event": Event,
        "stream": on_stream,
        "CUDAGraph": PretendedGraph,
        "graph": capturing,
        "graph_pool_handle": lambda: (0, next(pools)),
    }


@contextlib.contextmanager
def _cuda_stand_ins(gpu: PretendedGPU) -> Iterator[None]:
    """`torch.cuda` as far as the program uses it."""

    def end_allocate_to_pool(device: int, pool: Any) -> None:
        if pool not in gpu.pools_under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        gpu.pools_under_way.remove(pool)

    real_autocast = torch.autocast

    @contextlib.contextmanager
    def autocast(
        device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **options: Any
    ) -> Iterator[None]:
        if device_type != GPU.type:
            with real_autocast(device_type, dtype, enabled, **options):
                yield
            return
        before, gpu.autocast = gpu.autocast, (dtype or torch.float16) if enabled else None
        try:
            yield
        finally:
            gpu.autocast = before

    real_enabled, real_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def is_autocast_enabled(device_type: str = GPU.type) -> bool:
        return gpu.autocast is not None if device_type == GPU.type else real_enabled(device_type)

    def get_autocast_dtype(device_type: str) -> torch.dtype:
        return gpu.autocast or torch.float16 if device_type == GPU.type else real_dtype(device_type)

    def seed_all(seed: int) -> None:
        for generator in gpu.generators:
            generator.manual_seed(seed)

    stand_ins: dict[str, Callable[..., Any] | type] = {
        "is_available": lambda: True,
        "device_count": lambda: len(gpu.generators),
        "current_device": lambda: 0,
        "device": lambda device: contextlib.nullcontext(),
        **_streams_and_graphs(gpu),
        "synchronize": lambda device=None: gpu.waited("synchronisation"),
        "get_rng_state": lambda device=GPU: gpu.generators[_index(device)].get_state(),
        "set_rng_state": lambda state, device=GPU: gpu.generators[_index(device)].set_state(state),
        "manual_seed_all": seed_all,
        "default_generators": gpu.generators,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "a pretended GPU",
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        for autocasting in (autocast, is_autocast_enabled, get_autocast_dtype):
            stack.enter_context(mock.patch.object(torch, autocasting.__name__, autocasting))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_endAllocateToPool", end_allocate_to_pool, create=True))
        check = "_accelerator_graph_capture_health_check"  # asks the driver
        stack.enter_context(mock.patch.object(torch.optim.Optimizer, check, return_value=None))
        yield
