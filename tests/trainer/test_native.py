"""Kernels for maps in bf16: which processors have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shards.io.compile_c import NotHere
from trainer import native
from trainer.networks import planes
from trainer.speed import missing_kernels

SOURCE = Path(planes.__file__).with_name("tiles_3x3.c")


def test_a_processor_without_the_instructions_is_told(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(NotHere, match="no AVX512-BF16"):
        native.load(SOURCE)


@pytest.mark.skipif(bool(missing_kernels()), reason=missing_kernels())
def test_a_processor_with_them_gets_the_kernels():
    assert native.load(SOURCE).tiles_in
