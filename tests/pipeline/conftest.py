"""Photos made of smooth noise: as varied as real ones, and the same on every machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.format import png
from tests.pipeline.support import make_photo


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
    from tests.pipeline.support import make

    out = tmp_path_factory.mktemp("whole") / "out"
    make(five_photos, out)
    return out
