"""Runs every part, prints its table, and writes docs/reliability.md: python -m reliability."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: no threads before

import torch

from reliability import flips, fuzz, hypotheses, kills, leaks, models, mutants
from reliability.commands import preload
from reliability.tables import Part

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: made by python -m reliability -->", "<!-- end of figures -->"

Run = Callable[[Path, float, int], Part]

# What forks comes first: after a gradient was computed in this process, none can be in a child of it. Each has a share
# of the time.
PARTS: dict[str, tuple[float, Run]] = {
    "flips": (0.13, lambda folder, seconds, seed: flips.run(folder, seconds, seed)),
    "kills": (0.43, lambda folder, seconds, seed: kills.run(folder, seconds, seed)),
    "disks": (0.13, lambda folder, seconds, seed: kills.run_faults(folder, seconds, seed)),
    "leaks": (0.08, lambda folder, seconds, seed: leaks.run(folder, seconds, seed)),
    "models": (0.08, lambda folder, seconds, seed: models.run(seconds, seed)),
    "hypothesis": (0.09, lambda folder, seconds, seed: hypotheses.run(folder, seconds, seed)),
    "fuzz": (0.06, lambda folder, seconds, seed: fuzz.run(folder, seconds, seed)),
}
# Only where they are asked for: they do not fit into a quarter of an hour.
LONG: dict[str, tuple[float, Run]] = {
    "mutants": (1.0, lambda folder, seconds, seed: mutants.run(seconds, seed)),
}


def write_page(parts: list[tuple[Part, float]], seed: int) -> None:
    """Puts each part's figures in the place of its earlier ones."""
    text = PAGE.read_text("utf-8")
    head, figures, tail = re.split(f"{re.escape(BEGIN)}|{re.escape(END)}", text)
    sections = {one.split("\n", 1)[0]: one for one in re.split(r"^### ", figures, flags=re.MULTILINE)[1:]}
    for part, seconds in parts:
        made = f"Made with torch {torch.__version__}, seed {seed}, in {seconds / 60:.1f} minutes."
        sections[part.title] = f"{part.markdown().removeprefix('### ').rstrip()}\n\n{made}\n\n"
    PAGE.write_text("".join([head, BEGIN, "\n\n", *(f"### {one}" for one in sections.values()), END, tail]), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("--seconds", type=float, default=840.0, help="for all of these parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *LONG], help="some parts; the page is then left as it is")
    parser.add_argument("--page", action="store_true", help="write the figures of some parts to the page, too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    parts = {name: part for name, part in (PARTS | LONG).items() if name in (chosen.only or PARTS)}
    if not set(parts) <= {"hypothesis", "fuzz", "mutants"}:
        with tempfile.TemporaryDirectory() as folder:
            preload(Path(folder))
    done: list[tuple[Part, float]] = []
    whole = sum(share for share, _ in parts.values())
    for share, part in parts.values():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            figures = part(Path(folder), chosen.seconds * share / whole, chosen.seed)
        done.append((figures, time.monotonic() - began))
        print(figures.markdown(), flush=True)
        if chosen.page or not chosen.only:  # at once: what comes later may fail
            write_page(done[-1:], chosen.seed)
    bad = {part.title: part.bad for part, _ in done if part.bad}
    wrong = "; ".join(f"{title}: {count} that must not be" for title, count in bad.items())
    print(wrong or "Nothing lost, nothing silent.")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
