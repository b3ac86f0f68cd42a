"""Every part of `make test-reliability`, briefly: no flipped bit is another number, no killed command loses a row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In a process of its own that has computed nothing yet: what it forks can then compute gradients.
BRIEFLY = """
import sys
from pathlib import Path
import torch
from reliability import flips, kills, models
from reliability.commands import COMMANDS, preload
torch.set_num_threads(1)
folder = Path(sys.argv[1])
preload(folder)
training = COMMANDS[2:]
parts = [
    flips.run(folder / "flips", 1e9, seed=1, positions=280),
    kills.run(folder / "kills", 1e9, seed=1, most=3, commands=training),
    kills.run_faults(folder / "disks", 1e9, seed=1, most=2, commands=training),
    models.run(1e9, seed=1, most=1),
]
for part in parts:
    print(part.markdown())
sys.exit(any(part.bad for part in parts))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_every_part_briefly(tmp_path):
    command = [sys.executable, "-c", BRIEFLY, str(tmp_path)]
    came = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert came.returncode == 0, came.stdout + came.stderr
    assert "| all |" in came.stdout and "| siamese train | a file operation |" in came.stdout
