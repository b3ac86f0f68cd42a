"""Tensors that stay where they lie from one search to the next, so that captured graphs can go on reading them.

A graph knows what it reads by its address. The images and maps of the next search are therefore copied to where those
of the last one lay: some .3 ms a gigabyte, where a new capture takes .15 s.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apem_fast.running.batching import is_out_of_memory

LARGEST = 2**31  # bytes of one search that are copied; the search of more takes so long that captures do not count

_NUMBERS = itertools.count()


def laid_out(tensors: Mapping[str, Tensor], memory_format: torch.memory_format) -> dict[str, Tensor]:
    """These tensors, images and maps among them in that format."""
    return {name: t.contiguous(memory_format=_format_for(t, memory_format)) for name, t in tensors.items()}


def _format_for(tensor: Tensor, memory_format: torch.memory_format) -> torch.memory_format:
    return memory_format if tensor.dim() == 4 else torch.contiguous_format


@dataclass
class _Place:
    buffer: Tensor
    number: int  # no other place ever has it
    filled: bool = False  # with what is the owner's


class Places:
    """A place for each name, shape of a row, type and memory format, as long as the longest that lay there."""

    def __init__(self) -> None:
        self._places: dict[tuple[Hashable, ...], _Place] = {}
        self._owner: object = None
        self._too_much: dict[torch.memory_format, tuple[dict[str, Tensor], int]] = {}  # the owner's, not copied
        self._read_by: set[torch.cuda.Stream] = set()

    def put(
        self, tensors: Mapping[str, Tensor], memory_format: torch.memory_format, owner: object
    ) -> tuple[dict[str, Tensor], Hashable]:
        """These tensors in their places, and a key that is equal as long as the places are the same.

        Rows beyond theirs hold what lay there before. What belonged to another owner is not to be read any more. Where
        it is too much they stay where they are, under a key that no others will have.

        Args:
            owner: stands for these tensors; what it has put already is not copied again.
        """
        if owner is not self._owner:
            self._owner = owner
            self._too_much.clear()
            for place in self._places.values():
                place.filled = False
            self._wait_for_readers(next(iter(tensors.values())).device)
        if memory_format in self._too_much or sum(t.nbytes for t in tensors.values()) > LARGEST:
            return self._left(tensors, memory_format)
        try:
            with torch.no_grad():
                places = {name: self._put(name, t, _format_for(t, memory_format)) for name, t in tensors.items()}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.forget()
            self._owner = owner
            return self._left(tensors, memory_format)
        return {name: p.buffer for name, p in places.items()}, tuple((name, p.number) for name, p in places.items())

    def belong_to(self, owner: object) -> bool:
        """Whether it was the last to put something."""
        return owner is self._owner

    def are_read_by(self, stream: torch.cuda.Stream) -> None:
        """That stream has been asked to read what lies here."""
        self._read_by.add(stream)

    def let_go(self) -> None:
        """Forgets what was left where it lay."""
        self._too_much.clear()

    def forget(self) -> None:
        """Gives the memory back."""
        self._places.clear()
        self._too_much.clear()
        self._owner = None

    def _left(
        self, tensors: Mapping[str, Tensor], memory_format: torch.memory_format
    ) -> tuple[dict[str, Tensor], Hashable]:
        if memory_format not in self._too_much:
            self._too_much[memory_format] = laid_out(tensors, memory_format), next(_NUMBERS)
        return self._too_much[memory_format]

    def _put(self, name: str, tensor: Tensor, memory_format: torch.memory_format) -> _Place:
        key = name, tensor.shape[1:], tensor.dtype, memory_format
        place = self._places.get(key)
        if place is None or len(place.buffer) < len(tensor):
            self._places.pop(key, None)
            buffer = torch.empty_like(tensor, memory_format=memory_format)
            self._places[key] = place = _Place(buffer, next(_NUMBERS))
        if not place.filled:
            place.buffer[: len(tensor)].copy_(tensor)
            place.filled = True
        return place

    def _wait_for_readers(self, device: torch.device) -> None:
        here = torch.cuda.current_stream(device)
        for stream in self._read_by - {here}:
            here.wait_stream(stream)
        self._read_by.clear()
