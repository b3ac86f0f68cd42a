"""Thousands of images, one after the other: memory flat, no file, thread or hook left; and no network needed."""

from __future__ import annotations

import gc
import os
import threading
import time
from functools import partial
from pathlib import Path

import torch

import apem_fast as af
from reliability import children
from reliability.commands import COMMANDS, network, write_images
from reliability.tables import Part

GROWTH = 8 * 2**20  # bytes: pages that the allocator keeps
WARM_UP = 20  # images, until everything is imported and every cache is filled
LEAST = 2 * WARM_UP  # images, whatever time there is


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run(folder: Path, seconds: float, seed: int, images: int = 3000) -> Part:
    rows, bad = [_calls(seconds, seed, images)], 0
    bad += (rows[0][2] > GROWTH / 2**20) + sum(rows[0][3:])
    place = write_images(folder / "images")
    offline = []
    for command in COMMANDS:
        target = folder / f"offline {command.name}"
        code = children.finish(partial(command.work, place, target), target, offline=True)
        offline.append(f"{command.name}: {'done' if code == 0 else 'not tried' if code == 77 else 'failed'}")
        bad += code not in (0, 77)
    return Part(
        "Leaks, and no network",
        "Images of a tiny network, each explained, measured and filtered by itself. Wanted: growth of memory after the "
        f"first {WARM_UP} below {GROWTH >> 20} MB, nothing left. In a network namespace without any interface: "
        + "; ".join(offline)
        + ".",
        ("calls", "images", "MB grown", "files left", "threads left", "hooks left"),
        rows,
        bad,
    )


def _calls(seconds: float, seed: int, images: int) -> tuple[str, int, float, int, int, int]:
    model = network().model.eval()
    generator = torch.Generator().manual_seed(seed)
    until = time.monotonic() + seconds
    done, start = 0, (0, 0, 0)
    while done < images and (done < LEAST or time.monotonic() < until):
        image = torch.randn(1, 3, 24, 24, generator=generator)
        attribution = af.explain.Gradient()(model, image)
        relevance = af.relevance_map(attribution)
        af.apem(model, image, relevance, max_epsilon=30.0)
        af.filter_relevance(model, image, relevance, levels=4, max_epsilon=30.0)
        done += 1
        if done == WARM_UP:
            gc.collect()
            start = resident(), open_files(), threading.active_count()
    gc.collect()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    grown = round((resident() - start[0]) / 2**20, 1)
    return "gradient, apem, filter", done, grown, open_files() - start[1], threading.active_count() - start[2], hooks
