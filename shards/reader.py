"""Data sets from disk: CRC-checked, decoded patch pairs by position.

A pair costs one `pread`; its three headers, its key, its sizes and its checksums are compared with
the index before a byte is decoded, so a damaged shard is an error that names shard and key and
never a wrong pair.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from isal import isal_zlib

from shards import codec, index, tar
from shards.errors import DamagedData, UsageError
from shards.manifest import Manifest, SampleInfo, load_manifest
from shards.png import RGB8

REPAIR = "run the prep-shards command that made it with --repair"


class Pair(NamedTuple):
    """One training pair, uint8 RGB: `hr` [S S 3] and `lr` [S/scale S/scale 3]."""

    key: int
    hr: RGB8
    lr: RGB8
    info: SampleInfo


class SplitReader:
    """The pairs of one split, in key order; safe to read from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.name = name
        self._codec = manifest.codec
        self._parts = tar.parts(codec.EXTENSIONS[manifest.codec])
        self._shards = manifest.splits[name].shards
        self._indices = [
            _checked_index(folder, shard.name, manifest, name) for shard in self._shards
        ]
        self._first = np.cumsum([0, *(shard.samples for shard in self._shards)])
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, position: int) -> Pair:
        """Read and decode the pair at `position`.

        Raises:
            DamagedData: anything differs from what the index promises; names shard and key.
        """
        key, hr, meta, lr = self.members(position)
        try:
            info = msgspec.json.decode(meta, type=SampleInfo)
            pair = Pair(key, codec.decode(hr, self._codec), codec.decode(lr, self._codec), info)
            _check_shapes(pair, self.manifest)
        except (DamagedData, msgspec.DecodeError) as error:
            number, _ = self._locate(position)
            raise self._damaged(number, key, str(error)) from None
        return pair

    def members(self, position: int) -> tuple[int, bytes, bytes, bytes]:
        """Key, HR, JSON and LR of a pair as stored, checksums verified."""
        number, row = self._locate(position)
        shard = self._indices[number]
        key = int(shard.key[row])
        start = int(shard.offset[row, 0]) - tar.BLOCK
        end = int(shard.offset[row, 2]) + tar.padded(int(shard.size[row, 2]))
        content = os.pread(self._descriptor(number), end - start, start)
        try:
            found = tar.parse_sample(memoryview(content), 0, base=start)
            if found[0].key != key:
                raise DamagedData(f"holds key {found[0].key:012d} in its place")
            if found[0].part != self._parts[0]:
                raise DamagedData(f"holds {found[0].part} where {self._parts[0]} is expected")
            parts = [content[member.data_at - start :][: member.size] for member in found]
            for part, name, size, crc in zip(
                parts, self._parts, shard.size[row], shard.crc32[row], strict=True
            ):
                if len(part) != size or isal_zlib.crc32(part) != crc:
                    raise DamagedData(f"{name} has a wrong checksum")
        except DamagedData as error:
            raise self._damaged(number, key, str(error)) from None
        return key, parts[0], parts[1], parts[2]

    def shard_of(self, position: int) -> str:
        """The file name of the shard that holds a pair."""
        return self._shards[self._locate(position)[0]].name

    def close(self) -> None:
        """Close the shards' files."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = int(np.searchsorted(self._first, position, side="right")) - 1
        return number, position - int(self._first[number])

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._descriptors:
                path = self.folder / self._shards[number].name
                self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[number]

    def _damaged(self, number: int, key: int, reason: str) -> DamagedData:
        path = self.folder / self._shards[number].name
        return DamagedData(f"{path}: sample {key:012d}: {reason}; {REPAIR}")


class Dataset:
    """A finished folder of shards."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def split(self, name: str) -> SplitReader:
        """Open `train` or `val`; checks that every shard is there in its full length."""
        if name not in self.manifest.splits:
            raise UsageError(
                f"{self.folder}: has no split {name!r}; it has {', '.join(self.manifest.splits)}"
            )
        return SplitReader(self.folder, self.manifest, name)


def open_dataset(folder: Path) -> Dataset:
    """Open a folder that `prep-shards` wrote.

    Raises:
        UsageError: it is no finished data set, or of a newer format.
        DamagedData: its manifest is damaged.
    """
    return Dataset(folder, load_manifest(folder))


def _checked_index(folder: Path, name: str, manifest: Manifest, split: str) -> index.ShardIndex:
    entry = next(shard for shard in manifest.splits[split].shards if shard.name == name)
    path = folder / name
    try:
        length = path.stat().st_size
    except OSError:
        raise DamagedData(f"{path}: is missing; {REPAIR}") from None
    if length != entry.bytes:
        raise DamagedData(f"{path}: has {length:,} bytes instead of {entry.bytes:,}; {REPAIR}")
    loaded = index.load_npz(index.npz_path(folder, name))
    if loaded.entry(name) != entry:
        raise DamagedData(f"{index.npz_path(folder, name)}: is of another shard; {REPAIR}")
    return loaded


def _check_shapes(pair: Pair, manifest: Manifest) -> None:
    size = manifest.hr_size
    for name, image, side in (("hr", pair.hr, size), ("lr", pair.lr, size // manifest.scale)):
        if image.shape != (side, side, 3):
            raise DamagedData(
                f"{name} is {image.shape[1]}x{image.shape[0]} instead of {side}x{side}"
            )
