"""What every test relies on: generated inputs that are the same in every run, and random numbers of the test's own."""

from __future__ import annotations

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=30, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)
