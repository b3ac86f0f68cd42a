"""The README's first example runs as it is pasted."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_runs_as_pasted(capsys):
    first = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    exec(compile(first, str(README), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Gradient", "Grad-CAM", "Random"]
    # What the README says of the photograph of the cat.
    assert "[4.0," in lines[0] and "[0.0," in lines[1] and "[0.0," in lines[2]


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8")):
        assert (README.parent / target).exists(), target
