"""Byte ranges of shards: from a folder, from a URL, or from local copies of shards at a URL.

A reader first announces a range and later reads parts of it. For a local file the kernel reads ahead into its
page cache; a buffer of our own would cost more in new memory pages than it saves. A range of a URL comes in
one request and stays in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from shards.errors import DamagedData, UsageError, UsrganError, remedy
from shards.format.manifest import ShardEntry
from shards.io import remote

_OPEN_FILES = 64
"""Files that one reader keeps open; a data set may have more shards than a process may open."""
_RETRY_SECONDS = (0.2, 1.0, 4.0)
"""Pauses before the retries of a failed request, seconds."""


class ByteRange(Protocol):
    """An announced byte range of one shard."""

    def read(self, start: int, stop: int) -> tuple[bytes, int]:
        """Return bytes that contain [start, stop) of the shard, and the offset at which they start.

        The bytes end early where the shard does.

        Raises:
            DamagedData: the shard cannot be read.
        """
        ...

    def open_file(self) -> OpenFile | None:
        """Return the local file of the shard; None without one."""
        ...

    @property
    def location(self) -> str:
        """Path or URL of the bytes."""
        ...

    @property
    def advice(self) -> str:
        """Advice for the user if the bytes are damaged."""
        ...


class RangeSource(Protocol):
    """A source of byte ranges of shards; threads may share it."""

    bytes_read: int
    """Bytes requested so far."""

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """Announce [start, stop) of a shard and begin to read it.

        Raises:
            DamagedData: the shard is missing or cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop background work and close files."""
        ...


class BytesInMemory(NamedTuple):
    """A byte range held in memory."""

    content: bytes
    start: int
    location: str

    @property
    def advice(self) -> str:
        """See `ByteRange`."""
        return remedy(self.location)

    def read(self, start: int, stop: int) -> tuple[bytes, int]:
        """See `ByteRange`; returns all bytes of the range."""
        return self.content, self.start

    def open_file(self) -> None:
        """Return None: the bytes have no local file."""


class OpenFile:
    """A local file, closed with its last reference: the cache of open files or a reading thread."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


OpenFiles = Callable[[str], OpenFile]
"""Opens a file, or returns it if it is open."""


def keep_files_open() -> OpenFiles:
    """Return a cache of open files for one reader."""
    return lru_cache(maxsize=_OPEN_FILES)(OpenFile)


class BytesOnDisk(NamedTuple):
    """A byte range of a local file."""

    path: str
    files: OpenFiles
    copy_of: str = ""
    """URL of the shard that this file copies; empty for an original."""

    @property
    def location(self) -> str:
        """See `ByteRange`."""
        return self.path

    @property
    def advice(self) -> str:
        """See `ByteRange`."""
        return f"it is a copy of {self.copy_of}: delete it" if self.copy_of else remedy(self.path)

    def read_ahead(self, start: int, stop: int) -> BytesOnDisk:
        """Ask the kernel to read [start, stop) ahead; return this range."""
        try:
            file = self.files(self.path)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise self._read_error(error) from None
        return self

    def read(self, start: int, stop: int) -> tuple[bytes, int]:
        """See `ByteRange`; returns exactly these bytes."""
        try:
            file = self.files(self.path)
            return os.pread(file.descriptor, stop - start, start), start
        except OSError as error:
            raise self._read_error(error) from None

    def open_file(self) -> OpenFile | None:
        """Return the open file; None if it cannot be opened, which `read` reports."""
        try:
            return self.files(self.path)
        except OSError:
            return None

    def _read_error(self, error: OSError) -> DamagedData:
        return DamagedData(f"{self.path}: cannot be read ({error.strerror}); check the disk")


class LocalSource:
    """Byte ranges of shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_read = 0
        self._files = keep_files_open()

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """See `RangeSource`."""
        self.bytes_read += stop - start
        return BytesOnDisk(str(self.folder / shard.name), self._files).read_ahead(start, stop)

    def close(self) -> None:
        """See `RangeSource`; later reads open the files again."""
        self._files = keep_files_open()


class RemoteSource:
    """Byte ranges of shards at a URL, one request each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bytes_read = 0

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """See `RangeSource`."""
        url = remote.child(self.url, shard.name)
        content = _retry_read(url, start, stop)
        self.bytes_read += len(content)
        return BytesInMemory(content, start, url)

    def close(self) -> None:
        """Do nothing: this source has no background work and no files."""


def _retry_read(url: str, start: int, stop: int) -> bytes:
    """Read a range of a URL; retry, because a broken connection must not end hours of training."""
    try:
        for pause in _RETRY_SECONDS:
            try:
                return remote.read_range(url, start, stop)
            except UsageError:
                raise
            except UsrganError:
                time.sleep(pause)
        return remote.read_range(url, start, stop)
    except FileNotFoundError:
        raise DamagedData(f"{url}: is missing; {remedy(url)}") from None
