"""Packing stage: each shard is merged from the spills, a pure function of the plan and its number."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.options import Options
from pipeline.patches.degrade import describe_recipe
from pipeline.patches.extract import degradation_key
from pipeline.patches.spill import Rows, spill_name
from pipeline.stages import upload
from pipeline.stages.output_folder import remove_shards
from pipeline.stages.plan import Plan, Shard, Source
from shards import writer
from shards.errors import DamagedData
from shards.format import index
from shards.format.checksum import crc32s
from shards.format.codec import EXTENSIONS
from shards.format.manifest import SampleInfo, ShardEntry, encode_info
from shards.io import atomic

_PHOTOS, _STARTS = "plan-photos.bin", "plan-starts.bin"
"""Files with the photos of a plan, and with the offset of each in the first, and its end (uint64)."""
_PAIRS_PER_READ = 512
"""Pairs per `preadv`; Linux allows 1024 buffers (IOV_MAX), and a pair needs two."""


def save_plan(work: Path, plan: Plan) -> None:
    """Write the plan to files for the packing processes.

    Removes shards that were packed by another plan, as after a photo could not be read.
    """
    photos = [msgspec.msgpack.encode(photo) for photo in plan.photos]
    starts = np.cumsum([0, *map(len, photos)], dtype="<u8")
    files = {
        _PHOTOS: b"".join(photos),
        _STARTS: starts.tobytes(),
        "plan-shards.json": msgspec.json.encode(plan.shards),
    }
    rows = work / "plan-rows.npy"
    changed = [name for name in files if _is_different(work / name, files[name])]
    if changed or (rows.exists() and not _has_content(rows, plan.rows)):
        remove_shards(work.parent)
    for name, content in files.items():
        atomic.write_file(work / name, content)
    # not np.save, which bypasses Python's file object and hides the error of a full disk
    with atomic.open_replacement(rows) as stream:
        header = np.lib.format.header_data_from_array_1_0(plan.rows)
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(plan.rows.view(np.uint8).data)


def _is_different(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() != content


def _has_content(path: Path, rows: Rows) -> bool:
    try:
        return np.array_equal(np.load(path, mmap_mode="r"), rows)
    except (OSError, ValueError):
        return False


def load_shards(work: Path) -> list[Shard]:
    """Return the shards of a saved plan."""
    path = work / "plan-shards.json"
    return _load_shards_cached(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load_shards_cached(path: Path, _written: int) -> list[Shard]:
    return msgspec.json.decode(path.read_bytes(), type=list[Shard])


def pack_shard(out: Path, shard: Shard, options: Options, url: str = "") -> ShardEntry:
    """Write one shard and its indices from the spills, unless they exist; upload them to `url`.

    Raises:
        DamagedData: a spill was damaged on disk.
        WriteFailed: the disk or the store refused.
    """
    entry = writer.find_finished_shard(out, shard.name)
    if entry is None:
        entry = _write_shard(out, shard, options)
    if url:
        upload.send_shard(out, entry, url)
    return entry


def _write_shard(out: Path, shard: Shard, options: Options) -> ShardEntry:
    work = out / "_work"
    rows = np.array(np.load(work / "plan-rows.npy", mmap_mode="r")[shard.first : shard.last])
    photos = _load_sources(work, rows["source"].tolist())
    origins = index.Origins(
        [photos[source].name for source in rows["source"].tolist()],
        *(rows[name] for name in ("x", "y", "luma_std", "gradient")),
    )
    return writer.write_shard(
        out,
        shard.name,
        np.arange(shard.first, shard.last),
        _sample_infos(rows, photos, shard.split, options),
        np.stack([rows["hr"], rows["lr"]], axis=1).astype(np.int64),
        origins,
        partial(_read_pairs, work, rows),
        extension=EXTENSIONS[options.codec],
    )


def _sample_infos(
    rows: Rows, photos: Mapping[int, Source], split: str, options: Options
) -> list[bytes]:
    """Return the JSON of every row."""
    infos = []
    samples = rows[["source", "x", "y", "luma_std", "gradient"]].tolist()
    for source, x, y, luma_std, gradient in samples:
        photo = photos[source]
        info = SampleInfo(gradient, luma_std, options.scale, split, photo.name, photo.sha256, x, y)
        if options.flags_blocks:
            info.blockiness, info.pre_scale = photo.blockiness, photo.pre_scale
        if options.degrade == "realesrgan":
            info.degradation = describe_recipe(degradation_key(options.seed, photo.pixels, x, y))
        infos.append(encode_info(info))
    return infos


def _read_pairs(
    work: Path, rows: Rows, content: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Read HR and LR of every row to their offsets [N 2] in `content`; return their verified CRC-32 [N 2].

    Opens each spill once and reads it forward.
    """
    ends = offsets + np.stack([rows["hr"], rows["lr"]], axis=1)
    spans = np.stack([offsets, ends], axis=2).tolist()
    expected = np.stack([rows["hr_crc32"], rows["lr_crc32"]], axis=1)
    crcs = expected.tolist()
    chunks, starts = rows["chunk"].tolist(), rows["offset"].tolist()
    view = content.data
    for chunk, runs in itertools.groupby(_consecutive_runs(rows), key=lambda run: chunks[run[0]]):
        path = work / spill_name(chunk)
        with path.open("rb", buffering=0) as stream:
            for run in runs:
                parts = [view[first:last] for row in run for first, last in spans[row]]
                os.preadv(stream.fileno(), parts, starts[run[0]])
                if crc32s(parts) != [crc for row in run for crc in crcs[row]]:
                    raise DamagedData(
                        f"{path}: was damaged on disk; run the same command with --repair"
                    )
    return expected


def _consecutive_runs(rows: Rows) -> Iterator[list[int]]:
    """Yield the indices of rows in the order of the spills, grouped into runs of contiguous pairs."""
    order = np.lexsort([rows["offset"], rows["chunk"]])
    chunks, starts = rows["chunk"][order], rows["offset"][order]
    ends = starts + rows["hr"][order] + rows["lr"][order]
    apart = (chunks[1:] != chunks[:-1]) | (starts[1:] != ends[:-1])
    for run in np.split(order, np.flatnonzero(apart) + 1):
        for at in range(0, len(run), _PAIRS_PER_READ):
            yield run[at : at + _PAIRS_PER_READ].tolist()


def _load_sources(work: Path, numbers: Iterable[int]) -> dict[int, Source]:
    """Read the photos with these numbers; a plan may have millions, and a shard needs thousands."""
    starts = np.memmap(work / _STARTS, "<u8", "r")
    photos = {}
    with (work / _PHOTOS).open("rb", buffering=0) as stream:
        for number in sorted(set(numbers)):
            start, end = starts[number : number + 2].tolist()
            content = os.pread(stream.fileno(), end - start, start)
            photos[number] = msgspec.msgpack.decode(content, type=Source)
    return photos
