"""Hugging Face `datasets`, webdataset and Megatron-Energon read the shards as they are."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.read.dataset import open_dataset
from tests.shards.support import make_dataset

pytestmark = pytest.mark.interop
PYTHON = Path(sys.prefix) / "interop/bin/python"
"""`make test-interop` makes it, with stock Pillow, which cannot live beside pillow-simd."""


@pytest.mark.parametrize("reader", ["datasets streaming", "datasets map", "webdataset", "energon"])
def test_other_readers_see_every_sample_with_its_pixels(reader, tmp_path):
    folder = make_dataset(tmp_path / "shards")
    script = Path(__file__).with_name("read.py")
    ended = subprocess.run(
        [str(PYTHON), str(script), reader, str(folder)], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    wanted, dataset = {}, open_dataset(folder)
    for name in ("train", "val"):
        split = dataset.split(name)
        for position in range(len(split)):
            pair = split[position]
            digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in (pair.hr, pair.lr)]
            wanted[f"{pair.key:012d}"] = [*digests, pair.info.src]
    assert len(wanted) == 25
    assert found == wanted
