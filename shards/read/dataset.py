"""Data sets in a folder or at a URL."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from shards.errors import DamagedData, UsageError, remedy
from shards.format import index
from shards.format.manifest import NAME, Manifest, ShardEntry, load_manifest, parse_manifest
from shards.io import remote
from shards.io.remote import Location
from shards.read.byte_ranges import LocalSource, RangeSource, RemoteSource
from shards.read.shard_cache import CachedSource
from shards.read.split import SplitReader

_PARALLEL_INDICES = 16
"""Parallel requests for the indices of a data set at a URL."""


@dataclass(frozen=True)
class Dataset:
    """A finished data set in a folder or at a URL."""

    location: Location
    manifest: Manifest
    cache: Path | None = None
    """Folder for local copies of the shards of a URL; None: keep none."""
    indices: dict[str, list[index.ShardIndex]] = field(default_factory=dict, repr=False)
    """Indices of the splits opened so far, each read once."""

    def split(self, name: str) -> SplitReader:
        """Open `train` or `val` and check that every shard exists in full length.

        At a URL only the indices are checked; a missing shard is an error when it is read.

        Raises:
            UsageError: the data set has no such split.
            DamagedData: a shard or its index is missing, truncated or of another data set.
        """
        if name not in self.manifest.splits:
            raise UsageError(
                f"{self.location}: has no split {name!r}; it has {', '.join(self.manifest.splits)}"
            )
        if name not in self.indices:
            self.indices[name] = _load_indices(self.location, self.manifest.splits[name].shards)
        ranges = open_range_source(self.location, self.cache)
        return SplitReader(self.location, self.manifest, name, self.indices[name], ranges)


def open_dataset(location: Path | str) -> Dataset:
    """Open a finished data set.

    Args:
        location: a folder, or a URL that fsspec opens (`s3://…`).

    Raises:
        UsageError: the location has no finished data set, or one of a newer format.
        DamagedData: the manifest is damaged.
        UsrganError: the store of the URL does not answer.
    """
    if isinstance(location, Path) or not remote.is_url(location):
        location = Path(location)
        return Dataset(location, load_manifest(location))
    try:
        content = remote.read_file(remote.child(location, NAME))
    except FileNotFoundError:
        raise UsageError(
            f"{location}: has no {NAME}, so no finished data set is there; check the URL, or make a data set"
            f" with prep-shards --src PHOTOS --out {location}"
        ) from None
    return Dataset(location, parse_manifest(content, remote.child(location, NAME)))


def open_range_source(location: Location, cache: Path | None) -> RangeSource:
    """Return the source of a folder or URL; `cache` is the folder for local copies of a URL's shards."""
    if isinstance(location, Path):
        return LocalSource(location)
    return RemoteSource(location) if cache is None else CachedSource(location, cache)


def _load_indices(location: Location, shards: Sequence[ShardEntry]) -> list[index.ShardIndex]:
    if isinstance(location, Path):
        return [_load_local_index(location, entry) for entry in shards]
    with ThreadPoolExecutor(_PARALLEL_INDICES) as pool:
        return list(pool.map(partial(_load_remote_index, location), shards))


def _load_local_index(folder: Path, entry: ShardEntry) -> index.ShardIndex:
    path = folder / entry.name
    try:
        length = path.stat().st_size
    except OSError:
        raise DamagedData(f"{path}: is missing; {remedy(str(path))}") from None
    if length != entry.bytes:
        raise DamagedData(
            f"{path}: has {length:,} bytes instead of {entry.bytes:,}; {remedy(str(path))}"
        )
    npz = index.npz_path(folder, entry.name)
    return _check_same_shard(index.load_npz(npz), entry, str(npz))


def _load_remote_index(location: str, entry: ShardEntry) -> index.ShardIndex:
    url = remote.child(location, str(index.npz_path(Path(), entry.name)))
    try:
        content = remote.read_file(url)
    except FileNotFoundError:
        raise DamagedData(f"{url}: is missing; {remedy(url)}") from None
    return _check_same_shard(index.parse_npz(content, url), entry, url)


def _check_same_shard(loaded: index.ShardIndex, entry: ShardEntry, path: str) -> index.ShardIndex:
    if loaded.entry(entry.name) != entry:
        raise DamagedData(f"{path}: belongs to another shard; {remedy(path)}")
    return loaded
