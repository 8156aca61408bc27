"""Local copies of the shards of a URL, named by their SHA-256, for every run that reads them.

A shard is hashed while it downloads and gets its name only if the digest matches, so every cached shard is
complete. Processes that need the same shard wait for one download.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

from shards.errors import DamagedData, UsrganError, WriteFailed, remedy
from shards.format.manifest import ShardEntry
from shards.io import atomic, remote
from shards.read.byte_ranges import ByteRange, BytesOnDisk, RemoteSource, keep_files_open


def cached_path(folder: Path, shard: ShardEntry) -> Path:
    """Return the path of a shard's local copy, `FOLDER/SHA256.tar`."""
    return folder / f"{shard.sha256}.tar"


def is_cached(path: Path, shard: ShardEntry) -> bool:
    """Whether the local copy of a shard exists in full length."""
    try:
        return path.stat().st_size == shard.bytes
    except OSError:
        return False


def fetch_shard(url: str, shard: ShardEntry, folder: Path) -> Path:
    """Download a shard into the folder, unless it is cached.

    Raises:
        DamagedData: the shard is missing at the URL, or differs from the manifest.
        WriteFailed: the folder cannot be written to.
        UsrganError: the store does not answer.
    """
    atomic.make_folder(folder)
    path = cached_path(folder, shard)
    with _lock_shard(folder / f".{shard.sha256}.lock"):
        if is_cached(path, shard):
            return path
        for rest in folder.glob(f".{path.name}.*{atomic.TEMP_SUFFIX}"):  # of a killed run
            atomic.remove_file(rest)
        digest = hashlib.sha256()
        with atomic.open_replacement(path) as stream:
            try:
                for part in remote.read_parts(url):
                    digest.update(part)
                    stream.write(part)
            except FileNotFoundError:
                raise DamagedData(f"{url}: is missing; {remedy(url)}") from None
            if digest.hexdigest() != shard.sha256:
                raise DamagedData(f"{url}: its SHA-256 is not the manifest's; {remedy(url)}")
    return path


class CachedSource:
    """Byte ranges of shards at a URL; a thread downloads each requested shard, one after the other.

    Until a shard is cached its ranges come from the URL, so no step waits for a download. If the folder
    cannot be written to, all further ranges do.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.bytes_read = 0
        self._store = RemoteSource(url)
        self._queue: SimpleQueue[ShardEntry | None] = SimpleQueue()
        self._requested: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._files = keep_files_open()

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """See `RangeSource`."""
        self.bytes_read += stop - start
        path = cached_path(self.folder, shard)
        if is_cached(path, shard):
            url = remote.child(self.url, shard.name)
            return BytesOnDisk(str(path), self._files, copy_of=url).read_ahead(start, stop)
        if not self._closed:
            self._request_shard(shard)
        return self._store.range(shard, start, stop)

    def close(self) -> None:
        """Stop downloading after the current shard."""
        self._closed = True
        self._queue.put(None)

    def _request_shard(self, shard: ShardEntry) -> None:
        with self._lock:
            if not self._requested:
                # a daemon thread, so that the end of a run does not wait for downloads
                threading.Thread(target=self._fetch_requested, name="fetch", daemon=True).start()
            if shard.name not in self._requested:
                self._requested.add(shard.name)
                self._queue.put(shard)

    def _fetch_requested(self) -> None:
        while not self._closed and (shard := self._queue.get()) is not None:
            try:
                fetch_shard(remote.child(self.url, shard.name), shard, self.folder)
            except (WriteFailed, OSError) as error:
                self._warn(
                    f"{error}; no more shards are kept in {self.folder}, reading continues from the URL"
                )
                self._closed = True
            except UsrganError as error:
                problem = str(error).partition(";")[0]
                self._warn(
                    f"{problem}; this shard is not kept in {self.folder}, reading continues from the URL"
                )

    def _warn(self, message: str) -> None:
        from shards.terminal import console  # slow to import, and rarely needed by a reader

        if not self._closed:
            console.warn(message)


@contextlib.contextmanager
def _lock_shard(lock: Path) -> Iterator[None]:
    """Hold a lock file and remove it at the end."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WriteFailed(
                f"{lock}: cannot be written ({error.strerror}); check the folder and its permissions"
            ) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)  # its holder has removed this file meanwhile
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
