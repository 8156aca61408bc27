"""What all tests share: every test starts from the same random state."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest

PRETENDED_FEATURES = os.environ.get("USRGAN_TEST_CPU_FEATURES", "")
"""Processor features that torch is made to report, such as "avx512_bf16,amx_bf16": `make test-portable`
runs bf16 code paths with them on a processor without bf16, where torch computes the same more slowly."""

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


@pytest.fixture(autouse=PRETENDED_FEATURES != "")
def pretended_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the features named by the environment to those that torch reports of this processor."""
    import torch

    features = torch.cpu.get_capabilities() | dict.fromkeys(PRETENDED_FEATURES.split(","), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(features))
