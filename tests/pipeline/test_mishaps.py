"""Accidents of long runs: killed processes, photos that crash decoders, full disks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.format import png
from tests.pipeline.support import _session, command, make, make_photo, prep, tree


@pytest.fixture
def many(photos) -> Path:
    for number in range(30):
        (photos / f"{number}.png").write_bytes(png.encode_rgb(make_photo(100 + number)))
    return photos


def markers(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in out.glob("_work/chunk-*.spill")}


def shards(out: Path) -> dict[str, int]:
    """Return the inodes of finished shards, which have an index."""
    names = (path.stem + ".tar" for path in out.glob("index/*.npz"))
    return {name: (out / name).stat().st_ino for name in names}


def begin(photos: Path, out: Path) -> subprocess.Popen[str]:
    """Start a run with two processes."""
    run = subprocess.Popen(
        command(photos, out, 2), start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not (out / "_work/promise.json").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    return run


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 30), marks=pytest.mark.slow)])
def test_a_kill_at_a_random_moment_loses_only_running_tasks(many, tmp_path, seeds):
    make(many, tmp_path / "whole")
    assert sum(_survives(many, tmp_path, seed) for seed in seeds) > len(seeds) // 3


def _survives(many: Path, tmp_path: Path, seed: int) -> bool:
    """Kill a run after a random number of tasks and repeat it; return whether the kill interrupted it."""
    chance = random.Random(seed)
    out = tmp_path / f"out{seed}"
    run = begin(many, out)
    tasks = chance.randrange(len(list(many.iterdir())))
    while run.poll() is None and _count_finished(out) < tasks:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    parent = chance.random() < 0.5
    victims = [run.pid] if parent else [pid for pid in _session(run.pid) if pid != run.pid]
    landed = not (out / "manifest.json").exists()
    try:
        os.kill(chance.choice(victims), signal.SIGKILL)
    except (ProcessLookupError, IndexError):
        landed = False
    run.communicate(timeout=60)
    limit = time.monotonic() + 30
    while _session(run.pid) and time.monotonic() < limit:
        time.sleep(0.02)
    done = (out / "manifest.json").exists()  # a kill after publication may leave the scratch folder
    cut, packed = {} if done else markers(out), shards(out)
    ended = subprocess.run(command(many, out, 2), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    resumed = re.search(r"(\d+) photos? already extracted by an earlier run", ended.stderr)
    assert int(resumed[1] if resumed else 0) == len(cut)
    assert {name: inode for name, inode in shards(out).items() if name in packed} == packed
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(out.rglob("*.tmp"))
    return landed


def _count_finished(out: Path) -> int:
    """Return the number of spills and finished shards of a running run."""
    count = 0
    for folder, suffix in ((out / "_work", ".spill"), (out / "index", ".npz")):
        with contextlib.suppress(FileNotFoundError):
            count += sum(name.endswith(suffix) for name in os.listdir(folder))
    return count


POISON = """
import os, signal
from shards.images import photos
read_header = photos.read_header
def poisoned(content):
    if {size} == len(content):
        os.kill(os.getpid(), signal.SIGKILL)
    return read_header(content)
photos.read_header = poisoned
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_photo_that_crashes_its_decoder_is_rejected(many, tmp_path, workers):
    size = (many / "7.png").stat().st_size
    assert sum(path.stat().st_size == size for path in many.glob("*.png")) == 1
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(POISON.format(size=size))
    ended = subprocess.run(
        [*command(many, tmp_path / "out", workers), "--json"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["rejects"] == {"CRASHED": 1}
    assert "7.png" in (tmp_path / "out/rejects.jsonl").read_text()
    (many / "7.png").unlink()
    make(many, tmp_path / "without")
    left, right = (tree(tmp_path / name) for name in ("out", "without"))
    assert {k: v for k, v in left.items() if k[-4:] == ".tar"} == {
        k: v for k, v in right.items() if k[-4:] == ".tar"
    }


def test_a_limit_on_file_sizes_is_one_line_and_the_rerun_resumes(photos, whole, tmp_path):
    out = tmp_path / "out"
    failed = subprocess.run(
        command(photos, out, 1), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )  # fmt: skip
    assert failed.returncode == 1
    assert "exceeds the file size limit" in failed.stderr.splitlines()[-1]
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.tmp"))
    make(photos, out)
    assert tree(out) == tree(whole)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("may not mount here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_free_space_lets_the_run_resume(photos, whole, small_disk):
    out = small_disk / "out"
    failed = subprocess.run(command(photos, out, 2), capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "the disk is full" in failed.stderr.splitlines()[-1]
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    make(photos, out)
    assert tree(out) == tree(whole)


def test_a_folder_that_becomes_read_only_is_one_line(photos, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    where = [*command(photos, small_disk / "out", 1)]
    failed = subprocess.run(where, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "is not writable; check its permissions" in failed.stderr.splitlines()[-1]


BUSY = """
from pipeline.patches import spill
from pipeline.stages import cut
from pipeline.cli import main
cut.MAX_CHUNKS, spill.RUN = 2, 2**23
main()
"""
"""A run with many photos per chunk, as in a set of a hundred thousand, and small runs of pairs."""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    from trainer.bench.prep import measure_command

    rng = np.random.default_rng(0)
    base = cv2.resize(rng.integers(0, 256, (400, 600, 3), np.uint8), (6000, 4000))
    peaks = []
    for count in (20, 200):
        folder = tmp_path / f"photos{count}"
        folder.mkdir()
        for number in range(count):
            base[:, number * 30 : number * 30 + 30] = number
            (folder / f"{number}.jpg").write_bytes(
                cv2.imencode(".jpg", base, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
            )
        where = ["--src", str(folder), "--out", str(tmp_path / f"out{count}"), "--workers", "0"]
        more = ["--patches-per-image", "200", "--samples-per-shard", "1024", "--hr-size", "64"]
        usage = measure_command([sys.executable, "-c", BUSY, *where, *more, "--similar", "keep"])
        peaks.append(usage.peak_mib)
    assert (tmp_path / "out200/manifest.json").exists()
    assert max(peaks) < 700, peaks
    assert peaks[1] < peaks[0] * 1.15 + 10, peaks


def test_only_the_parent_handles_ctrl_c(photos, tmp_path):
    run = subprocess.Popen(
        command(photos, tmp_path / "out", 1), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    struck: set[int] = set()
    limit = time.monotonic() + 30
    while not struck and run.poll() is None and time.monotonic() < limit:
        for pid in _session(run.pid):
            with contextlib.suppress(OSError):
                if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    time.sleep(0.1)
                    os.kill(pid, signal.SIGINT)  # during its imports
                    struck.add(pid)
    out, _ = run.communicate(timeout=60)
    assert struck
    assert run.returncode == 0, out
    assert "Traceback" not in out


def test_photos_removed_during_the_run_are_no_usage_error(photos, tmp_path, monkeypatch):
    def publish_is_near(*_: object) -> bool:
        photos.rename(tmp_path / "elsewhere")
        return True

    monkeypatch.setattr("pipeline.stages.repair.is_as_expected", publish_is_near)
    failed = prep(
        "--src", photos, "--out", tmp_path / "out", "--workers", 0, "--hr-size", 64, code=1
    )
    assert "does not exist; check the path, and run the same command again" in failed.stderr
    assert not (tmp_path / "out/manifest.json").exists()
