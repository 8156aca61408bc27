"""A shard counts as finished only with its own index."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

from shards import writer
from shards.errors import WriteFailed
from shards.format import codec
from shards.io import atomic
from tests.shards.support import samples, write_samples


def _write(folder, first: int):
    made = samples(first, first + 5, "train", 16, "raw")
    return write_samples(folder, "train-000000.tar", made, extension=codec.EXTENSIONS["raw"])


def test_a_stale_index_marks_no_new_tar_as_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # fsync dominates the time
    came_to = []
    for operation in range(1, 20):
        folder = tmp_path / str(operation)
        folder.mkdir()
        before = _write(folder, 0)
        with monkeypatch.context() as here:
            here.setattr(atomic, "_operations", itertools.count(1))
            here.setenv("USRGAN_FAULT", f"eio@{operation}")
            try:
                _write(folder, 5)
            except (WriteFailed, OSError):
                came_to.append(operation)
        entry = writer.find_finished_shard(folder, "train-000000.tar")
        after = _write(folder, 5)
        assert after.bytes == before.bytes  # equal lengths hide the change
        assert after.sha256 != before.sha256
        untouched = operation == 1
        assert entry in ((before,) if untouched else (None, after)), operation
    assert came_to == list(range(1, 18))


def test_threads_of_one_process_write_separate_shards(tmp_path):
    """A Dask or Ray worker may pack several shards at once."""

    def write(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        barrier.wait()
        for _ in range(5):
            _write(folder, 10 * number)

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for number in range(4):
        content = (tmp_path / f"{number}/train-000000.tar").read_bytes()
        alone = tmp_path / f"alone-{number}"
        alone.mkdir()
        _write(alone, 10 * number)
        assert content == (alone / "train-000000.tar").read_bytes()


def test_a_shard_contains_no_bytes_of_the_previous_one(tmp_path):
    """A thread reuses its buffer for every shard."""

    def write(*counts: int) -> bytes:
        for count in counts:
            folder = tmp_path / f"{len(counts)} {count}"
            folder.mkdir()
            made = samples(0, count, "train", 16, "png")
            write_samples(folder, "train-000000.tar", made)
        return (folder / "train-000000.tar").read_bytes()

    with ThreadPoolExecutor(1) as fresh:
        alone = fresh.submit(write, 3).result()
    assert write(9, 3) == alone
