"""A shard is finished when its index lies there, and never by the index of another."""

from __future__ import annotations

import itertools
import os

from shards import codec, files, writer
from shards.errors import WriteFailed
from tests.shards.conftest import samples, write_samples


def _write(folder, first: int):
    made = samples(first, first + 5, "train", 16, "raw")
    return write_samples(folder, "train-000000.tar", made, extension=codec.EXTENSIONS["raw"])


def test_a_stale_index_says_of_no_new_tar_that_it_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk is what takes the time
    came_to = []
    for operation in range(1, 20):
        folder = tmp_path / str(operation)
        folder.mkdir()
        before = _write(folder, 0)
        with monkeypatch.context() as here:
            here.setattr(files, "_operations", itertools.count(1))
            here.setenv("USRGAN_FAULT", f"eio@{operation}")
            try:
                _write(folder, 5)
            except (WriteFailed, OSError):
                came_to.append(operation)
        found = writer.finished_shard(folder, "train-000000.tar")
        after = _write(folder, 5)
        assert after.bytes == before.bytes  # so that lengths cannot tell
        assert after.sha256 != before.sha256
        untouched = operation == 1
        assert found in ((before,) if untouched else (None, after)), operation
    assert came_to == list(range(1, 18))
