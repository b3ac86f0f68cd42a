"""The filter's answer in several settings of a processor's libraries, by how its stop is chosen.

    python -m bench.filter_settings [--photographs cat rocket flower] [--ways "levels=256"] [--only "oneDNN: SSE4.1"]

The gradient's 1-channel maps of bundled photographs, as the demonstration filters them, are made once; then every
setting filters them in a process of its own (see bench.settings). docs/same-answers.md has the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import apem_fast as af
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from bench.settings import ROOT, SETTINGS, Setting
from bench.timing import print_table, write_json

WAYS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "patience=256": {"patience": 256},
    "min_drop=1": {"min_drop": 1.0},
    'against="start"': {"against": "start"},
    "levels=256": {"levels": 256},
}
COMPARED = ("as it is", "2 threads", "oneDNN: SSE4.1", "MKL: compatible", "the oldest of each, 2 threads")


def prepared(folder: Path, names: list[str]) -> None:
    network = load_network("efficientnet-lite0")
    chosen = [photograph for photograph in bundled_photographs() if photograph.name in names]
    images = network.normalised(torch.stack([network.pixels(photograph.open()) for photograph in chosen]))
    maps = af.relevance_map(af.explain.Gradient()(network.model, images))
    torch.save(([photograph.name for photograph in chosen], images, maps), folder / "maps.pt")


def filtered(folder: Path, ways: list[str]) -> dict[str, list[Any]]:
    """What this process answers: of each way and photograph, the share removed, the level, the score and the margin."""
    names, images, maps = torch.load(folder / "maps.pt")
    model = load_network("efficientnet-lite0").model
    answers: dict[str, list[Any]] = {}
    for way, options in ((way, WAYS[way]) for way in ways):
        result = af.filter_relevance(model, images, maps, **options)
        columns = (result.removed_share, result.levels_removed, result.score_after, result.deciding_margin)
        for name, values in zip(names, zip(*(column.tolist() for column in columns), strict=True), strict=True):
            answers[f"{way} | {name}"] = list(values)
            print(way, name, *values, file=sys.stderr, flush=True)
    return answers


def of_setting(setting: Setting, folder: Path, ways: list[str]) -> dict[str, list[Any]]:
    environment = {**setting.environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    child = [sys.executable, "-m", "bench.filter_settings", "--child", str(folder), "--ways", *ways]
    done = subprocess.run(child, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", nargs="+", default=["cat", "rocket", "flower"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--only", nargs="+", default=COMPARED, choices=[s.name for s in SETTINGS if not s.options])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(filtered(arguments.child, arguments.ways)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(folder, arguments.photographs)
        answers = {s.name: of_setting(s, folder, arguments.ways) for s in SETTINGS if s.name in arguments.only}
    first, *others = answers
    rows = [
        {
            "way | photograph": key,
            "removed": value[0],
            "level": value[1],
            "score": value[2],
            "deciding margin": value[3],
            "settings alike": 1 + sum(answers[other][key][:3] == value[:3] for other in others),
        }
        for key, value in answers[first].items()
    ]
    print_table(f"The filter in {len(answers)} settings", rows)
    write_json("filter_settings", answers)


if __name__ == "__main__":
    main()
