"""Byte ranges out of shards: from a folder, from a URL, or from a URL by way of a folder of whole shards.

Local files are opened for each range, which costs little beside the 64 samples that a range holds, and
spares a run over thousands of shards the limit on open files.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from shards import fetched, storage
from shards.errors import DamagedData, UsrganError
from shards.manifest import ShardEntry
from shards.storage import Location


class Ranges(Protocol):
    """Where the bytes of shards come from; safe to read from several threads."""

    bytes_read: int
    """So far, by this object."""

    def read(self, shard: ShardEntry, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a shard, fewer where it is cut off.

        Raises:
            DamagedData: the shard is gone or cannot be read.
        """
        ...

    def close(self) -> None:
        """End what goes on in the background."""
        ...


class LocalRanges:
    """Shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_read = 0

    def read(self, shard: ShardEntry, start: int, stop: int) -> bytes:
        """As `Ranges` says."""
        content = _pread(self.folder / shard.name, start, stop)
        self.bytes_read += len(content)
        return content

    def close(self) -> None:
        """Nothing goes on."""


class StoreRanges:
    """Shards at a URL, one request for each range."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bytes_read = 0

    def read(self, shard: ShardEntry, start: int, stop: int) -> bytes:
        """As `Ranges` says."""
        url = storage.below(self.url, shard.name)
        try:
            content = storage.read_range(url, start, stop)
        except FileNotFoundError:
            raise DamagedData(f"{url}: is missing; run prep-shards --repair") from None
        self.bytes_read += len(content)
        return content

    def close(self) -> None:
        """Nothing goes on."""


class FetchedRanges:
    """Shards at a URL that are fetched whole into a folder, one after the other, as they come up.

    Until a shard is there its ranges come from the URL, so no step waits for a whole shard.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.bytes_read = 0
        self._store = StoreRanges(url)
        self._wanted: SimpleQueue[ShardEntry | None] = SimpleQueue()
        self._asked: set[str] = set()
        self._trouble: UsrganError | None = None
        self._lock = threading.Lock()

    def read(self, shard: ShardEntry, start: int, stop: int) -> bytes:
        """As `Ranges` says; raises as well what fetching a shard came upon."""
        if self._trouble is not None:
            raise self._trouble
        path = fetched.place(self.folder, shard)
        if fetched.is_there(path, shard):
            content = _pread(path, start, stop)
        else:
            self._ask(shard)
            content = self._store.read(shard, start, stop)
        self.bytes_read += len(content)
        return content

    def close(self) -> None:
        """Fetch no more shards after the next."""
        self._trouble = UsrganError("closed")
        self._wanted.put(None)

    def _ask(self, shard: ShardEntry) -> None:
        with self._lock:
            if not self._asked:
                # a daemon: the end of a run does not wait for shards that nobody needs any more
                threading.Thread(target=self._fetch, name="fetch", daemon=True).start()
            if shard.name not in self._asked:
                self._asked.add(shard.name)
                self._wanted.put(shard)

    def _fetch(self) -> None:
        while self._trouble is None and (shard := self._wanted.get()) is not None:
            try:
                fetched.fetch(storage.below(self.url, shard.name), shard, self.folder)
            except UsrganError as error:
                self._trouble = error


def open_ranges(location: Location, cache: Path | None) -> Ranges:
    """The shards of a folder or URL; `cache` is where those of a URL are kept whole, if anywhere."""
    if isinstance(location, Path):
        return LocalRanges(location)
    return StoreRanges(location) if cache is None else FetchedRanges(location, cache)


def _pread(path: Path, start: int, stop: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DamagedData(
            f"{path}: cannot be read at byte {start:,} ({error.strerror}); check the disk"
        ) from None
