"""Finds the layer that Grad-CAM reads, and makes feature maps (N, channels, h, w) of its output.

A convolutional network has such maps. A transformer has tokens (N, tokens, channels), some of which do not belong to
the picture (class, distillation and register tokens), or maps with the channels last (N, h, w, channels). The position
of a token in the picture is never guessed from the number of tokens alone: their grid must be one that a convolution of
the model returned, or such a grid halved once or more; and extra tokens before or after it must be ones that the model
was seen to concatenate to the grid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from apem_fast.explain.intercepted import CONVOLUTIONS

_POOLS = frozenset({F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d})
_RESIZES = frozenset({F.interpolate, torch.conv_transpose2d})
_ATTENTIONS = frozenset({F.scaled_dot_product_attention, F.multi_head_attention_forward})
SOFTMAXES = frozenset({F.softmax, torch.softmax, Tensor.softmax})
_JOINS = frozenset({torch.cat, torch.concat, torch.concatenate})

Reading = Callable[[Tensor], Tensor]
"""Rearranges a layer's output, or its gradient, into (N, channels, h, w)."""


@dataclass(frozen=True)
class FeatureMaps:
    """A layer's output, and where in the autograd graph its gradient is.

    Args:
        values: the layer's output, without gradient.
        edge: of the autograd graph, for the gradient of `values`.
        read: makes maps of the values, and of their gradient.
        of_tokens: whether the values include more than the maps, such as a class token.
    """

    values: Tensor
    edge: GradientEdge
    read: Reading
    of_tokens: bool = False

    @classmethod
    def of(cls, values: Tensor, read: Reading, of_tokens: bool = False) -> FeatureMaps:
        # A copy, since the model may change the tensor in place later.
        return cls(values.detach().clone(), get_gradient_edge(values), read, of_tokens)


@dataclass
class _Call:
    """A module that is running."""

    path: str
    input: Tensor | None
    version: int
    attentions: int = 0  # attentions that have run inside it so far


class Watch(TorchFunctionMode):
    """Watches a forward pass of a model and keeps its last feature maps.

    These are the output of the last convolution with more than one pixel, or a later tensor of the same size. If
    attention follows, they are the tokens that enter the last attention.

    Args:
        images: (N, C, H, W), what the model is given.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self._images, self._whole = images.shape[0], images.shape
        self._height, self._width = images.shape[2:]
        self._grids: list[tuple[int, int]] = []  # output sizes of convolutions, in order
        self._sizes: set[tuple[int, int]] = set()  # sizes of maps with the channels first
        self._counts: set[int] = set()  # numbers of tokens
        self._joined: dict[int, tuple[int, int]] = {}  # number of tokens -> where the grid begins, its length
        self._widths: set[int] = set()  # numbers of channels of tokens
        self._running: list[_Call] = []
        self._maps: Tensor | None = None
        self._pooled = False  # whether maps of that size were pooled since
        self._enter_attention = False  # whether the maps are the input of the last attention
        self._tokens: FeatureMaps | None = None
        self._laid_out: FeatureMaps | None = None  # the tokens from which the maps were made again
        self.unread: str | None = None
        """The layer that works on tokens after the maps that were found, but could not be read as maps itself."""

    @property
    def found(self) -> list[FeatureMaps]:
        """The maps that were found, the best first; the next is used if the logits do not depend on the first."""
        if self._tokens is not None:
            return [self._tokens]
        maps = [] if self._maps is None else [FeatureMaps.of(self._maps, _as_it_is)]
        return maps + ([] if self._laid_out is None else [self._laid_out])

    @contextlib.contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        """Tracks within the block which modules of `model` are running."""
        handles = []
        try:
            for path, module in getattr(model, "named_modules", tuple)():
                handles.append(module.register_forward_pre_hook(self._enters(path), with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(self._leaves, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._running.clear()

    def _enters(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def enter(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            tensor = next((value for value in (*arguments, *options.values()) if isinstance(value, Tensor)), None)
            self._running.append(_Call(path, tensor, -1 if tensor is None else tensor._version))

        return enter

    def _leaves(self, *_: object) -> None:
        if self._running:
            self._running.pop()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function in _JOINS:
            self._note_joined(*args, **kwargs)
        if function in _ATTENTIONS or (function in SOFTMAXES and is_over_tokens(result, *args[1:], **kwargs)):
            self._attended(result)
        if not isinstance(result, Tensor) or not result.requires_grad:
            return result
        if function is F.linear and result.dim() > 2 and result.shape[1:-1].numel() > 1:
            self._counts.add(result.shape[-2])
            self._widths.add(result.shape[-1])
            if self._tokens is None and not self._enter_attention and self.unread is None:
                self.unread = self._where()
        if result.dim() == 4:
            self._note_maps(function, result)
        return result

    def _note_maps(self, function: Callable[..., Any], result: Tensor) -> None:
        size = (result.shape[2], result.shape[3])
        if function in CONVOLUTIONS or function in _POOLS or function in _RESIZES:
            self._sizes.add(size)
        if function in _POOLS and self._maps is not None and size == self._maps.shape[2:]:
            self._pooled = True  # the same size, but no longer the convolution's unit: only a new convolution counts
        if function in CONVOLUTIONS and size != (1, 1):
            self._grids.append(size)
            found, self._pooled = True, False
        else:
            found = (
                self._maps is not None
                and not self._pooled
                and size == self._maps.shape[2:]
                and result.shape[0] == self._images
                # Four dimensions may also be heads: only maps made of tokens have the channels of the tokens.
                and (
                    (self._tokens is None and self.unread is None and not self._enter_attention)
                    or result.shape[1] in {self._maps.shape[1], *self._widths}
                )
            )
        if found:
            self._laid_out = None if function in CONVOLUTIONS else self._tokens or self._laid_out
            self._maps, self._enter_attention, self._tokens, self.unread = result, False, None, None

    def _note_joined(self, tensors: Any, dim: int = 0, **_: object) -> None:
        if not all(isinstance(tensor, Tensor) and tensor.dim() == 3 for tensor in tensors):
            return
        lengths = [tensor.shape[dim] for tensor in tensors]
        grids = {height * width for height, width in self._grids}
        begins = [sum(lengths[:i]) for i, length in enumerate(lengths) if length in grids]
        if len(begins) == 1:
            self._joined[sum(lengths)] = (begins[0], next(length for length in lengths if length in grids))

    def _where(self) -> str:
        call = self._running[-1] if self._running else None
        return f"{call.path!r}" if call and call.path else "the model"

    def _attended(self, weights: Tensor) -> None:
        """Takes the input of the innermost module around this attention whose input can be read as maps."""
        self._tokens, self._enter_attention, self.unread, searching = None, False, self._where(), True
        for call in reversed(self._running):
            call.attentions += 1
            if not searching:
                continue
            if call.attentions > 1:  # another attention came between its input and this one
                searching = False
                continue
            tensor = call.input
            if tensor is None or not tensor.requires_grad or tensor._version != call.version:
                continue
            if isinstance(weights, Tensor) and tensor.shape == weights.shape:  # a module that only wraps the softmax
                continue
            if self._maps is not None and tensor.shape == self._maps.shape:  # attention of a convolutional network
                self._enter_attention, self.unread, searching = True, None, False
                continue
            read = None if tensor.shape == self._whole else self.reading(tensor.shape)
            if read is not None:
                self._tokens, self.unread, searching = FeatureMaps.of(tensor, read, of_tokens=True), None, False

    # -- reading a layer's output as maps ------------------------------------------------------------------------

    def reading(self, shape: torch.Size) -> Reading | None:
        """The function that makes maps of a layer's output of that shape; None if it is not certain."""
        if len(shape) == 4:
            return self._reading_of_maps(shape)
        if len(shape) != 3:
            return None
        if shape[0] == self._images:
            read = self._reading_of_tokens(shape[1])
            if read is not None:
                return read
        if shape[1] == self._images:
            read = self._reading_of_tokens(shape[0])
            if read is not None:
                return lambda values: read(values.transpose(0, 1))
        return None

    def _reading_of_tokens(self, count: int) -> Reading | None:
        begin, length = self._joined.get(count, (0, count))
        size = next((size for size in self._halved() if size[0] * size[1] == length), None)
        if size is None:
            return None
        return lambda values: values[:, begin : begin + length].transpose(1, 2).unflatten(2, size)

    def _reading_of_maps(self, shape: torch.Size) -> Reading | None:
        images, *sides = shape
        if images != self._images:
            return None
        first, last = (sides[1], sides[2]), (sides[0], sides[1])
        attention = first[0] == first[1] and first[0] in self._counts and first not in self._sizes
        channels_first = not attention and (first in self._sizes or self._has_the_pictures_shape(first))
        channels_last = last in self._halved() and last != (1, 1)
        if channels_first and channels_last and first not in self._sizes:
            return None
        if channels_first:
            return _as_it_is
        return (lambda values: values.permute(0, 3, 1, 2)) if channels_last else None

    def _halved(self) -> list[tuple[int, int]]:
        """The output sizes of the model's convolutions, the latest first, and their halves, as of patch merging."""
        grids = [*reversed(self._grids)]
        for _ in range(5):
            grids += [(-(-height // 2), -(-width // 2)) for height, width in grids[-len(self._grids) :]]
        return grids

    def _has_the_pictures_shape(self, size: tuple[int, int]) -> bool:
        longer = max(self._height, self._width)
        return size != (1, 1) and abs(size[0] * self._width - size[1] * self._height) <= longer


def _as_it_is(values: Tensor) -> Tensor:
    return values


def is_over_tokens(result: Any, dim: int | None = None, *_: object, **options: Any) -> bool:
    """Whether a softmax belongs to attention: it runs over the last of at least three dimensions."""
    dim = options.get("dim", dim)
    return isinstance(result, Tensor) and result.dim() > 2 and result.shape[-1] > 1 and dim in (-1, result.dim() - 1)
