"""Check every byte of a data set against its manifest: the checks of `inspect-shards verify`."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.errors import DamagedData, UsrganError
from shards.format import index, tar
from shards.format.checksum import crc32s
from shards.format.manifest import Manifest, ShardEntry
from shards.read.dataset import open_dataset


class Finding(NamedTuple):
    """One problem and the name of its file."""

    file: str
    problem: str


def verify(
    folder: Path, manifest: Manifest, *, deep: bool, advance: Callable[[int, str], None]
) -> list[Finding]:
    """Check every shard against manifest and indices; with `deep`, decode every pair too.

    Calls `advance(1, name)` after each shard. Returns all problems.
    """
    findings: list[Finding] = []
    last_key = -1
    listed = set()
    for split in ("train", "val"):
        for shard in manifest.splits[split].shards:
            listed.add(shard.name)
            try:
                keys = check_shard(folder, shard)
                if keys[0] <= last_key:
                    raise DamagedData(f"key {keys[0]:012d} is also in an earlier shard")
                last_key = keys[-1]
            except UsrganError as error:
                problem = str(error).removeprefix(f"{folder / shard.name}: ")
                findings.append(Finding(shard.name, problem))
            except FileNotFoundError as error:
                findings.append(Finding(shard.name, f"{Path(error.filename).name} is missing"))
            except OSError as error:
                findings.append(Finding(shard.name, f"cannot be read ({error.strerror})"))
            advance(1, shard.name)
    findings += [
        Finding(path.name, "is not in the manifest; other readers would read it as data")
        for path in sorted(folder.glob("*.tar"))
        if path.name not in listed
    ]
    if deep and not findings:
        findings += _check_pairs(folder)
    return findings


def check_shard(folder: Path, shard: ShardEntry) -> list[int]:
    """Check length, digest, structure, checksums and both indices of one shard; return its keys.

    Raises:
        DamagedData: with the first problem.
        OSError: a file is missing or cannot be read.
    """
    path = folder / shard.name
    length = path.stat().st_size
    if length != shard.bytes:  # checked first, because an empty file cannot be mapped
        raise DamagedData(f"has {length:,} bytes instead of {shard.bytes:,}")
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        intact = hashlib.sha256(content).hexdigest() == shard.sha256
        with memoryview(content) as view:
            members = list(tar.scan_tar(view))
            checksums = [crc32s(view[m.data_at :][: m.size] for m in sample) for sample in members]
    if not intact:
        raise DamagedData("its SHA-256 differs from the manifest; at least one byte changed")
    stored = index.load_npz(index.npz_path(folder, shard.name))
    consistent = (
        stored.entry(shard.name) == shard
        and np.array_equal(stored.key, [sample[0].key for sample in members])
        and np.array_equal(stored.offset, [[m.data_at for m in sample] for sample in members])
        and np.array_equal(stored.size, [[m.size for m in sample] for sample in members])
        and np.array_equal(stored.crc32, checksums)
    )
    if not consistent:
        raise DamagedData(f"index/{index.npz_path(folder, shard.name).name} does not match it")
    starts = [sample[0].header_at for sample in members]
    idx = index.idx_path(folder, shard.name)
    if idx.read_bytes() != index.encode_idx(starts, members[-1][2].end):
        raise DamagedData(f"{idx.name} does not match it")
    return [sample[0].key for sample in members]


def _check_pairs(folder: Path) -> list[Finding]:
    findings = []
    dataset = open_dataset(folder)
    for name in dataset.manifest.splits:
        split = dataset.split(name)
        for position in range(len(split)):
            try:
                split[position]
            except DamagedData as error:
                shard = split.shard_of(position)
                problem = str(error).removeprefix(f"{folder / shard}: ")
                findings.append(Finding(shard, problem))
        split.close()
    return findings
