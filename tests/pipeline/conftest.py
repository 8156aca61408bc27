"""Photos made of smooth noise: as varied as real ones, and the same on every machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards import png


def make_photo(seed: int, *, height: int = 300, width: int = 420) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    fine = rng.integers(-12, 13, smooth.shape)
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def five_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of several sizes and formats, encoded once."""
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
    """The five photos, to do with as a test likes."""
    return Path(shutil.copytree(five_photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def whole(five_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the five photos, made in one go: to compare with, and to copy."""
    from tests.pipeline.test_prepare import make

    out = tmp_path_factory.mktemp("whole") / "out"
    make(five_photos, out)
    return out
