"""The one place where usrgan writes files: temp beside, fsync, rename, fsync of the folder.

A path that one can see is therefore always whole. Each step is an *operation* with a number, and
`USRGAN_FAULT=kill@7` (or `enospc@7`, `eio@7`) makes the seventh one of this process fail, which is
how the tests prove that a crash at any operation loses nothing. A failed fsync is never retried:
the kernel may have dropped the pages already (https://wiki.postgresql.org/wiki/Fsync_Errors).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from shards.errors import UsageError, WriteFailed

TEMP_SUFFIX = ".tmp"
_BUFFER = 2**16
"""Bytes handed to the kernel at a time: a call costs as much as a few kilobytes."""
_PARTS_PER_WRITE = 8
"""Pieces handed to the kernel at a time, about 100 KiB of patches: for more of them it takes larger pages, and
a virtual machine that gave its free memory back is charged for these."""
_operations = itertools.count(1)


def write_file(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole and durable, or leave what was there before."""
    with open_replacement(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def open_replacement(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on a clean exit it is durable and takes the name.

    Raises:
        WriteFailed: the operating system refused; `path` is as it was and the temp is gone.
    """
    # no process id: those of two machines that share a folder may be the same
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        count_operation("open", temp)
        with temp.open("wb", buffering=_BUFFER) as stream:
            yield stream
            count_operation("write", temp)
            stream.flush()
            count_operation("fsync", temp)
            os.fsync(stream.fileno())
        count_operation("rename", path)
        temp.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise WriteFailed(_describe_error(path, error)) from error
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


def write_parts(stream: BinaryIO, pieces: Sequence[bytes]) -> None:
    """Write pieces behind one another, not by way of the buffer: a third less time for pairs of patches."""
    for first in range(0, len(pieces), _PARTS_PER_WRITE):
        stream.flush()
        group = pieces[first : first + _PARTS_PER_WRITE]
        written = os.writev(stream.fileno(), group)
        if written < sum(map(len, group)):
            stream.write(b"".join(group)[written:])  # fails, if the disk is full


def start_writeback(stream: BinaryIO, start: int, stop: int) -> None:
    """Start writing bytes [start, stop) to the disk in the background, so that fsync has less to wait for.

    POSIX_FADV_DONTNEED makes Linux write dirty pages, and keep them.
    """
    stream.flush()
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(
            OSError
        ):  # a hint; what cannot be written fails where it is written
            os.posix_fadvise(stream.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def append_line(path: Path, line: str) -> None:
    """Add one line to a log, whole or not at all; a crash can cut the last line (readers skip a cut one)."""
    rest = line.encode() + b"\n"
    try:
        count_operation("append", path)
        with path.open("ab", buffering=0) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[stream.write(rest) :]
            except OSError:  # what is written next must not stand on the same line
                with contextlib.suppress(OSError):
                    stream.truncate(before)
                raise
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error


def make_folder(path: Path) -> None:
    """Create `path` and its parents, durably."""
    if path.is_dir():
        return
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        count_operation("mkdir", path)
        path.mkdir(parents=True, exist_ok=True)
        for each in reversed(missing):
            sync_folder(each.parent)
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error


def check_folder(path: Path, *, option: str) -> None:
    """A folder that is there or can be made, and written to; nothing is written.

    Raises:
        UsageError: naming `option` and the file that is in the way.
        WriteFailed: naming `option` and the folder that is read-only.
    """
    nearest = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise UsageError(f"{option} {path}: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise WriteFailed(f"{option} {path}: {nearest} cannot be written to; check its permissions")


def remove_file(path: Path) -> None:
    """Delete a file or a folder tree if it is there."""
    try:
        count_operation("remove", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error


def sync_folder(path: Path) -> None:
    """Make the names inside a folder durable."""
    count_operation("fsync folder", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temps(folder: Path) -> None:
    """Delete the temporaries that a killed run left in `folder`; call under its lock."""
    for temp in folder.glob(f".*{TEMP_SUFFIX}"):
        remove_file(temp)


@contextlib.contextmanager
def locked(folder: Path, *, holder: str) -> Iterator[None]:
    """Hold `folder` for one writing run; the kernel frees the lock when the process dies.

    Raises:
        UsageError: another process holds it.
    """
    make_folder(folder)
    path = folder / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 100).decode(errors="replace").strip()
            raise UsageError(
                f"{folder}: {pid or 'another run'} is writing here; wait for it or name another folder"
            ) from None
        except OSError as error:
            raise WriteFailed(
                f"{folder}: cannot be locked against a second run ({error.strerror});"
                " name a folder on a file system that has flock"
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder} (pid {os.getpid()})".encode(), 0)
        except OSError as error:
            raise WriteFailed(_describe_error(path, error)) from error
        yield
    finally:
        os.close(descriptor)


def _describe_error(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next(parent for parent in path.parents if parent.exists())
        free = shutil.disk_usage(folder).free / 2**20
        return f"{path}: the disk is full ({free:.0f} MiB free); free some space and run the same command again"
    if error.errno == errno.EFBIG:
        return f"{path}: grew larger than files may be here (see ulimit -f); raise the limit"
    return f"{path}: cannot be written ({error.strerror or error}); check the folder and its permissions"


def count_operation(kind: str, path: Path) -> None:
    """Count one operation and fail it if the tests asked for that."""
    fault = os.environ.get("USRGAN_FAULT")
    if fault is None:
        return
    what, _, number = fault.partition("@")
    if next(_operations) != int(number):
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = {"enospc": errno.ENOSPC, "eio": errno.EIO}[what]
    raise OSError(code, f"{os.strerror(code)} (injected into {kind})", str(path))
