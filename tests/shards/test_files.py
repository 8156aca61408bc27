from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import pytest

from shards import files
from shards.errors import UsageError, WriteFailed


@pytest.fixture
def failing(monkeypatch):
    def at(fault: str, operation: int) -> None:
        monkeypatch.setattr(files, "_operations", itertools.count(1))
        monkeypatch.setenv("USRGAN_FAULT", f"{fault}@{operation}")

    return at


@pytest.mark.parametrize("fault", ["enospc", "eio"])
@pytest.mark.parametrize("operation", range(1, 6))
def test_a_failed_write_leaves_what_was_there(tmp_path, failing, fault, operation):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    failing(fault, operation)
    with pytest.raises(WriteFailed) as caught:
        files.write_file(path, b"after")
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == (b"before" if operation < 5 else b"after")  # 5: the folder's fsync
    assert os.listdir(tmp_path) == ["file"]


def test_the_whole_write_has_five_operations(tmp_path, failing):
    failing("enospc", 6)
    files.write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("operation", range(1, 6))
def test_a_kill_leaves_the_old_or_the_new_content(tmp_path, operation):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    code = (
        "import sys; from pathlib import Path; from shards import files\n"
        "files.write_file(Path(sys.argv[1]), b'after')"
    )
    environment = {**os.environ, "USRGAN_FAULT": f"kill@{operation}"}
    run = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"before" if operation < 5 else b"after")
    files.sweep_temps(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_named_with_the_space_that_is_left(tmp_path, failing):
    failing("enospc", 2)
    with pytest.raises(WriteFailed, match=r"the disk is full \(\d+ MiB free\)"):
        files.write_file(tmp_path / "file", b"x")


def test_an_error_inside_the_block_leaves_no_temporary(tmp_path):
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "file"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(WriteFailed, match="cannot be written"):
        files.write_file(tmp_path / "nowhere/file", b"x")


def test_a_locked_folder_is_refused_and_freed_by_death(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from shards import files\n"
        "with files.locked(Path(sys.argv[1]), holder='train-sr'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with (
        pytest.raises(UsageError, match=rf"train-sr \(pid {other.pid}\) is writing here"),
        files.locked(tmp_path, holder="b"),
    ):
        pass
    other.kill()
    other.communicate()
    with files.locked(tmp_path, holder="b"):
        pass


def test_a_log_grows_by_whole_lines(tmp_path):
    files.append_line(tmp_path / "log", "one")
    files.append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_remove_takes_folders_and_missing_things(tmp_path):
    (tmp_path / "folder/sub").mkdir(parents=True)
    files.remove(tmp_path / "folder")
    files.remove(tmp_path / "folder")
    assert os.listdir(tmp_path) == []
