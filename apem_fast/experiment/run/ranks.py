"""A run on many processes, as torchrun starts them: this process's rank, and its communication with the others.

    torchrun --nproc-per-node 4 -m apem_fast evaluate --output RUN ...

Results are exchanged through the run's folder, which all processes must see. The processes only tell each other what is
to be done and that it is done. A process that dies closes its connections, so the others notice at once.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=60)
"""How long to wait for a process whose share takes longer. A dead one is noticed at once."""


class RankFailed(ValueError):
    """This process, one of several, could not do its share."""


def rank_of_process() -> tuple[int, int]:
    """(rank, number of processes), as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class OtherRankFailed(ValueError):
    """Another process ended before its share was done; that process says why."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Args:
        rank: of this one.
        count: of all.
        group: of `torch.distributed`; None for a single process.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the first process, which prints, and writes the files of the whole run."""
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """This process's items: every `count`-th."""
        return items[self.rank :: self.count]

    def device(self, name: str) -> str:
        """The device of this process: "cuda" is its own GPU."""
        local = os.environ.get("LOCAL_RANK")
        if name != "cuda" or self.count == 1 or local is None:
            return name
        return f"cuda:{int(local) % torch.cuda.device_count()}"

    def all_do(self, task: Callable[[], T]) -> T:
        """The result of `task` in this process, once it has succeeded in all processes.

        Raises:
            ValueError: it failed somewhere; the first process raises the sentence of the first that failed.
        """
        if self.count == 1:
            return task()
        failure: Exception | None = None
        result = None
        try:
            result = task()
        except (ValueError, FileNotFoundError) as error:
            failure = error
        sentences = self._gather(None if failure is None else str(failure))
        self._raise_first(sentences, failure)
        return result  # type: ignore[return-value]

    def first_does(self, task: Callable[[], T]) -> T:
        """The result of `task` in the first process, sent to all."""
        if self.count == 1:
            return task()
        failure: Exception | None = None
        result: Any = None
        if self.first:
            try:
                result = task()
            except (ValueError, FileNotFoundError) as error:
                failure = error
        results = self._gather((None if failure is None else str(failure), result))
        sentence, result = results[0]
        self._raise_first([sentence], failure)
        return result

    def each_does(self, work: Callable[[], None], waiting: Callable[[], None]) -> None:
        """Runs each process's own work; returns when all are done.

        Args:
            waiting: called when this process begins to wait for others.

        Raises:
            RankFailed: this process failed; the message says which one it is.
        """
        try:
            work()
        except ValueError as error:
            if self.count > 1:
                raise RankFailed(f"process {self.rank} of {self.count}: {error}") from error
            raise
        if self.count > 1:
            waiting()
            self.wait_for_all()

    def wait_for_all(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            self._gather(None)

    def require_one_folder(self, folder: Path) -> None:
        """Raises unless all processes see the same folder: the first one writes a file that all must see.

        Otherwise each of several machines would fill its own folder, which would be noticed only at the end.

        Raises:
            ValueError: a process has another folder of that name.
        """
        if self.count == 1:
            return

        def require_seen() -> None:
            if not sign.exists():
                raise ValueError(
                    f"output: {folder} must be one folder that all processes share (this one has another of that name)"
                )

        sign = self.first_does(lambda: folder / f".shared-{secrets.token_hex(8)}")
        self.first_does(sign.touch)
        try:
            self.all_do(require_seen)
        finally:
            if self.first:
                sign.unlink(missing_ok=True)

    def _raise_first(self, sentences: list[str | None], own: Exception | None) -> None:
        failed = [rank for rank, sentence in enumerate(sentences) if sentence is not None]
        if not failed:
            return
        if self.first and own is None:
            raise ValueError(f"process {failed[0]} of {self.count}: {sentences[failed[0]]}")
        raise own or OtherRankFailed(sentences[failed[0]])

    def _gather(self, value: Any) -> list[Any]:
        from torch import distributed

        values: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(values, value, group=self.group)
        except RuntimeError:
            raise OtherRankFailed(
                f"another of the {self.count} processes ended before its share was done; what is finished is kept, and "
                "the same command goes on from there"
            ) from None
        return values


@contextmanager
def torchrun_ranks() -> Iterator[Ranks]:
    """The processes that torchrun started; without it, this process alone."""
    rank, count = rank_of_process()
    if count == 1:
        yield Ranks()
        return
    from torch import distributed

    joined = distributed.is_initialized()  # by the calling program
    if not joined:
        distributed.init_process_group("gloo", rank=rank, world_size=count)
    try:
        yield Ranks(rank, count, distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
    finally:
        if not joined:
            distributed.destroy_process_group()
