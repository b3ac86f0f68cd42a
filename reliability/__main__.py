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

from reliability import flips, kills, leaks, models
from reliability.commands import preload
from reliability.tables import Part

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: made by python -m reliability -->", "<!-- end of figures -->"

# What forks comes first: after a gradient was computed in this process, none can be in a child of it.
PARTS: dict[str, tuple[float, Callable[[Path, float, int], Part]]] = {
    "flips": (0.15, lambda folder, seconds, seed: flips.run(folder, seconds, seed)),
    "kills": (0.5, lambda folder, seconds, seed: kills.run(folder, seconds, seed)),
    "disks": (0.15, lambda folder, seconds, seed: kills.run_faults(folder, seconds, seed)),
    "leaks": (0.1, lambda folder, seconds, seed: leaks.run(folder, seconds, seed)),
    "models": (0.1, lambda folder, seconds, seed: models.run(seconds, seed)),
}


def write_page(parts: list[Part], seconds: float, seed: int) -> None:
    text = PAGE.read_text("utf-8")
    head = f"Made with torch {torch.__version__}, seed {seed}, in {seconds / 60:.1f} minutes.\n"
    figures = "\n".join([BEGIN, "", head, *(part.markdown() for part in parts), END])
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: figures, text, flags=re.DOTALL), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("--seconds", type=float, default=840.0, help="for all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts; the page is then left as it is")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began, parts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        preload(Path(folder))
    for name, (share, part) in PARTS.items():
        if chosen.only and name not in chosen.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            parts.append(part(Path(folder), chosen.seconds * share, chosen.seed))
        print(parts[-1].markdown(), flush=True)
    if not chosen.only:
        write_page(parts, time.monotonic() - began, chosen.seed)
    bad = {part.title: part.bad for part in parts if part.bad}
    wrong = "; ".join(f"{title}: {count} that must not be" for title, count in bad.items())
    print(wrong or "Nothing lost, nothing silent.")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
