"""Fixtures of all tests: a fixed random state and five small photos."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

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


@pytest.fixture(scope="session")
def five_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of several sizes and formats, encoded once; the same on every machine."""
    import cv2

    from shards.format import png
    from tests.pipeline.support import make_photo

    folder = tmp_path_factory.mktemp("five") / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "more/c.png")):
        photo = make_photo(number, height=260 + 37 * number, width=300 + 53 * number)
        (folder / name).write_bytes(png.encode_rgb(photo))
    bgr = np.ascontiguousarray(make_photo(7)[..., ::-1])
    (folder / "d.jpg").write_bytes(cv2.imencode(".jpg", bgr)[1].tobytes())
    (folder / "e.webp").write_bytes(
        cv2.imencode(".webp", bgr[:200], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    )
    return folder


@pytest.fixture
def photos(five_photos: Path, tmp_path: Path) -> Path:
    """Return a copy of the five photos that a test may change."""
    return Path(shutil.copytree(five_photos, tmp_path / "photos"))
