"""SIGKILL at random moments and at file operations; failing disks and folders that vanish. After a restart no row is
lost, doubled or changed."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from reliability import children
from reliability.children import BROKEN, Fault
from reliability.commands import COMMANDS, Command, write_images
from reliability.tables import Part

Rows = list[tuple[Any, ...]]


def differences(rows: Rows, expected: Rows) -> tuple[int, int, int]:
    """How many rows are lost, there twice, or other ones."""
    ours, theirs = Counter(rows), Counter(expected)
    missing, surplus = theirs - ours, ours - theirs
    doubled = sum(count for row, count in surplus.items() if row in theirs)
    changed = min(missing.total(), surplus.total() - doubled)
    return missing.total() - changed, doubled, changed


class _Bench:
    """A command that was once left alone: its rows, its duration, and how many file operations it takes."""

    def __init__(self, command: Command, folder: Path):
        self.command, self.folder, self.images = command, folder, write_images(folder / "images")
        self.place = folder / "place"
        began = time.monotonic()
        if self.again() != 0:
            raise RuntimeError(children.said(self.place))
        self.seconds = time.monotonic() - began
        self.expected = command.rows(self.place)
        self.operations = self._count()

    def work(self) -> None:
        self.command.work(self.images, self.place)

    def again(self, fault: Fault | None = None) -> int:
        return children.finish(self.work, self.place, fault)

    def clear(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def _count(self) -> int:
        """The last operation at which a kill still comes."""
        least, most = 1, 2
        while self._reached(most):
            least, most = most, 2 * most
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self._reached(middle) else (least, middle)
        return least

    def _reached(self, at: int) -> bool:
        self.clear()
        return self.again(Fault("kill before", at)) < 0

    def rows(self) -> list[tuple[Any, ...]]:
        """What the folder holds; nothing where it cannot be read."""
        try:
            return self.command.rows(self.place)
        except ValueError:
            return []

    def restarted(self) -> tuple[bool, tuple[int, int, int]]:
        """Whether the same command comes to its end now, and how its rows differ."""
        if self.again() != 0:
            return False, (len(self.expected), 0, 0)
        return True, differences(self.rows(), self.expected)


def run(folder: Path, seconds: float, seed: int, most: int = 200, commands: tuple[Command, ...] = COMMANDS) -> Part:
    draw = random.Random(seed)
    rows: list[tuple[Any, ...]] = []
    bad = 0
    for command in commands:
        bench = _Bench(command, folder / command.name)
        until = time.monotonic() + seconds / len(commands)
        for how in ("a random moment", "a file operation"):
            share = time.monotonic() + (until - time.monotonic()) / (2 if how == "a random moment" else 1)
            kills = restarts = stuck = 0
            wrong = [0, 0, 0]
            bench.clear()
            while kills < most and time.monotonic() < share:
                for _ in range(draw.randint(1, 3)):  # a restarted one may be killed again
                    kills += _killed(bench, how, draw)
                done, differ = bench.restarted()
                restarts += 1
                stuck += not done
                wrong = [a + b for a, b in zip(wrong, differ)]
                bench.clear()
            rows.append((command.name, how, kills, restarts, *wrong, stuck))
            bad += sum(wrong) + stuck
    return Part(
        "Kills",
        "SIGKILL, up to three times in a row, then the same command once more, undisturbed. Its rows (numbers, "
        "pictures and weights, bit for bit) are compared with those of a command that was left alone.",
        ("command", "killed at", "kills", "restarts", "rows lost", "doubled", "changed", "not finished"),
        rows,
        bad,
    )


def _killed(bench: _Bench, how: str, draw: random.Random) -> bool:
    if how == "a random moment":
        return children.kill_after(bench.work, bench.place, draw.uniform(0, bench.seconds)) < 0
    kind = draw.choice(("kill before", "kill after"))
    return bench.again(Fault(kind, draw.randint(1, bench.operations))) < 0


def run_faults(
    folder: Path, seconds: float, seed: int, most: int = 60, commands: tuple[Command, ...] = COMMANDS
) -> Part:
    """Disks that are full or read-only, and folders that vanish, at a file operation of each command."""
    draw = random.Random(seed)
    rows: list[tuple[Any, ...]] = []
    bad = 0
    for command in commands:
        bench = _Bench(command, folder / command.name)
        until = time.monotonic() + seconds / len(commands)
        for number, kind in enumerate(("ENOSPC", "EROFS", "vanish")):
            share = time.monotonic() + (until - time.monotonic()) / (3 - number)
            counts, wrong, stuck = Counter[int](), [0, 0, 0], 0
            while counts.total() < most and time.monotonic() < share:
                bench.clear()
                code = bench.again(Fault(kind, draw.randint(1, bench.operations)))
                if code == BROKEN:
                    children.show(children.said(bench.place))
                counts[code] += 1
                if code == 0:  # it must have its rows then
                    differ = differences(bench.rows(), bench.expected)
                    wrong = [a + b for a, b in zip(wrong, differ)]
                done, differ = bench.restarted()
                stuck += not done
                wrong = [a + b for a, b in zip(wrong, differ)]
            broken = counts.total() - counts[0] - counts[children.REFUSED]
            rows.append((command.name, kind, counts.total(), counts[0], counts[2], broken, *wrong, stuck))
            bad += broken + sum(wrong) + stuck
    return Part(
        "Failing disks",
        "A file operation fails as on a full or a read-only disk, or the folder is deleted just before it; then the "
        "same command once more. Ending in success, it must have every row.",
        (
            "command",
            "fault",
            "faults",
            "success",
            "one sentence",
            "traceback",
            "lost",
            "doubled",
            "changed",
            "unfinished",
        ),
        rows,
        bad,
    )
