"""The table of cuda_profile.sh, from what Nsight Compute wrote (--csv --page raw --print-units base).

python -m bench.profiled FILE
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

from bench.timing import print_table

COLUMNS = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "memory, % of peak": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "MB read": ("dram__bytes_read.sum", 1e-6),
    "MB written": ("dram__bytes_write.sum", 1e-6),
    "cache hits, %": ("lts__t_sector_hit_rate.pct", 1),
    "issue slots, %": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1),
    "warps, %": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1),
    "registers": ("launch__registers_per_thread", 1),
}


def kernel_of(name: str) -> str:
    """`perturb_probes_kernel float, signed char, float`, of the whole demangled name."""
    function, types = re.search(r"\w+_kernel", name), re.search(r"Arguments<(.*)>\)$", name)
    return f"{function[0] if function else name} {types[1] if types else ''}".replace("c10::", "")


def number(value: str | None) -> float | None:
    try:
        return float((value or "").replace(",", ""))
    except ValueError:
        return None


def rows(text: str) -> list[dict[str, object]]:
    found = []
    for line in csv.DictReader(line for line in text.splitlines() if line.startswith('"')):
        if line["ID"]:  # not the row of units
            values = {name: (number(line.get(metric)), factor) for name, (metric, factor) in COLUMNS.items()}
            scaled = {name: None if value is None else value * factor for name, (value, factor) in values.items()}
            found.append({"kernel": kernel_of(line["Kernel Name"]), "grid": line.get("Grid Size"), **scaled})
    return found


def main() -> None:
    found = rows(Path(sys.argv[1]).read_text())
    if not found:
        raise SystemExit("no kernel was profiled")
    print_table("Kernels", found)


if __name__ == "__main__":
    main()
