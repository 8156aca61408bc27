"""Write shards and data sets: every file complete and durable, the index after its tar, the manifest last."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData
from shards.format import index, tar
from shards.format.checksum import crc32s
from shards.format.codec import EXTENSIONS
from shards.format.index import Origins
from shards.format.manifest import (
    NAME,
    Manifest,
    ShardEntry,
    Split,
    dataset_digest,
    encode_manifest,
)
from shards.io import atomic
from shards.version import __version__

PART, PARTS = 2**17, 16
"""Bytes hashed and written at a time (they fit the cache of a core), and parts per write-back to disk."""
_BUFFER_BYTES = 2**24
"""Tar buffers are multiples of this size, because the next tar may be a little longer."""
_thread_buffers = threading.local()
WritePixels = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], npt.NDArray[np.uint32]]
"""`write_pixels(content, offsets)` writes the HR and LR of N samples into the bytes of a tar, at their
offsets [N 2], and returns their CRC-32s [N 2]."""


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard, such as `train-000000.tar`."""
    return f"{split}-{number:06d}.tar"


def write_shard(
    folder: Path,
    name: str,
    keys: npt.NDArray[np.int64],
    metas: Sequence[bytes],
    sizes: npt.NDArray[np.int64],
    origins: Origins,
    write_pixels: WritePixels,
    *,
    extension: str = "png",
) -> ShardEntry:
    """Write NAME.tar, NAME.tar.idx and index/NAME.npz; the npz comes last and marks the shard as finished.

    The same samples give the same bytes. The whole tar is built in memory before it is written.

    Args:
        folder: of the data set.
        name: file name of the tar, such as `train-000000.tar`.
        keys: sample keys [N], ascending.
        metas: JSON of each sample.
        sizes: bytes of HR and LR [N 2].
        origins: photo, position and detail of the samples.
        write_pixels: writes HR and LR into the tar.
        extension: file extension of the codec.
    """
    assert len(keys), f"{name}: an empty shard breaks readers"
    assert (np.diff(keys) > 0).all(), f"{name}: keys do not ascend"
    stale = index.npz_path(folder, name)
    if stale.exists():  # of an earlier tar; it would mark the new one as finished
        atomic.remove_file(stale)
        atomic.sync_folder(stale.parent)
    lengths = np.stack([sizes[:, 0], [len(meta) for meta in metas], sizes[:, 1]], axis=1)
    content = _buffer(tar.tar_size(lengths))
    offsets = tar.build_tar(content, keys, tar.member_names(extension), lengths)
    view = content.data
    for at, meta in zip(offsets[:, 1].tolist(), metas, strict=True):
        view[at : at + len(meta)] = meta
    hr, lr = write_pixels(content, offsets[:, ::2]).T
    checksums = np.stack([hr, crc32s(metas), lr], axis=1)
    digest = hashlib.sha256()
    with atomic.open_replacement(folder / name) as stream:
        for at in range(0, len(view), PART):
            part = view[at : at + PART]
            digest.update(part)
            stream.write(part)
            if at // PART % PARTS == PARTS - 1:
                atomic.start_writeback(stream, at + PART - PARTS * PART, at + PART)
    starts = (offsets[:, 0] - tar.BLOCK).tolist()
    end = int(offsets[-1, 2]) + tar.padded_size(int(lengths[-1, 2]))
    atomic.write_file(index.idx_path(folder, name), index.encode_idx(starts, end))
    atomic.make_folder(folder / "index")
    entry = ShardEntry(name, len(keys), len(content), digest.hexdigest())
    table = index.encode_npz(keys, offsets, lengths, checksums.astype(np.uint32), origins, entry)
    atomic.write_file(index.npz_path(folder, name), table)
    return entry


def _buffer(length: int) -> npt.NDArray[np.uint8]:
    """Return a buffer of `length` bytes; each thread reuses its own, because new pages are slow."""
    buffer: npt.NDArray[np.uint8] | None = getattr(_thread_buffers, "tar", None)
    if buffer is None or len(buffer) < length:
        buffer = _thread_buffers.tar = np.empty(
            -(-length // _BUFFER_BYTES) * _BUFFER_BYTES, np.uint8
        )
    return buffer[:length]


def find_finished_shard(folder: Path, name: str) -> ShardEntry | None:
    """Return the entry of a shard that an earlier run finished, or None.

    Checks only names and sizes, because `write_shard` makes the files durable in order;
    `inspect-shards verify` reads every byte.
    """
    try:
        entry = index.load_npz(index.npz_path(folder, name)).entry(name)
    except DamagedData:
        return None
    tar, idx = folder / name, index.idx_path(folder, name)
    complete = tar.is_file() and tar.stat().st_size == entry.bytes
    indexed = idx.is_file() and idx.stat().st_size == 8 * (entry.samples + 1)
    return entry if complete and indexed else None


def publish(folder: Path, manifest: Manifest) -> Manifest:
    """Write the companion files of other readers, then the manifest, which makes the folder a data set."""
    manifest = msgspec.structs.replace(
        manifest,
        dataset_sha256=dataset_digest(manifest.splits),
        created_by=f"usrgan {__version__}",
    )
    atomic.make_folder(folder / ".nv-meta")
    for name, content in companion_files(manifest).items():
        atomic.write_file(folder / name, content)
    atomic.write_file(folder / NAME, encode_manifest(manifest))
    return manifest


def companion_files(manifest: Manifest) -> dict[str, bytes]:
    """Return the files that other readers need, by name; all follow from the manifest."""
    return {
        **{
            f"{name}.wids.json": _wids_index(name, split) for name, split in manifest.splits.items()
        },
        **{f".nv-meta/{name}": content for name, content in _energon_files(manifest).items()},
        "README.md": _dataset_card(manifest),
    }


def _wids_index(name: str, split: Split) -> bytes:
    """Return the shard list that the `wids` package reads."""
    shards = [
        {"url": shard.name, "nsamples": shard.samples, "filesize": shard.bytes}
        for shard in split.shards
    ]
    fields = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": name,
        "shardlist": shards,
    }
    return _encode_json(fields)


def _energon_files(manifest: Manifest) -> dict[str, bytes]:
    """Return the files that `energon prepare` would write."""
    counts = {
        shard.name: shard.samples for split in manifest.splits.values() for shard in split.shards
    }
    parts = "".join(
        f"  {name}:"
        + "".join(f"\n  - {shard.name}" for shard in split.shards)
        + ("\n" if split.shards else " []\n")
        for name, split in manifest.splits.items()
    )
    return {
        ".info.json": _encode_json({"energon_version": "7.0.0", "shard_counts": counts}),
        "split.yaml": f"exclude: []\nsplit_parts:\n{parts}".encode(),
        "dataset.yaml": b"__module__: megatron.energon\n__class__: CrudeWebdataset\nsubflavors: {}\n",
    }


def _dataset_card(manifest: Manifest) -> bytes:
    """Return the data set card; its `configs:` make Hugging Face `datasets` read only the tars."""
    patterns = {"train": ("train", "train-*.tar"), "val": ("validation", "val-*.tar")}
    listed = "".join(
        f"      - split: {patterns[name][0]}\n        path: {patterns[name][1]}\n"
        for name, split in manifest.splits.items()
        if split.shards
    )
    extension = EXTENSIONS[manifest.codec]
    degraded = manifest.options.get("degrade", "bicubic") != "bicubic"
    origin = f"cut out of the antialiased bicubic ×1/{manifest.scale} of the whole photo"
    if degraded:
        origin = "blurred, resized, noisy and compressed twice over, as the JSON says"
    hr, lr = manifest.hr_size, manifest.hr_size // manifest.scale
    rows = "".join(
        f"| {name} | {getattr(manifest.photos, name):,} | {split.samples:,} | {len(split.shards):,} |\n"
        for name, split in manifest.splits.items()
    )
    return f"""---
configs:
  - config_name: default
    data_files:
{listed}task_categories:
  - image-to-image
tags:
  - super-resolution
---

# Patch pairs for ×{manifest.scale} super-resolution

Each sample is `KEY.hr.{extension}` ({hr}×{hr} RGB), `KEY.lr.{extension}` ({lr}×{lr},
{origin}) and `KEY.json` (photo, position, detail).

| split | photos | pairs | shards |
|---|---|---|---|
{rows}
Resized by {manifest.resize.implementation} {manifest.resize.version}, kernel `{manifest.resize.kernel}`.
Data set `{manifest.dataset_sha256}`, written by {manifest.created_by}.

    inspect-shards verify .
    train-sr --shards . --stage both
""".encode()


def _encode_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
