"""Arguments and files of tasks, and tasks that a worker refuses."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import cv2
import msgspec
import pytest

from pipeline.options import Options
from pipeline.patches.spill import load_spill
from pipeline.photos.scan import FoundPhoto, scan_sources
from pipeline.stages import tasks
from shards.errors import UsageError
from tests.pipeline.support import prep

OPTIONS = Options(hr_size=64, patches_per_image=8)


def test_saved_photos_are_loaded_unchanged(tmp_path):
    name = os.fsdecode(b"/photos/l\xe4nd.png")
    photos = [
        FoundPhoto(Path(name), "l%E4nd.png", 10, 2**62, True, Path("/lr/a.png"), (7, 2**61)),
        FoundPhoto("s3://bucket/a b.png", "a b.png", 0, 0, False),
        FoundPhoto(Path("/photos/写真.jpg"), "写真.jpg", 7, 1, False),
    ]
    name, starts = tasks.save_chunks(tmp_path, [photos[:1], photos[1:]])
    job = tasks.save_context(tmp_path, OPTIONS, (name, starts), engine="dask")
    task = tasks._load_context(str(tmp_path), job)
    assert tasks._load_photos(tmp_path, task, 0) == photos[:1]
    assert tasks._load_photos(tmp_path, task, 1) == photos[1:]


def test_a_task_is_a_name_and_a_number(photos, tmp_path):
    scanned = scan_sources([photos]).photos
    listed = tasks.save_chunks(tmp_path, [scanned[:2], scanned[2:]])
    job = tasks.save_context(tmp_path, OPTIONS, listed, engine="local")
    task = (str(tmp_path), job, 1)
    assert len(pickle.dumps(task)) < 300
    assert tasks.extract_chunk(*task) == 1
    spilled = load_spill(tmp_path, 1, scanned[2:])
    assert spilled is not None
    assert [outcome.name for outcome in spilled[1]] == [photo.name for photo in scanned[2:]]


def test_a_task_uses_one_core(photos, tmp_path):
    listed = tasks.save_chunks(tmp_path, [scan_sources([photos]).photos])
    job = tasks.save_context(tmp_path, OPTIONS, listed, engine="dask")
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        tasks.extract_chunk(str(tmp_path), job, 0)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("what", ["numpy", "the same"])
def test_a_worker_that_would_write_different_bytes_refuses(photos, tmp_path, what):
    scanned = scan_sources([photos]).photos
    job = tasks.save_context(
        tmp_path, OPTIONS, tasks.save_chunks(tmp_path, [scanned]), engine="dask"
    )
    task = tasks._load_context(str(tmp_path), job)
    if what == "numpy":
        task = msgspec.structs.replace(task, libraries={**task.libraries, "numpy": "1.0"})
    else:
        task = msgspec.structs.replace(task, fingerprint="of another processor")
    (tmp_path / "job-other.json").write_bytes(msgspec.json.encode(task))
    with pytest.raises(UsageError, match="would write different bytes") as refused:
        tasks.extract_chunk(str(tmp_path), "job-other.json", 0)
    words = {"numpy": "numpy 1.0 then", "the same": "the same versions, different results"}
    assert words[what] in str(refused.value)
    assert not list(tmp_path.glob("chunk-*"))
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


def test_a_scheduler_without_an_engine_is_refused(photos, tmp_path):
    where = ["--src", photos, "--out", tmp_path / "out", "--scheduler", "tcp://host:8786"]
    assert "add --engine dask or ray" in prep(*where, code=2).stderr
