"""Search settings compared without a model: share of rays missed, and probes a ray.

    python -m bench.policies [--rays 4000] [--keep build/census]

On the scripted families of `margin_curves`, whose curves have 1,024 steps, and on every scan that `bench.census` kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apem_fast.search import policy_of
from bench.margin_curves import FAMILIES, Rays, family, scanned, search
from bench.timing import print_table, write_json

NAMES = ("fast", "isolate", "careful")


def row(name: str, rays: Rays) -> dict[str, Any]:
    answer: dict[str, Any] = {"rays": name, "count": len(rays)}
    for policy in NAMES:
        found = search(policy_of(policy), rays)
        answer[f"{policy}: missed, %"] = 100 * float(found.missed.mean())
        answer[f"{policy}: probes"] = float(found.probes.mean())
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=4000, help="scripted curves of each family")
    parser.add_argument("--keep", type=Path, default=Path("build/census"), help="where `bench.census` keeps its scans")
    arguments = parser.parse_args()
    rows = [row(name, family(name, arguments.rays)) for name in FAMILIES]
    files: dict[str, list[Path]] = {}
    for path in sorted(arguments.keep.glob("*.npz")):
        if not path.name.endswith(".part.npz"):
            files.setdefault(path.name.split(".")[0], []).append(path)
    rows += [row(f"scanned: {name.replace('-', ' ')}", scanned(paths)) for name, paths in files.items()]
    print_table("Searches on margin curves", rows)
    write_json("policies", rows)


if __name__ == "__main__":
    main()
