"""The same answers in every setting of a processor's libraries: how many epsilons, labels and signs differ.

    python -m bench.settings [--images 24] [--records float64 float32] [--only "oneDNN: SSE4.1"] [--own-maps]

Maps are made once, or with --own-maps in each setting; then every setting evaluates the rays in a process of its own,
for a library reads its variables when it is loaded: EfficientNet-Lite0 on photographs and cut-outs of them, and a small
network trained on scikit-learn's digits. Counted is what differs from the first setting. docs/same-answers.md has the
table.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import apem_fast as af
from bench.timing import print_table, write_json


@dataclass(frozen=True)
class Setting:
    """How a process is made to compute as on another machine."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # of the evaluator

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads), **self.variables}


ROOT = Path(__file__).parent.parent
OLDEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
SETTINGS = (
    Setting("as it is"),
    Setting("2 threads", threads=2),
    Setting("ATen: default", {"ATEN_CPU_CAPABILITY": "default"}),
    Setting("ATen: AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}),
    Setting("ATen: AVX-512", {"ATEN_CPU_CAPABILITY": "avx512"}),
    Setting("oneDNN: SSE4.1", {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    Setting("oneDNN: AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Setting("oneDNN: AVX-512", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}),
    Setting("MKL: compatible", {"MKL_CBWR": "COMPATIBLE"}),
    Setting("the oldest of each, 2 threads", OLDEST, threads=2),
    Setting("batches of 3", options={"batch_size": 3}),
    Setting("float16 screen", options={"precision": "float16"}),
)


# -- what is evaluated -------------------------------------------------------------------------------------------


def digits_network(seed: int = 0) -> nn.Module:
    """Trained for a few seconds on scikit-learn's digits, (N, 1, 8, 8) in [0, 1]; what it learns depends on the
    machine, so it is handed on as a file."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
    )
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
    return model.eval()


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def photographs(network: Any, count: int) -> Tensor:
    """The bundled photographs, then quarters of them, as the network wants them."""
    from apem_fast.experiment.inputs.photographs import bundled_photographs

    whole = [photograph.open().convert("RGB") for photograph in bundled_photographs()]
    parts = []
    for image in whole:
        w, h = image.size
        corners = [(x, y) for y in (0, h // 2) for x in (0, w // 2)]
        parts.append([image.crop((x, y, x + w // 2, y + h // 2)) for x, y in corners])
    chosen = [*whole, *(part for parts_of_one in zip(*parts) for part in parts_of_one)][:count]
    return network.normalised(torch.stack([network.pixels(image) for image in chosen]))


def maps_of(model: nn.Module, images: Tensor, methods: tuple[str, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    explained = {name: af.relevance_map(af.explain.explainer_from(name)(model, images)) for name in methods}
    coarse = torch.rand(len(images), 1, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, images.shape[2:], mode="bilinear")
    return {
        **explained,
        "a random map": torch.rand(len(images), 1, *images.shape[2:], generator=generator),
        "s": smooth,
    }


NETWORKS = ("efficientnet-lite0", "digits")
METHODS = ("gradient", "guided-backprop", "lrp")


def prepared(folder: Path, images: int, networks: tuple[str, ...] = NETWORKS) -> dict[str, int]:
    """Writes images, maps and weights there; rays by network."""
    torch.save(digits_network(), folder / "digits.model")
    torch.save(digits()[0][: 4 * images], folder / "digits.images")
    if "efficientnet-lite0" in networks:
        from apem_fast.experiment.inputs.networks import load_network

        torch.save(photographs(load_network("efficientnet-lite0"), images), folder / "efficientnet-lite0.images")
    rays = {}
    for name in networks:
        these = torch.load(folder / f"{name}.images")
        maps = maps_of(network_of(name, folder), these, METHODS)
        torch.save(maps, folder / f"{name}.maps")
        rays[name] = 2 * len(these) * len(maps)
    return rays


def network_of(name: str, folder: Path) -> nn.Module:
    if name == "digits":
        return torch.load(folder / "digits.model", weights_only=False)
    from apem_fast.experiment.inputs.networks import load_network

    return load_network(name).model


# -- one setting -------------------------------------------------------------------------------------------------


def evaluated(folder: Path, into: Path, record: str, options: dict[str, Any], own_maps: bool = False) -> None:
    """What this process answers: epsilons, flips, labels and signs of both networks, and the seconds it took.

    Args:
        folder: what `prepared` wrote.
        into: a file for the answers.
        record: "float64" or "float32".
        options: of the evaluator.
        own_maps: whether the explainers run here too.
    """
    answers: dict[str, Any] = {}
    for name in (network for network in NETWORKS if (folder / f"{network}.maps").exists()):
        images, maps = torch.load(folder / f"{name}.images"), torch.load(folder / f"{name}.maps")
        if own_maps:
            maps = maps_of(network_of(name, folder), images, METHODS)
        grid = {"max_epsilon": 4096.0, "step": 1.0} if name != "digits" else {"max_epsilon": 64.0, "step": 1 / 64}
        begin = time.perf_counter()
        evaluator = af.Evaluator(network_of(name, folder), images, record=record, **grid, **options)
        results = evaluator.apem(maps)
        answers[f"{name} seconds"] = time.perf_counter() - begin
        answers[f"{name} labels"], answers[f"{name} signs"] = evaluator.labels, evaluator.sign_gradient
        columns = [torch.stack([r.epsilon_minus, r.epsilon_plus], dim=1) for r in results.values()]
        answers[f"{name} epsilons"] = torch.cat(columns) / grid["step"]
        assert all(result.record == record for result in results.values())
    np.savez(into, **answers)


def of_setting(setting: Setting, folder: Path, record: str, own_maps: bool = False) -> dict[str, np.ndarray]:
    """The same in a process that is set so."""
    into = folder / "answers.npz"
    child = [sys.executable, "-m", "bench.settings", "--child", str(folder), str(into), record]
    environment = {**setting.environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    own = ["--own-maps"] if own_maps else []
    subprocess.run([*child, repr(setting.options), *own], env=environment, cwd=ROOT, check=True)
    with np.load(into) as answers:
        return dict(answers)


def differences(first: dict[str, np.ndarray], other: dict[str, np.ndarray], network: str) -> dict[str, Any]:
    steps = np.abs(first[f"{network} epsilons"] - other[f"{network} epsilons"])
    return {
        "epsilons": int(np.count_nonzero(steps)),
        "most steps": int(steps.max()),
        "labels": int(np.count_nonzero(first[f"{network} labels"] != other[f"{network} labels"])),
        "signs": int(np.count_nonzero(first[f"{network} signs"] != other[f"{network} signs"])),
    }


# -- all of them -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="photographs and cut-outs; four times as many digits")
    parser.add_argument("--records", nargs="+", default=["float64", "float32"])
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SETTINGS], help="settings beside the first")
    parser.add_argument("--own-maps", action="store_true", help="each setting makes its maps itself")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, into, record, options = arguments.child
        evaluated(Path(folder), Path(into), record, ast.literal_eval(options), arguments.own_maps)
        return
    chosen = [s for s in SETTINGS if s is SETTINGS[0] or not arguments.only or s.name in arguments.only]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rays = prepared(folder, arguments.images)
        print("rays:", ", ".join(f"{network} {count}" for network, count in rays.items()))
        for record in arguments.records:
            first = of_setting(chosen[0], folder, record, arguments.own_maps)
            for setting in chosen[1:]:
                other = of_setting(setting, folder, record, arguments.own_maps)
                for network in rays:
                    row = {"record": record, "setting": setting.name, "network": network}
                    seconds = float(other[f"{network} seconds"])
                    rows.append({**row, **differences(first, other, network), "seconds": round(seconds, 1)})
                    print(rows[-1], flush=True)
    print_table("What differs from the first setting", rows)
    write_json("settings_own_maps" if arguments.own_maps else "settings", {"rays": rays, "rows": rows})
    for record in arguments.records:
        total = sum(row["epsilons"] for row in rows if row["record"] == record)
        print(f"record={record}: {total} of {(len(chosen) - 1) * sum(rays.values())} epsilons differ")


if __name__ == "__main__":
    main()
