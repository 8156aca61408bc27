"""One shard out of the spills: a pure function of the plan and the shard's number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from isal import isal_zlib

from pipeline import upload
from pipeline.degrade import describe
from pipeline.folder import drop_shards
from pipeline.options import Options
from pipeline.patches import degradation_key
from pipeline.plan import Plan, Shard, Source
from pipeline.spill import Rows, spill_name
from shards import files, writer
from shards.codec import EXTENSIONS
from shards.errors import DamagedData
from shards.index import Row
from shards.manifest import SampleInfo, ShardEntry, encode_info
from shards.writer import Sample


def save_plan(work: Path, plan: Plan) -> None:
    """Put the plan where the processes that pack shards find it.

    Shards that were packed by another plan (a photo could not be read then) are removed.
    """
    named = {
        "plan-photos.json": msgspec.json.encode(plan.photos),
        "plan-shards.json": msgspec.json.encode(plan.shards),
    }
    rows = work / "plan-rows.npy"
    others = [name for name in named if _differs(work / name, named[name])]
    if others or (rows.exists() and not _holds(rows, plan.rows)):
        drop_shards(work.parent)
    for name, content in named.items():
        files.write_file(work / name, content)
    with files.replacing(rows) as stream:  # np.save goes past Python, and a full disk is not told
        header = np.lib.format.header_data_from_array_1_0(plan.rows)
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(plan.rows.view(np.uint8).data)


def _differs(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() != content


def _holds(path: Path, rows: Rows) -> bool:
    try:
        return np.array_equal(np.load(path, mmap_mode="r"), rows)
    except (OSError, ValueError):
        return False


def load_shards(work: Path) -> list[Shard]:
    """The shards of a saved plan."""
    path = work / "plan-shards.json"
    return _shards(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _shards(path: Path, _written: int) -> list[Shard]:
    return msgspec.json.decode(path.read_bytes(), type=list[Shard])


def pack_shard(out: Path, shard: Shard, options: Options, url: str = "") -> ShardEntry:
    """Write one shard and its indices from the spills, unless they are there; send them to `url`.

    Raises:
        DamagedData: a spill is not what was written.
        WriteFailed: the disk or the store refused.
    """
    entry = writer.finished_shard(out, shard.name)
    if entry is None:
        samples = _samples(out / "_work", shard, options)
        entry = writer.write_shard(out, shard.name, samples, extension=EXTENSIONS[options.codec])
    if url:
        upload.send_shard(out, entry, url)
    return entry


def _samples(work: Path, shard: Shard, options: Options) -> Iterator[tuple[Sample, Row]]:
    rows = np.load(work / "plan-rows.npy", mmap_mode="r")[shard.first : shard.last]
    photos = _photos(work / "plan-photos.json", (work / "plan-photos.json").stat().st_mtime_ns)
    pairs = _read_pairs(work, rows)
    placed = rows[["source", "x", "y", "luma_std", "gradient"]].tolist()
    for key, (source, x, y, spread, gradient), (hr, lr) in zip(
        range(shard.first, shard.last), placed, pairs, strict=True
    ):
        photo = photos[source]
        info = SampleInfo(
            gradient, spread, options.scale, shard.split, photo.name, photo.sha256, x, y
        )
        if options.flags_blocks:
            info.blockiness, info.pre_scale = photo.blockiness, photo.pre_scale
        if options.degrade == "realesrgan":
            info.degradation = describe(degradation_key(options.seed, photo.pixels, x, y))
        yield Sample(key, hr, encode_info(info), lr), Row(photo.name, x, y, spread, gradient)


def _read_pairs(work: Path, rows: Rows) -> list[tuple[bytes, bytes]]:
    """HR and LR of every row; each spill is opened once and read forward."""
    pairs = [(b"", b"")] * len(rows)
    placed = rows[["offset", "hr", "lr", "crc32"]].tolist()
    for chunk in np.unique(rows["chunk"]):
        path = work / spill_name(chunk)
        with path.open("rb", buffering=0) as stream:
            for number in np.flatnonzero(rows["chunk"] == chunk).tolist():
                at, hr, lr, checksum = placed[number]
                both = os.pread(stream.fileno(), hr + lr, at)
                if isal_zlib.crc32(both) != checksum:
                    raise DamagedData(
                        f"{path}: was damaged on disk; run the same command with --repair"
                    )
                pairs[number] = both[:hr], both[hr:]
    return pairs


@lru_cache(maxsize=1)
def _photos(path: Path, _written: int) -> list[Source]:
    return msgspec.json.decode(path.read_bytes(), type=list[Source])
