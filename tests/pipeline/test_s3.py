"""Photos from and shards to a real S3 server on loopback, with processes killed during the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.support import OPTIONS, URL, Server, make, tree

pytestmark = pytest.mark.storage


@pytest.fixture
def server():
    started = Server()
    yield started
    started.kill()


@pytest.fixture
def expected(photos, tmp_path) -> dict[str, bytes]:
    make(photos, tmp_path / "wanted", "--samples-per-shard", 8)
    return tree(tmp_path / "wanted")


def finish(run: subprocess.Popen[str], code: int = 0) -> str:
    out, errors = run.communicate(timeout=120)
    assert run.returncode == code, errors
    return errors if code else out


def stored(server: Server, tmp_path: Path) -> dict[str, bytes]:
    server.call("get", URL, str(tmp_path / "got"))
    return tree(tmp_path / "got")


def wait_for(server: Server, count: int, run: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < limit:
        if len(server.names()) >= count:
            return


def test_photos_and_shards_at_s3_equal_those_of_folders(photos, server, expected, tmp_path):
    server.call("put", "s3://photos/raw", str(photos))
    report = json.loads(finish(server.prep("s3://photos/raw", tmp_path / "work")))
    assert stored(server, tmp_path) == expected
    assert list((tmp_path / "work").iterdir()) == []
    again = json.loads(finish(server.prep("s3://photos/raw", tmp_path / "work")))
    assert again["already_done"]
    assert again["dataset_sha256"] == report["dataset_sha256"]


@pytest.mark.parametrize("objects", [2, 7, 13])
def test_a_run_killed_during_upload_resumes(photos, server, expected, tmp_path, objects):
    run = server.prep(str(photos), tmp_path / "work")
    wait_for(server, objects, run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert "manifest.json" not in server.names()
    finish(server.prep(str(photos), tmp_path / "work"))
    assert stored(server, tmp_path) == expected


def test_a_server_that_loses_its_objects_during_upload_is_filled_again(
    photos, server, expected, tmp_path
):
    run = server.prep(str(photos), tmp_path / "work")
    wait_for(server, 7, run)
    server.kill()
    last = finish(run, code=1).splitlines()[-1]
    assert last.startswith("error: s3://shards/set/")
    assert "cannot be" in last
    server.start()
    assert server.names() == []
    finish(server.prep(str(photos), tmp_path / "work"))
    assert stored(server, tmp_path) == expected


def test_one_of_two_runs_with_different_options_publishes(photos, server, tmp_path):
    runs = [server.prep(str(photos), tmp_path / f"work{n}", "--seed", str(n)) for n in range(2)]
    ended = [(run.communicate(timeout=120), run.returncode) for run in runs]
    assert sorted(code for _, code in ended) == [0, 2]
    winner = next(n for n, (_, code) in enumerate(ended) if code == 0)
    assert f"seed {winner} then, {1 - winner} now" in ended[1 - winner][0][1]
    make(photos, tmp_path / "alone", "--samples-per-shard", 8, "--seed", winner)
    assert stored(server, tmp_path) == tree(tmp_path / "alone")


def test_two_equal_parallel_runs_make_one_data_set(photos, server, expected, tmp_path):
    runs = [server.prep(str(photos), tmp_path / f"work{n}") for n in range(2)]
    for run in runs:
        finish(run)
    assert stored(server, tmp_path) == expected


def test_a_missing_bucket_is_one_line(photos, server, tmp_path):
    command = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    ended = subprocess.run(
        [*command, "--src", str(photos), "--out", "s3://nowhere/x", "--work-dir", str(tmp_path), *OPTIONS],
        env=server.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: s3://nowhere/x")


TWICE = """
import sys
from pathlib import Path
from typing import Any
import fsspec
from shards.io import remote as storage
local, url = Path(sys.argv[1]), sys.argv[2]
storage.upload_file(local, url)
storage.upload_file(local, url)
system, path = fsspec.url_to_fs(url)
assert system.info(path)["size"] == local.stat().st_size
try:
    system.put_file(str(local), path, mode="create")
except FileExistsError:
    print("refused")
"""


def test_large_shards_are_uploaded_in_parts_and_replace_nothing(server, tmp_path):
    """s3fs uploads more than 100 MiB in parts; S3 joins them, and claims the name, at the end."""
    (tmp_path / "shard.tar").write_bytes(os.urandom(2**20) * 110)
    ended = subprocess.run(
        [sys.executable, "-c", TWICE, str(tmp_path / "shard.tar"), f"{URL}/shard.tar"],
        env=server.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "refused\n"
