"""Converts a model's weights to the memory format of its batches while a search runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Parameters laid out by somebody now, by their id: by how many, the storage that is the user's, and the parameter, held
# so that no other can have its id. Two searches of one model may overlap, and the second must not take the first one's
# copies for the user's.
_TAKEN: dict[int, tuple[int, Tensor, nn.Parameter]] = {}


def _take(parameter: nn.Parameter) -> Tensor:
    count, own, _ = _TAKEN.get(id(parameter), (0, parameter.data, parameter))
    _TAKEN[id(parameter)] = count + 1, own, parameter
    return own


def _leave(parameter: nn.Parameter) -> None:
    count, own, _ = _TAKEN.pop(id(parameter))
    if count > 1:
        _TAKEN[id(parameter)] = count - 1, own, parameter


class WeightLayouts:
    """Exchanges the storage of four-dimensional parameters for copies in another memory format, and restores it.

    A batch in channels-last is fast only if the weights are in channels-last too. The copies are kept from one search
    to the next, so that captured graphs, which use their addresses, stay valid.
    """

    def __init__(self, model: object):
        self._model = model
        self._own: list[tuple[nn.Parameter, Tensor]] = []
        self._copies: dict[torch.memory_format, list[Tensor]] = {}
        self._places: list[tuple[object, ...]] = []
        self._held: list[Tensor] = []  # keeps those tensors alive, so that nothing else comes to lie at their addresses
        self._format: torch.memory_format | None = None

    def begin(self) -> bool:
        """Notes which storage is the user's; whether all is as it was at the last search."""
        if not isinstance(self._model, nn.Module):  # a function
            return True
        self._release()
        self._own = [(parameter, _take(parameter)) for parameter in self._model.parameters() if parameter.dim() == 4]
        own = {id(parameter): storage for parameter, storage in self._own}
        tensors = [own.get(id(t), t) for t in (*self._model.parameters(), *self._model.buffers())]
        places: list[tuple[object, ...]] = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in tensors]
        same = places == self._places and self._copies_are_true()
        if not same:
            self._copies.clear()
        self._places, self._held = places, [t.detach() for t in tensors]
        return same

    def _copies_are_true(self) -> bool:
        """Whether the weights have the values that were copied; they lie where they lay."""
        equal = [(copy == own).all() for copies in self._copies.values() for copy, (_, own) in zip(copies, self._own)]
        # All are read at once: a GPU is not to wait for each. A model may lie on several.
        together = [one.to(equal[0].device, non_blocking=True) for one in equal]
        return not together or bool(torch.stack(together).all())

    def use(self, memory_format: torch.memory_format | None) -> None:
        """Converts the weights to a format, or for None to that of the user."""
        if memory_format is self._format:
            return
        self._format = memory_format
        if memory_format is not None and memory_format not in self._copies:
            self._copies[memory_format] = [own.contiguous(memory_format=memory_format) for _, own in self._own]
        for i, (parameter, own) in enumerate(self._own):
            parameter.data = own if memory_format is None else self._copies[memory_format][i]

    @contextmanager
    def as_given(self) -> Iterator[None]:
        """Within the block, the weights have the user's own format."""
        before = self._format
        self.use(None)
        try:
            yield
        finally:
            self.use(before)

    def end(self) -> None:
        """All is as the user had it, also where another one has yet to end: it computes the same, in that layout."""
        self.use(None)
        self._release()

    def _release(self) -> None:
        for parameter, _ in self._own:
            _leave(parameter)
        self._own = []
