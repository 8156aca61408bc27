"""Photos, runs and an S3 server for the tests of the pipeline."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from click.testing import CliRunner

from pipeline.cli import main
from shards.format import png
from tests.shards.images.support import PROFILES, profile_of


def make_photo(seed: int, *, height: int = 300, width: int = 420) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    fine = rng.integers(-12, 13, smooth.shape)
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


SMALL = ["--patches-per-image", "24", "--samples-per-shard", "16", "--hr-size", "64"]


def prep(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def make(photos: Path, out: Path, *more: object) -> dict:
    return json.loads(
        prep("--src", photos, "--out", out, *SMALL, "--json", "--workers", 0, *more).stdout
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def command(photos: Path, out: Path, workers: int) -> list[str]:
    code = "from pipeline.cli import main; main()"
    options = ["--src", str(photos), "--out", str(out), *SMALL, "--workers", str(workers)]
    return [sys.executable, "-c", code, *options]


def _session(leader: int) -> list[int]:
    """Return the living processes of a run, including its leader."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                pids.append(int(path.parent.name))
    return pids


P3 = profile_of(*PROFILES["p3"])


def with_profile(image: np.ndarray, profile: bytes) -> bytes:
    """Return a PNG with an iCCP chunk after its IHDR."""
    content = png.encode_rgb(image)
    body = b"iCCP" + b"name\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]


def bmp(path: Path, seed: int) -> None:
    path.write_bytes(cv2.imencode(".bmp", make_photo(seed))[1].tobytes())


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
    """A `moto_server`; a restart loses all objects."""

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
        """Return the names of all objects; asked in this process, because a run takes only a second or two."""
        objects = self.client.list_objects_v2(Bucket="shards", Prefix="set/").get("Contents", [])
        return sorted(item["Key"].removeprefix("set/") for item in objects)

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
