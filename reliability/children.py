"""A command in a child process that is forked with everything imported, so that hundreds of them are affordable, and
the file operations at which the child is ended or told that the disk has failed."""

from __future__ import annotations

import ctypes
import errno
import importlib
import io
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

OPERATIONS = ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (io, "open"))
REFUSED, BROKEN = 2, 3  # exit codes: an error of one sentence, and anything else
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Fault:
    """What happens at the N-th file operation on the folder: "kill before", "kill after", "ENOSPC", "EROFS", or
    "vanish", as if somebody deleted the folder."""

    kind: str
    at: int


def start(work: Callable[[], None], folder: Path, fault: Fault | None = None, offline: bool = False) -> int:
    """Forks a child that works and ends; returns its process id. What it raised is in error.txt beside the folder."""
    said = folder.parent / "error.txt"
    said.unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if offline and ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
            os._exit(77)
        if fault is not None:
            _intercept(fault, folder)
        work()
        code = 0
    except BaseException as error:
        refused = isinstance(error, (ValueError, FileNotFoundError)) and bool(str(error))
        code = REFUSED if refused else BROKEN
        os_open = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.write(os_open, (str(error) if refused else traceback.format_exc()).encode(errors="replace"))
    finally:
        os._exit(code)


def preload(works: Iterable[Callable[[], None]], folder: Path) -> None:
    """Imports here what each piece of work imports on its way, so that no child has to. A child finds out which modules
    that are: after a gradient was computed in this process, none could be in those that it forks."""
    listed = folder / "modules.txt"

    def list_modules(work: Callable[[], None]) -> None:
        work()
        listed.write_text("\n".join(sys.modules), "utf-8")

    for work in works:
        if finish(partial(list_modules, work), folder / "place") != 0:
            raise RuntimeError(said(folder / "place"))
        for name in listed.read_text("utf-8").split():
            with suppress(Exception):  # some are only there within others
                importlib.import_module(name)


def wait(child: int) -> int:
    """The exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(work: Callable[[], None], folder: Path, fault: Fault | None = None, offline: bool = False) -> int:
    return wait(start(work, folder, fault, offline))


def kill_after(work: Callable[[], None], folder: Path, seconds: float) -> int:
    child = start(work, folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def _intercept(fault: Fault, folder: Path) -> None:
    """Counts the operations that concern the folder: those that write, since a reader leaves nothing behind."""
    state = {"left": fault.at}
    for module, name in OPERATIONS:
        setattr(module, name, _failing(getattr(module, name), name, fault, folder, state))


def _failing(
    operation: Callable[..., Any], name: str, fault: Fault, folder: Path, state: dict[str, int]
) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        if not _concerns(name, arguments, options, folder):
            return operation(*arguments, **options)
        state["left"] -= 1
        if state["left"] == 0:
            if fault.kind == "kill before":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.kind == "vanish":
                shutil.rmtree(folder, ignore_errors=True)
            elif fault.kind in ("ENOSPC", "EROFS"):
                code = getattr(errno, fault.kind)
                raise OSError(code, os.strerror(code))
        result = operation(*arguments, **options)
        if state["left"] == 0 and fault.kind == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def _concerns(name: str, arguments: tuple[Any, ...], options: dict[str, Any], folder: Path) -> bool:
    if name == "fsync":
        return True
    if not isinstance(arguments[0], (str, os.PathLike)) or not os.fspath(arguments[0]).startswith(str(folder)):
        return False
    mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
    return name != "open" or any(sign in str(mode) for sign in "wxa+")


def said(folder: Path) -> str:
    """What the last child raised."""
    path = folder.parent / "error.txt"
    return path.read_text("utf-8", "replace") if path.exists() else ""


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
