"""Other people's readers take the shards as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.shards.conftest import make_dataset, make_patch

STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
"""`make test` puts a PIL that reads PNG there; pillow-simd is built without codecs (README)."""
READ = """
import sys, numpy, webdataset
urls = sys.argv[2:]
for number, sample in enumerate(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")):
    ext = next(part[3:] for part in sample if part.startswith("hr."))
    numpy.savez(f"{sys.argv[1]}/{number}.npz", hr=sample["hr." + ext], lr=sample["lr." + ext])
    assert sample["__key__"] == f"{number:012d}"
    assert sample["json"]["scale"] == 4
"""


@pytest.mark.parametrize("codec_name", ["png", "webp", "raw"])
def test_plain_webdataset_gives_the_same_pixels(codec_name, tmp_path):
    if not STOCK_PILLOW.is_dir():
        pytest.skip("no PIL with PNG here; `make test` installs one")
    dataset = make_dataset(tmp_path / "shards", codec_name=codec_name)
    shards = [str(path) for path in sorted(dataset.glob("*.tar"))]
    environment = {"PYTHONPATH": str(STOCK_PILLOW), "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), *shards], check=True, env=environment
    )
    assert len(list(tmp_path.glob("*.npz"))) == 25
    for key in range(25):
        with np.load(tmp_path / f"{key}.npz") as read:
            np.testing.assert_array_equal(read["hr"], make_patch(key))
            assert read["lr"].shape == (16, 16, 3)
            assert read["hr"].dtype == np.uint8
