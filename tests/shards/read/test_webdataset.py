"""Plain webdataset reads the shards without changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.shards.support import make_dataset, make_patch

STOCK_PILLOW = Path(sys.prefix) / "stock-pillow"
"""A PIL that reads PNG, installed by `make test`; pillow-simd is built without codecs (README)."""
READ = """
import pathlib, sys, numpy, webdataset
for folder in map(pathlib.Path, sys.argv[1:]):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    for number, sample in enumerate(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")):
        ext = next(part[3:] for part in sample if part.startswith("hr."))
        numpy.savez(folder.parent / f"{number}.npz", hr=sample["hr." + ext], lr=sample["lr." + ext])
        assert sample["__key__"] == f"{number:012d}"
        assert sample["json"]["scale"] == 4
"""


CODECS = ("png", "webp", "raw")


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict[str, Path]:
    """Return what webdataset read from a data set of each codec, in one process."""
    if not STOCK_PILLOW.is_dir():
        pytest.skip("no PIL with PNG here; `make test` installs one")
    folders = {codec_name: tmp_path_factory.mktemp(codec_name) for codec_name in CODECS}
    made = [make_dataset(folder / "shards", codec_name=name) for name, folder in folders.items()]
    environment = {"PYTHONPATH": str(STOCK_PILLOW), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", READ, *map(str, made)], check=True, env=environment)
    return folders


@pytest.mark.parametrize("codec_name", CODECS)
def test_plain_webdataset_reads_the_same_pixels(read, codec_name):
    assert len(list(read[codec_name].glob("*.npz"))) == 25
    for key in range(25):
        with np.load(read[codec_name] / f"{key}.npz") as pair:
            np.testing.assert_array_equal(pair["hr"], make_patch(key))
            assert pair["lr"].shape == (16, 16, 3)
            assert pair["hr"].dtype == np.uint8
