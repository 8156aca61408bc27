"""Shards of a URL cached in a local folder, named by their SHA-256, for every run that reads them.

A shard is checked against its digest while it downloads and gets its name only when the digest matches, so every
cached shard is complete. Two processes that need the same shard wait for each other.
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
    """`FOLDER/SHA256.tar`."""
    return folder / f"{shard.sha256}.tar"


def is_cached(path: Path, shard: ShardEntry) -> bool:
    """Whether a shard lies at its place, in its full length."""
    try:
        return path.stat().st_size == shard.bytes
    except OSError:
        return False


def fetch_shard(url: str, shard: ShardEntry, folder: Path) -> Path:
    """Copy a shard from its URL into the folder, unless it is there.

    Raises:
        DamagedData: what the URL holds is not the shard that the manifest names.
        WriteFailed: the folder cannot be written to.
        UsrganError: the store does not answer.
    """
    atomic.make_folder(folder)
    path = cached_path(folder, shard)
    with _lock_shard(folder / f".{shard.sha256}.lock"):
        if is_cached(path, shard):
            return path
        for rest in folder.glob(f".{path.name}.*{atomic.TEMP_SUFFIX}"):  # of a run that was killed
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
    """Shards at a URL that are fetched whole into a folder, one after the other, as they come up.

    Until a shard is there its ranges come from the URL, so no step waits for a whole shard; and where
    the folder takes no more, all further ones do.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.bytes_read = 0
        self._store = RemoteSource(url)
        self._wanted: SimpleQueue[ShardEntry | None] = SimpleQueue()
        self._asked: set[str] = set()
        self._over = False
        self._lock = threading.Lock()
        self._files = keep_files_open()

    def range(self, shard: ShardEntry, start: int, stop: int) -> ByteRange:
        """As `Ranges` says."""
        self.bytes_read += stop - start
        path = cached_path(self.folder, shard)
        if is_cached(path, shard):
            url = remote.child(self.url, shard.name)
            return BytesOnDisk(str(path), self._files, copy_of=url).ahead(start, stop)
        if not self._over:
            self._ask(shard)
        return self._store.range(shard, start, stop)

    def close(self) -> None:
        """Fetch no more shards after the next."""
        self._over = True
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
        while not self._over and (shard := self._wanted.get()) is not None:
            try:
                fetch_shard(remote.child(self.url, shard.name), shard, self.folder)
            except (WriteFailed, OSError) as error:
                self._tell(f"{error}; no more shards are kept in {self.folder}, reading goes on")
                self._over = True
            except UsrganError as error:
                matter = str(error).partition(";")[0]
                self._tell(f"{matter}; this shard is not kept in {self.folder}, reading goes on")

    def _tell(self, message: str) -> None:
        from shards.terminal import console  # with all that prints; a reader seldom needs it

        if not self._over:
            console.warn(message)


@contextlib.contextmanager
def _lock_shard(lock: Path) -> Iterator[None]:
    """Hold a lock file that is removed at the end."""
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
        os.close(descriptor)  # of one that its holder has removed meanwhile
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
