"""All file writes of usrgan: temporary file in the same folder, fsync, rename, fsync of the folder.

A file under its final name is therefore always complete. Each step is a numbered *operation*:
`USRGAN_FAULT=kill@7` (or `enospc@7`, `eio@7`) makes the seventh operation of this process fail. Tests
use it to prove that a crash at any operation loses no data. A failed fsync is never retried, because
the kernel may already have dropped the pages (https://wiki.postgresql.org/wiki/Fsync_Errors).
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
"""Write buffer in bytes; one system call costs as much as copying a few kilobytes."""
_PARTS_PER_WRITE = 8
"""Parts per `writev`, about 100 KiB of patches. Larger calls use larger pages, which are expensive
on a virtual machine that has returned its free memory to the host."""
_operations = itertools.count(1)


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, complete and durable; on an error the old file stays."""
    with open_replacement(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def open_replacement(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on a clean exit, make it durable and rename it to `path`.

    Raises:
        WriteFailed: a write failed; `path` is unchanged and the temporary file is removed.
    """
    # A process id is not unique when two machines share the folder.
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


def write_parts(stream: BinaryIO, parts: Sequence[bytes]) -> None:
    """Write parts one after the other with `writev`, which saves a third of the time for patch pairs."""
    for first in range(0, len(parts), _PARTS_PER_WRITE):
        stream.flush()
        group = parts[first : first + _PARTS_PER_WRITE]
        written = os.writev(stream.fileno(), group)
        if written < sum(map(len, group)):
            stream.write(b"".join(group)[written:])  # raises the error of a full disk


def start_writeback(stream: BinaryIO, start: int, stop: int) -> None:
    """Start writing bytes [start, stop) to disk in the background, to shorten the later fsync.

    POSIX_FADV_DONTNEED makes Linux write dirty pages; they stay in the cache.
    """
    stream.flush()
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # only a hint; fsync reports write errors
            os.posix_fadvise(stream.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def append_line(path: Path, line: str) -> None:
    """Append a complete line to a log; a crash can truncate the last line, which readers skip."""
    rest = line.encode() + b"\n"
    try:
        count_operation("append", path)
        with path.open("ab", buffering=0) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[stream.write(rest) :]
            except OSError:  # remove the partial line, or the next one would continue it
                with contextlib.suppress(OSError):
                    stream.truncate(before)
                raise
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error


def make_folder(path: Path) -> None:
    """Create `path` and its parents, durably."""
    if path.is_dir():
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        count_operation("mkdir", path)
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.parent)
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error


def check_folder(path: Path, *, option: str) -> None:
    """Check that a folder exists or can be created, and is writable; write nothing.

    Raises:
        UsageError: a file blocks the path; names `option` and the file.
        WriteFailed: the folder is read-only; names `option` and the folder.
    """
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise UsageError(f"{option} {path}: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise WriteFailed(f"{option} {path}: {nearest} is not writable; check its permissions")


def remove_file(path: Path) -> None:
    """Delete a file or a folder tree if it exists."""
    try:
        count_operation("remove", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteFailed(_describe_error(path, error)) from error


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable."""
    count_operation("fsync folder", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temps(folder: Path) -> None:
    """Delete the temporary files of killed runs in `folder`; the caller holds its lock."""
    for temp in folder.glob(f".*{TEMP_SUFFIX}"):
        remove_file(temp)


@contextlib.contextmanager
def locked(folder: Path, *, holder: str) -> Iterator[None]:
    """Lock `folder` for one writing run; the kernel releases the lock when the process ends.

    Raises:
        UsageError: another process holds the lock.
        WriteFailed: the lock file cannot be written, or the file system has no flock.
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
                f"{folder}: cannot be locked ({error.strerror});"
                " name a folder on a file system that supports flock"
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
        return f"{path}: the disk is full ({free:.0f} MiB free); free space and run the same command again"
    if error.errno == errno.EFBIG:
        return f"{path}: exceeds the file size limit; raise it with ulimit -f"
    return f"{path}: cannot be written ({error.strerror or error}); check the folder and its permissions"


def count_operation(kind: str, path: Path) -> None:
    """Count one operation; raise or kill the process if USRGAN_FAULT names its number."""
    fault = os.environ.get("USRGAN_FAULT")
    if fault is None:
        return
    effect, _, number = fault.partition("@")
    if next(_operations) != int(number):
        return
    if effect == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = {"enospc": errno.ENOSPC, "eio": errno.EIO}[effect]
    raise OSError(code, f"{os.strerror(code)} (injected into {kind})", str(path))
