"""Sets the process's settings as exactness requires while a model runs, and restores the user's afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Every place where torch keeps what it may make of float32 products. On a CPU too: "bf16" there is bfloat16.
_BACKENDS: Any = torch.backends  # whose attributes are not declared
PRODUCTS: tuple[Any, ...] = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)


@dataclass(frozen=True)
class _OlderSetting:
    """An older switch of torch for the same thing; reading it raises where the two disagree."""

    read: Callable[[], str | bool]
    write: Callable[[Any], None]
    named: Mapping[str, str | bool]  # its own value for each of `products_in`


OLDER = (
    _OlderSetting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, {"ieee": "highest", "tf32": "high"}
    ),
    _OlderSetting(
        lambda: torch.backends.cudnn.allow_tf32,
        lambda value: setattr(torch.backends.cudnn, "allow_tf32", value),
        {"ieee": False, "tf32": True},
    ),
)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Inside, products of float32 values are "ieee", true float32, or "tf32" where the device has it.

    Both ways in which torch keeps the setting are set, since a model may read either, unless they already differed by
    the user's hand.
    """
    before = [place.fp32_precision for place in PRODUCTS]
    older = []
    for setting in OLDER:
        with suppress(RuntimeError):
            older.append((setting, setting.read()))
    try:
        for setting, _ in older:
            setting.write(setting.named[precision])
        for place in PRODUCTS:
            place.fp32_precision = precision
        yield
    finally:
        for setting, value in older:
            setting.write(value)
        for place, value in zip(PRODUCTS, before):
            place.fp32_precision = value


@contextmanager
def same_algorithms() -> Iterator[None]:
    """Within the block, convolutions on a GPU are computed the same way every time.

    The algorithm is not chosen by timing, and the order of sums does not change from run to run.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def no_autocast() -> Iterator[None]:
    """Turns off any surrounding autocast within the block, so that images and weights keep their types."""
    with ExitStack() as stack:
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


class _Inside:
    """What `undisturbed` has set, and for how many contexts. Settings belong to the process and gradients to the model,
    so one thread is let in at a time; the first context saves what was there, and the last one puts it back, whatever
    the order in which they close."""

    def __init__(self) -> None:
        self.thread = threading.RLock()
        self.process = 0
        self.settings = ExitStack()
        self.models: dict[int, tuple[int, list[tuple[nn.Parameter, bool]]]] = {}

    def enter(self, model: nn.Module) -> None:
        if self.process == 0:
            with ExitStack() as stack:
                stack.enter_context(products_in("ieee"))
                stack.enter_context(same_algorithms())
                stack.enter_context(no_autocast())
                self.settings = stack.pop_all()
        self.process += 1
        count, required = self.models.get(id(model), (0, []))
        if count == 0:
            required = [(p, p.requires_grad) for p in model.parameters()]
        self.models[id(model)] = count + 1, required
        for parameter, _ in required:
            parameter.requires_grad_(False)  # no gradient may reach the user's .grad

    def leave(self, model: nn.Module) -> None:
        count, required = self.models.pop(id(model))
        if count > 1:
            self.models[id(model)] = count - 1, required
        else:
            for parameter, requires_grad in required:
                parameter.requires_grad_(requires_grad)
        self.process -= 1
        if self.process == 0:
            self.settings.close()


_INSIDE = _Inside()


@contextmanager
def undisturbed(model: nn.Module, *inputs: Tensor) -> Iterator[None]:
    """Within the block, float32 is true float32 and no gradient reaches the parameters; all is restored after it.

    That includes the random state of the devices of model and inputs. Settings belong to the process, so only one
    thread can be in the block, and others wait.
    """
    devices = sorted({t.device.index for t in (*model.parameters(), *inputs) if t.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(_INSIDE.thread)
        if torch.is_inference_mode_enabled():  # nothing in it can be differentiated
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=devices))
        _INSIDE.enter(model)
        try:
            yield
        finally:
            _INSIDE.leave(model)
