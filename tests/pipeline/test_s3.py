"""Photos from and shards to a real S3 server on loopback, with processes that are killed on the way."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.test_prepare import make, tree

pytestmark = pytest.mark.storage
URL = "s3://shards/set"
OPTIONS = [
    "--patches-per-image",
    "24",
    "--samples-per-shard",
    "8",
    "--hr-size",
    "64",
    "--workers",
    "2",
]


class Server:
    """A `moto_server`; it forgets everything when it is restarted."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=1).close()
                break
            time.sleep(0.1)
        for bucket in ("shards", "photos"):
            self.call("mkdir", f"s3://{bucket}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }

    def call(self, what: str, url: str, local: str = "") -> str:
        code = (
            "import sys, fsspec; what, url, local = sys.argv[1:]; fs, path = fsspec.url_to_fs(url)\n"
            "if what == 'mkdir': fs.mkdir(path)\n"
            "if what == 'get': fs.get(path + '/', local + '/', recursive=True)\n"
            "if what == 'put': fs.put(local + '/', path + '/', recursive=True)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, what, url, local], env=self.environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return ended.stdout

    def names(self) -> list[str]:
        """Of all objects, asked in this process: a run is over within a second or two."""
        found = self.client.list_objects_v2(Bucket="shards", Prefix="set/").get("Contents", [])
        return sorted(each["Key"].removeprefix("set/") for each in found)

    @functools.cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip

    def prep(self, src: str, work: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from pipeline.cli import main; main()"]
        options = ["--src", src, "--out", URL, "--work-dir", str(work), *OPTIONS, "--json", *more]
        return subprocess.Popen(
            [*command, *options], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture
def server():
    started = Server()
    yield started
    started.kill()


@pytest.fixture
def wanted(photos, tmp_path) -> dict[str, bytes]:
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


def test_photos_and_shards_at_s3_are_those_of_folders(photos, server, wanted, tmp_path):
    server.call("put", "s3://photos/raw", str(photos))
    report = json.loads(finish(server.prep("s3://photos/raw", tmp_path / "work")))
    assert stored(server, tmp_path) == wanted
    assert list((tmp_path / "work").iterdir()) == []
    again = json.loads(finish(server.prep("s3://photos/raw", tmp_path / "work")))
    assert again["already_done"]
    assert again["dataset_sha256"] == report["dataset_sha256"]


@pytest.mark.parametrize("objects", [2, 7, 13])
def test_a_run_that_is_killed_in_mid_upload_goes_on(photos, server, wanted, tmp_path, objects):
    run = server.prep(str(photos), tmp_path / "work")
    wait_for(server, objects, run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert "manifest.json" not in server.names()
    finish(server.prep(str(photos), tmp_path / "work"))
    assert stored(server, tmp_path) == wanted


def test_a_server_that_dies_and_forgets_in_mid_upload_is_filled_again(
    photos, server, wanted, tmp_path
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
    assert stored(server, tmp_path) == wanted


def test_of_two_runs_with_other_options_one_wins_whole(photos, server, tmp_path):
    runs = [server.prep(str(photos), tmp_path / f"work{n}", "--seed", str(n)) for n in range(2)]
    ended = [(run.communicate(timeout=120), run.returncode) for run in runs]
    assert sorted(code for _, code in ended) == [0, 2]
    winner = next(n for n, (_, code) in enumerate(ended) if code == 0)
    assert f"seed {winner} then, {1 - winner} now" in ended[1 - winner][0][1]
    make(photos, tmp_path / "alone", "--samples-per-shard", 8, "--seed", winner)
    assert stored(server, tmp_path) == tree(tmp_path / "alone")


def test_two_equal_runs_at_once_give_one_data_set(photos, server, wanted, tmp_path):
    runs = [server.prep(str(photos), tmp_path / f"work{n}") for n in range(2)]
    for run in runs:
        finish(run)
    assert stored(server, tmp_path) == wanted


def test_a_bucket_that_is_not_there_is_one_line(photos, server, tmp_path):
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
from shards import storage
local, url = Path(sys.argv[1]), sys.argv[2]
storage.send(local, url)
storage.send(local, url)
system, path = fsspec.url_to_fs(url)
assert system.info(path)["size"] == local.stat().st_size
try:
    system.put_file(str(local), path, mode="create")
except FileExistsError:
    print("refused")
"""


def test_shards_of_full_size_go_in_parts_and_replace_nothing(server, tmp_path):
    """s3fs sends more than 100 MiB in parts, which S3 joins at the end: that is where the name is taken."""
    (tmp_path / "shard.tar").write_bytes(os.urandom(2**20) * 110)
    ended = subprocess.run(
        [sys.executable, "-c", TWICE, str(tmp_path / "shard.tar"), f"{URL}/shard.tar"],
        env=server.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "refused\n"
