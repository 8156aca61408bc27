"""The reader out of a real S3 server on loopback: ranges, and whole shards kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from shards.read.dataset import open_dataset
from tests.pipeline.support import URL, Server
from tests.trainer.data.support import take

pytestmark = pytest.mark.storage
READ = """
import hashlib, json, sys
from itertools import islice
from shards.read.dataset import open_dataset
from trainer.config.schema import DataConfig
from trainer.data.loader import PatchLoader, use_cache_dir
config = DataConfig(workers=2, cache_dir=sys.argv[2])
split = use_cache_dir(open_dataset(sys.argv[1]), config).split("train")
stream = PatchLoader(split, seed=0, batch_size=5, first_step=0, config=config)
print(json.dumps([hashlib.sha256(b.hr.numpy().tobytes()).hexdigest() for b in islice(stream, 9)]))
stream.close()
"""


@pytest.fixture
def server():
    started = Server()
    yield started
    started.kill()


@pytest.mark.parametrize("keep", [False, True])
def test_batches_out_of_s3_are_those_of_the_folder(server, tiny_shards, tmp_path, keep):
    server.call("put", URL, str(tiny_shards))
    wanted = [
        hashlib.sha256(batch.hr.numpy().tobytes()).hexdigest()
        for batch in take(open_dataset(tiny_shards).split("train"), 9)
    ]
    folder = tmp_path / "kept"
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", READ, URL, str(folder) if keep else ""],
            env=server.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(ended.stdout) == wanted
    assert folder.exists() == keep
