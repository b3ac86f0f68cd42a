"""What every test relies on: generated inputs that are the same in every run, and random numbers of the test's own."""

from __future__ import annotations

import math
import os

import hypothesis
import pytest
import torch

from apem_fast.probing.trial import Trial

EXAMPLES = os.environ.get("APEM_FAST_EXAMPLES")  # more of them, by a seed: `python -m reliability --only hypothesis`
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=EXAMPLES is None, max_examples=int(EXAMPLES or 30), database=None
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture
def screened_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low precision is used from the first probe to the last: whether it pays on this machine is left out."""
    monkeypatch.setattr("apem_fast.metric.evaluator.Trial", lambda clock_is_free: Trial(clock_is_free=False))
    monkeypatch.setattr("apem_fast.probing.screening.ON_TRIAL", math.inf)
