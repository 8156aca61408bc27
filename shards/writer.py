"""Shards and data sets to disk: each file whole and durable, the index after its tar, the manifest last."""

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
"""Bytes of a tar that are digested and written at a time, in the cache of a core, and how many of
these parts are sent to the disk together."""
_BUFFER_BYTES = 2**24
"""Memory for a tar is taken in so many bytes, for the next one may be a little longer."""
_thread_buffers = threading.local()
WritePixels = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], npt.NDArray[np.uint32]]
"""`pictures(content, offsets)` puts the HR and LR of N samples at their offsets [N 2] in the bytes of a
tar and returns their CRC-32s [N 2]."""


def shard_name(split: str, number: int) -> str:
    """`train-000000.tar`."""
    return f"{split}-{number:06d}.tar"


def write_shard(
    folder: Path,
    name: str,
    keys: npt.NDArray[np.int64],
    metas: Sequence[bytes],
    sizes: npt.NDArray[np.int64],
    origin: Origins,
    pictures: WritePixels,
    *,
    extension: str = "png",
) -> ShardEntry:
    """Write NAME.tar, NAME.tar.idx and index/NAME.npz; the last one says that the shard is done.

    The same samples give the same bytes. All of a tar is in memory before any of it is on disk.

    Args:
        folder: of the data set.
        name: `train-000000.tar`.
        keys: [N], ascending.
        metas: the JSON of each sample.
        sizes: [N 2], bytes of HR and LR.
        origin: where the samples were cut.
        pictures: fills in HR and LR.
        extension: of the images' codec.
    """
    assert len(keys), f"{name}: an empty shard breaks readers"
    assert (np.diff(keys) > 0).all(), f"{name}: keys do not ascend"
    stale = index.npz_path(folder, name)
    if stale.exists():  # of another tar, which it would call finished
        atomic.remove_file(stale)
        atomic.sync_folder(stale.parent)
    lengths = np.stack([sizes[:, 0], [len(meta) for meta in metas], sizes[:, 1]], axis=1)
    content = _buffer(tar.tar_size(lengths))
    offsets = tar.build_tar(content, keys, tar.split_name(extension), lengths)
    view = content.data
    for at, meta in zip(offsets[:, 1].tolist(), metas, strict=True):
        view[at : at + len(meta)] = meta
    hr, lr = pictures(content, offsets[:, ::2]).T
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
    table = index.encode_npz(keys, offsets, lengths, checksums.astype(np.uint32), origin, entry)
    atomic.write_file(index.npz_path(folder, name), table)
    return entry


def _buffer(length: int) -> npt.NDArray[np.uint8]:
    """Return a buffer of the given size, which a thread reuses for every shard: fresh pages are slow."""
    kept: npt.NDArray[np.uint8] | None = getattr(_thread_buffers, "room", None)
    if kept is None or len(kept) < length:
        kept = _thread_buffers.room = np.empty(
            -(-length // _BUFFER_BYTES) * _BUFFER_BYTES, np.uint8
        )
    return kept[:length]


def find_finished_shard(folder: Path, name: str) -> ShardEntry | None:
    """The entry of a shard that an earlier run finished, or None if it has to be written.

    Trusts names and sizes, which `write_shard` makes durable in order; `inspect-shards verify`
    reads every byte.
    """
    try:
        entry = index.load_npz(index.npz_path(folder, name)).entry(name)
    except DamagedData:
        return None
    tar, idx = folder / name, index.idx_path(folder, name)
    whole = tar.is_file() and tar.stat().st_size == entry.bytes
    indexed = idx.is_file() and idx.stat().st_size == 8 * (entry.samples + 1)
    return entry if whole and indexed else None


def publish(folder: Path, manifest: Manifest) -> Manifest:
    """Write what other readers look for beside the shards, then the manifest: now it is a data set."""
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
    """Return the files that other readers need beside the shards, all derived from the manifest."""
    return {
        **{
            f"{name}.wids.json": _wids_index(name, split) for name, split in manifest.splits.items()
        },
        **{f".nv-meta/{name}": content for name, content in _energon_files(manifest).items()},
        "README.md": _dataset_card(manifest),
    }


def _wids_index(name: str, split: Split) -> bytes:
    """The shard list of the `wids` package."""
    shards = [
        {"url": shard.name, "nsamples": shard.samples, "filesize": shard.bytes}
        for shard in split.shards
    ]
    described = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": name,
        "shardlist": shards,
    }
    return _encode_json(described)


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
    """A data set card; its `configs:` keep Hugging Face `datasets` from reading anything but tars."""
    patterns = {"train": ("train", "train-*.tar"), "val": ("validation", "val-*.tar")}
    listed = "".join(
        f"      - split: {patterns[name][0]}\n        path: {patterns[name][1]}\n"
        for name, split in manifest.splits.items()
        if split.shards
    )
    extension = EXTENSIONS[manifest.codec]
    degraded = manifest.options.get("degrade", "bicubic") != "bicubic"
    made = f"cut out of the antialiased bicubic ×1/{manifest.scale} of the whole photo"
    if degraded:
        made = "blurred, resized, noisy and compressed twice over, as the JSON says"
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
{made}) and `KEY.json` (photo, position, detail).

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
