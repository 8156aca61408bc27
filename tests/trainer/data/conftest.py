"""Shards whose patches are larger than training needs."""

from __future__ import annotations

import pytest

from shards.format import png
from shards.read.dataset import open_dataset
from tests.pipeline.support import make, make_photo


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Patches of 96 pixels, of which training crops 64."""
    folder = tmp_path_factory.mktemp("larger")
    (folder / "photos").mkdir()
    for number in range(3):
        (folder / f"photos/{number}.png").write_bytes(png.encode_rgb(make_photo(number)))
    make(folder / "photos", folder / "out", "--store-larger", 32)
    return open_dataset(folder / "out").split("train")
