from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys

import pytest

from shards.errors import UsageError, WriteFailed
from shards.io import atomic


@pytest.fixture
def failing(monkeypatch):
    def at(fault: str, operation: int) -> None:
        monkeypatch.setattr(atomic, "_operations", itertools.count(1))
        monkeypatch.setenv("USRGAN_FAULT", f"{fault}@{operation}")

    return at


@pytest.mark.parametrize("fault", ["enospc", "eio"])
@pytest.mark.parametrize("operation", range(1, 6))
def test_a_failed_write_keeps_the_old_file(tmp_path, failing, fault, operation):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    failing(fault, operation)
    with pytest.raises(WriteFailed) as caught:
        atomic.write_file(path, b"after")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == (b"before" if operation < 5 else b"after")  # 5: the folder's fsync
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_has_five_operations(tmp_path, failing):
    failing("enospc", 6)
    atomic.write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("operation", range(1, 6))
def test_a_kill_leaves_the_old_or_the_new_content(tmp_path, operation):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    code = (
        "import sys; from pathlib import Path; from shards.io import atomic\n"
        "atomic.write_file(Path(sys.argv[1]), b'after')"
    )
    environment = {**os.environ, "USRGAN_FAULT": f"kill@{operation}"}
    run = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"before" if operation < 5 else b"after")
    atomic.sweep_temps(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_reported_with_its_free_space(tmp_path, failing):
    failing("enospc", 2)
    with pytest.raises(WriteFailed, match=r"the disk is full \(\d+ MiB free\)"):
        atomic.write_file(tmp_path / "file", b"x")


def test_an_error_inside_the_block_leaves_no_temporary_file(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.open_replacement(tmp_path / "file"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(WriteFailed, match="cannot be written") as caught:
        atomic.write_file(tmp_path / "nowhere/file", b"x")
    assert str(caught.value).startswith(f"{tmp_path / 'nowhere/file'}: ")
    assert "\n" not in str(caught.value)


def test_a_locked_folder_is_refused_until_the_holder_dies(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from shards.io import atomic\n"
        "with atomic.locked(Path(sys.argv[1]), holder='train-sr'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with (
        pytest.raises(UsageError, match=rf"train-sr \(pid {other.pid}\) is writing here"),
        atomic.locked(tmp_path, holder="b"),
    ):
        pass
    other.kill()
    other.communicate()
    with atomic.locked(tmp_path, holder="b"):
        pass


def test_a_log_grows_by_complete_lines(tmp_path):
    atomic.append_line(tmp_path / "log", "one")
    atomic.append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_line_truncated_by_a_full_disk_is_removed(tmp_path):
    atomic.append_line(tmp_path / "log", "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(WriteFailed, match="exceeds the file size limit"):
            atomic.append_line(tmp_path / "log", "a line beyond the limit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    atomic.append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refuse(_descriptor, _how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(WriteFailed, match=r"cannot be locked .*flock"),
        atomic.locked(tmp_path, holder="a"),
    ):
        pass


def test_remove_accepts_folders_and_missing_files(tmp_path):
    (tmp_path / "folder/sub").mkdir(parents=True)
    atomic.remove_file(tmp_path / "folder")
    atomic.remove_file(tmp_path / "folder")
    assert os.listdir(tmp_path) == []


def test_remove_deletes_a_link_and_not_its_target(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    atomic.remove_file(tmp_path / "link")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("fault", ["enospc", "eio"])
@pytest.mark.parametrize(
    "act", [atomic.make_folder, atomic.remove_file, lambda p: atomic.append_line(p, "b")]
)
def test_a_failed_operation_is_one_line_that_names_the_path(tmp_path, failing, fault, act):
    path = tmp_path / "new"
    failing(fault, 1)
    with pytest.raises(WriteFailed) as caught:
        act(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_failed_append_leaves_the_log_unchanged(tmp_path, failing):
    atomic.append_line(tmp_path / "log", "one")
    failing("eio", 1)
    with pytest.raises(WriteFailed, match="log: cannot be written"):
        atomic.append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_a_full_disk_during_a_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fill() -> None:
        with atomic.open_replacement(path) as stream:
            stream.write(b"aft")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteFailed, match="file: the disk is full"):
        fill()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("most", [2**20, 100, 1])
def test_parts_follow_earlier_buffered_bytes(tmp_path, monkeypatch, most):
    def writev(descriptor, pieces):  # a kernel may write less than requested
        return os.write(descriptor, b"".join(pieces)[:most])

    monkeypatch.setattr(os, "writev", writev)
    pieces = [bytes([number]) * number for number in range(100)]
    with atomic.open_replacement(tmp_path / "file") as stream:
        stream.write(b"before")
        atomic.write_parts(stream, pieces)
        atomic.write_parts(stream, [])
        stream.write(b"after")
    assert (tmp_path / "file").read_bytes() == b"".join([b"before", *pieces, b"after"])


def test_parts_that_exceed_the_disk_keep_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        with pytest.raises(WriteFailed), atomic.open_replacement(path) as stream:
            atomic.write_parts(stream, [bytes(300)] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_the_rename_follows_the_fsync_of_the_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    existed = []
    monkeypatch.setattr(os, "fsync", lambda _: existed.append(path.exists()))
    with atomic.open_replacement(path) as stream:
        stream.write(b"content")
        assert not path.exists()
    assert existed == [False, True]  # first the unnamed file, then its folder


def test_sweeping_removes_only_temporary_files(tmp_path):
    for name in (".train-000000.tar.77.tmp", ".manifest.json.8.tmp", ".lock", "a.tmp", "train.tar"):
        (tmp_path / name).write_bytes(b"x")
    atomic.sweep_temps(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.tmp", "train.tar"]


def test_an_error_in_the_run_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.locked(tmp_path / "new", holder="a"):
        raise ZeroDivisionError
    with (
        atomic.locked(tmp_path / "new", holder="b"),
        pytest.raises(UsageError, match=rf"new: b \(pid {os.getpid()}\) is writing here") as caught,
        atomic.locked(tmp_path / "new", holder="c"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_every_new_folder_is_durable(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(atomic, "sync_folder", synced.append)
    atomic.make_folder(tmp_path / "a/b/c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    atomic.make_folder(tmp_path / "a/b/d")
    assert synced[3:] == [tmp_path / "a/b"]
