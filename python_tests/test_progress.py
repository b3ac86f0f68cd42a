"""`progress=True` writes one line on standard error, over itself; anything that is no function is refused at once."""

from __future__ import annotations

import pytest
import torch
from networks import images_and_maps, small_network

import apem_fast as af
from apem_fast.progress import ProgressLine

MODEL = small_network()
IMAGES, MAPS = images_and_maps(2)
SHORT = {"max_epsilon": 2.0}
LONG = {
    "apem": lambda progress: af.apem(MODEL, IMAGES, MAPS, progress=progress, **SHORT),
    "minimum_epsilon": lambda progress: af.minimum_epsilon(
        MODEL, IMAGES, MAPS.expand(IMAGES.shape), progress=progress, **SHORT
    ),
    "apem_norm": lambda progress: af.apem_norm(MODEL, IMAGES, MAPS, shuffles=2, progress=progress, **SHORT),
    "filter_relevance": lambda progress: af.filter_relevance(MODEL, IMAGES, MAPS, levels=3, progress=progress, **SHORT),
    "Gradient": lambda progress: af.explain.Gradient()(MODEL, IMAGES, progress=progress),
    "SmoothGrad": lambda progress: af.explain.SmoothGrad(samples=2)(MODEL, IMAGES, progress=progress),
    "selectivity": lambda progress: af.selectivity(MODEL, IMAGES, MAPS, progress=progress),
    "continuity": lambda progress: af.continuity(MODEL, IMAGES, af.explain.Gradient(), progress=progress),
    "insertion": lambda progress: af.measures.insertion(MODEL, IMAGES, MAPS, progress=progress),
    "flip_fraction": lambda progress: af.measures.flip_fraction(MODEL, IMAGES, MAPS, progress=progress),
}


@pytest.mark.parametrize("name", LONG)
def test_true_writes_a_line(name, capsys):
    silent = LONG[name](None)
    assert capsys.readouterr() == ("", "")
    loud = LONG[name](True)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("\r") and err.endswith("\n") and " of " in err
    assert torch.equal(loud, silent) if isinstance(loud, torch.Tensor) else loud == silent
    with pytest.raises(TypeError, match="progress must be a function, True or None"):
        LONG[name]("yes")


def test_the_line_is_overwritten_and_not_too_often(capsys, monkeypatch):
    times = iter([0.0, 0.1, 0.3, 0.35])
    monkeypatch.setattr("apem_fast.progress.time.monotonic", lambda: next(times))
    line = ProgressLine()
    for done in (1000, 1001, 1002, 4000):
        line(done, 4000, 7 * done)
    assert capsys.readouterr().err == (
        "\r1,000 of 4,000, 7,000 probes\r1,002 of 4,000, 7,014 probes\r4,000 of 4,000, 28,000 probes\n"
    )
