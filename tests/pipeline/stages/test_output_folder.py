"""Runs stopped while they replace an earlier one: no file of the earlier run gets into the next."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner

import pipeline.stages.output_folder
import pipeline.stages.prepare
from pipeline.cli import main
from shards import writer
from shards.errors import UsrganError
from shards.io import atomic
from tests.pipeline.support import make_photo, prep, tree

TINY = [
    "--patches-per-image", "4", "--samples-per-shard", "4", "--hr-size", "32", "--codec", "raw",
    "--similar", "keep", "--workers", "0",
]  # fmt: skip


def bmp(path: Path, seed: int) -> None:
    path.write_bytes(cv2.imencode(".bmp", make_photo(seed, height=80, width=100))[1].tobytes())


@pytest.fixture(autouse=True)
def in_memory(monkeypatch):
    """Skip fsync, which dominates the time and protects only against power failures."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def few(tmp_path) -> Path:
    (tmp_path / "few").mkdir()
    for number in range(3):
        bmp(tmp_path / f"few/{number}.bmp", number)
    return tmp_path / "few"


@pytest.fixture
def stopped(monkeypatch):
    """Return a function that runs with a failing operation and returns whether the run reached it."""

    def run(operation: int, *arguments: object) -> bool:
        with monkeypatch.context() as here:
            here.setattr(atomic, "_operations", itertools.count(1))
            here.setenv("USRGAN_FAULT", f"eio@{operation}")
            ended = CliRunner().invoke(main, [str(item) for item in arguments])
        assert ended.exit_code in (0, 1), ended.output
        return ended.exit_code == 1

    return run


def killed(operation: int, *arguments: object) -> None:
    code = "from pipeline.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, check=False,
        env={**os.environ, "USRGAN_FAULT": f"kill@{operation}"},
    )  # fmt: skip


@pytest.fixture
def of_other_photos(few, tmp_path, monkeypatch):
    """Return arguments of a run with complete shards of an earlier version of a photo."""
    where = ["--src", few, "--out", tmp_path / "out", *TINY]

    def stop(*_: object) -> None:
        raise UsrganError("stopped")

    with monkeypatch.context() as here:
        here.setattr(writer, "publish", stop)
        prep(*where, code=1)
    assert len(list((tmp_path / "out").glob("index/*.npz"))) > 2
    bmp(few / "1.bmp", 50)
    return where


QUICK = (30, 50, 63, 70, 78, 85, 93)
REST = [pytest.param(n, marks=pytest.mark.slow) for n in range(1, 160) if n not in QUICK]


@pytest.mark.parametrize("operation", [*QUICK, *REST])
def test_no_shard_of_another_plan_is_reused(few, of_other_photos, stopped, tmp_path, operation):
    stopped(operation, *of_other_photos)
    prep(*of_other_photos)
    prep("--src", few, "--out", tmp_path / "fresh", *TINY)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(20, 90, 7))
def test_no_shard_of_another_plan_survives_a_kill(few, of_other_photos, tmp_path, operation):
    killed(operation, *of_other_photos)
    prep(*of_other_photos)
    prep("--src", few, "--out", tmp_path / "fresh", *TINY)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_incomplete_shards_are_removed_completely(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "_work").mkdir()
    for name in ("train-000000.tar", "train-000001.tar.idx", "index/train-000002.npz", "a.tar",
                 "index/val-000003.npz", "_work/sent-val-000003.tar"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
    pipeline.stages.output_folder.remove_shards(tmp_path)
    assert list(tree(tmp_path)) == ["a.tar"]


@pytest.mark.parametrize("again", [["--overwrite", "--seed", "1"], ["--seed", "1"]])
def test_overwrite_stopped_at_any_operation_can_be_repeated(few, stopped, tmp_path, again):
    """Also by a call without --overwrite, because the folder then belongs to no run."""
    where = ["--src", few, *TINY]
    prep(*where, "--out", tmp_path / "before")
    prep(*where, "--out", tmp_path / "fresh", "--seed", 1)
    cleared = []
    for operation in range(1, 25):
        out = Path(shutil.copytree(tmp_path / "before", tmp_path / f"out{operation}"))
        assert stopped(operation, *where, "--out", out, "--seed", 1, "--overwrite")
        cleared.append(not (out / "manifest.json").exists())
        if "--overwrite" in again or not (out / "manifest.json").exists():
            prep(*where, "--out", out, *again)
            assert tree(out) == tree(tmp_path / "fresh"), operation
    assert not cleared[0]
    assert cleared[-1]


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(1, 40))
def test_a_killed_overwrite_can_be_repeated(few, tmp_path, operation):
    where = ["--src", few, "--out", tmp_path / "out", *TINY]
    prep(*where)
    killed(operation, *where, "--seed", 1, "--overwrite")
    prep(*where, "--seed", 1, "--overwrite")
    prep("--src", few, "--out", tmp_path / "fresh", *TINY, "--seed", 1)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_stopped_repair_of_a_damaged_manifest_can_be_repeated(few, stopped, tmp_path):
    where = ["--src", few, *TINY]
    prep(*where, "--out", tmp_path / "fresh")
    for operation in range(1, 25):
        out = Path(shutil.copytree(tmp_path / "fresh", tmp_path / f"out{operation}"))
        os.truncate(out / "manifest.json", 400)
        assert stopped(operation, *where, "--out", out, "--repair")
        prep(*where, "--out", out, "--repair")
        assert tree(out) == tree(tmp_path / "fresh"), operation


def test_an_unfinished_run_of_another_version_is_refused(few, stopped, tmp_path, monkeypatch):
    out = tmp_path / "out"
    where = ["--src", few, "--out", out, *TINY]
    assert stopped(40, *where)
    monkeypatch.setattr(pipeline.stages.output_folder, "__version__", "9.9")
    refused = prep(*where, code=2)
    last = refused.stderr.splitlines()[-1]
    assert "an unfinished run differs (usrgan 0.1.0 then, 9.9 now)" in last
    assert "--overwrite" in last
    prep(*where, "--overwrite")


def test_a_finished_data_set_of_another_version_is_accepted(few, tmp_path, monkeypatch):
    where = ["--src", few, "--out", tmp_path / "out", *TINY]
    prep(*where)
    before = tree(tmp_path / "out")
    monkeypatch.setattr(pipeline.stages.output_folder, "__version__", "9.9")
    prep(*where)
    assert tree(tmp_path / "out") == before


def test_an_engine_that_fails_to_open_leaves_the_folder_unchanged(few, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    where = ["--src", few, "--out", tmp_path / "out", *TINY]
    refused = prep(*where, "--engine", "ray", code=2)
    assert "--engine ray: Ray is not installed" in refused.stderr
    prep(*where, "--seed", 3)  # a failed run does not reserve the folder for its options
    before = tree(tmp_path / "out")
    prep(*where, "--engine", "ray", "--overwrite", code=2)
    assert tree(tmp_path / "out") == before
