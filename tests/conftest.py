"""What all tests share: every test starts from the same random state."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""For torch, here and in processes that tests start: with networks so small, threads wait for each other."""


@pytest.fixture(autouse=True)
def seeded_random_numbers() -> None:
    """Seed the global generators; torch's only where a test module brought torch along."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(0)
