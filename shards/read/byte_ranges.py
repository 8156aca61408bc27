"""Byte ranges of shards: from a folder, from a URL, or from a URL through a folder of cached shards.

What will be needed is said first, and taken in parts when it is. Of a local file the kernel is told, which
reads ahead into its own cache; a buffer for it here would cost more in fresh pages than the reading.
From a URL the whole range comes by one request and is held.
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
_RETRY_SECONDS = (0.2, 1.0, 4.0)
"""Seconds before a range of a URL is asked for again."""


class ByteRange(Protocol):
    """Bytes of a shard that are on their way."""

    def part(self, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes that hold [start, stop) of the shard as far as it goes, and where in it they begin.

        Raises:
            DamagedData: the shard cannot be read.
        """
        ...

    def file(self) -> OpenFile | None:
        """The local file that holds the shard, open as long as this is held; None if there is none."""
        ...

    @property
    def place(self) -> str:
        """Where the bytes come from."""
        ...

    @property
    def fix(self) -> str:
        """Advice if the bytes are damaged there."""
        ...


class RangeSource(Protocol):
    """Where the bytes of shards come from; safe to read from several threads."""

    bytes_read: int
    """Asked for so far."""

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """Begin to read [start, stop) of a shard.

        Raises:
            DamagedData: the shard is gone or cannot be read.
        """
        ...

    def close(self) -> None:
        """End background work and close files."""
        ...


class BytesInMemory(NamedTuple):
    """Bytes in memory."""

    content: bytes
    start: int
    place: str

    @property
    def fix(self) -> str:
        """As `Range` says."""
        return remedy(self.place)

    def part(self, start: int, stop: int) -> tuple[bytes, int]:
        """As `Range` says; all that is held."""
        return self.content, self.start

    def file(self) -> None:
        """There is none."""


class OpenFile:
    """A local file, closed when its last reference is gone: neither `OpenFiles` nor a reading thread holds it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


OpenFiles = Callable[[str], OpenFile]
"""Opens a file, or has it open: thousands of shards are more than a process may hold at once."""


def keep_files_open() -> OpenFiles:
    """The files of one reader."""
    return lru_cache(maxsize=_OPEN_FILES)(OpenFile)


class BytesOnDisk(NamedTuple):
    """Bytes of a local file."""

    path: str
    files: OpenFiles
    copy_of: str = ""
    """The URL of a shard that is kept here."""

    @property
    def place(self) -> str:
        """As `Range` says."""
        return self.path

    @property
    def fix(self) -> str:
        """As `Range` says."""
        return f"it is a copy of {self.copy_of}: delete it" if self.copy_of else remedy(self.path)

    def ahead(self, start: int, stop: int) -> BytesOnDisk:
        """Have the kernel read ahead, where it can."""
        try:
            file = self.files(self.path)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise self._unreadable(error) from None
        return self

    def part(self, start: int, stop: int) -> tuple[bytes, int]:
        """As `Range` says; no more than that."""
        try:
            file = self.files(self.path)
            return os.pread(file.descriptor, stop - start, start), start
        except OSError as error:
            raise self._unreadable(error) from None

    def file(self) -> OpenFile | None:
        """Return the open file; None where it cannot be opened, which `part` reports."""
        try:
            return self.files(self.path)
        except OSError:
            return None

    def _unreadable(self, error: OSError) -> DamagedData:
        return DamagedData(f"{self.path}: cannot be read ({error.strerror}); check the disk")


class LocalSource:
    """Shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_read = 0
        self._files = keep_files_open()

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """As `Ranges` says."""
        self.bytes_read += stop - start
        return BytesOnDisk(str(self.folder / shard.name), self._files).ahead(start, stop)

    def close(self) -> None:
        """As `Ranges` says; what is read later opens them again."""
        self._files = keep_files_open()


class RemoteSource:
    """Shards at a URL, one request for each range."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bytes_read = 0

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """As `Ranges` says."""
        url = remote.child(self.url, shard.name)
        content = _retry_read(url, start, stop)
        self.bytes_read += len(content)
        return BytesInMemory(content, start, url)

    def close(self) -> None:
        """Do nothing: no background work exists."""


def _retry_read(url: str, start: int, stop: int) -> bytes:
    """A range of a URL; a connection that breaks is no reason to end hours of training."""
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
