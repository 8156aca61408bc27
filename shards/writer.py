"""Shards and data sets to disk: each file whole and durable, the index after its tar, the manifest last."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from isal import isal_zlib

from shards import __version__, files, index, tar
from shards.codec import EXTENSIONS
from shards.errors import DamagedData
from shards.index import Row
from shards.manifest import (
    NAME,
    Manifest,
    ShardEntry,
    Split,
    dataset_digest,
    encode_manifest,
)


class Sample(NamedTuple):
    """The encoded members of one sample."""

    key: int
    hr: bytes
    meta: bytes
    lr: bytes


def shard_name(split: str, number: int) -> str:
    """`train-000000.tar`."""
    return f"{split}-{number:06d}.tar"


def write_shard(
    folder: Path, name: str, samples: Iterable[tuple[Sample, Row]], *, extension: str = "png"
) -> ShardEntry:
    """Write NAME.tar, NAME.tar.idx and index/NAME.npz; the last one says that the shard is done.

    Keys ascend. The same samples give the same bytes. `extension` is that of the images' codec.
    """
    stale = index.npz_path(folder, name)
    if stale.exists():  # of another tar, which it would call finished
        files.remove(stale)
        files.sync_folder(stale.parent)
    keys: list[int] = []
    sizes: list[list[int]] = []
    checksums: list[list[int]] = []
    rows: list[Row] = []
    digest, length = hashlib.sha256(), 0
    named = tar.parts(extension)
    with files.replacing(folder / name) as stream:
        for block in _blocks(samples):
            contents = [sample[1:] for sample, _ in block]
            keys += [sample.key for sample, _ in block]
            sizes += [[len(content) for content in each] for each in contents]
            checksums += [[isal_zlib.crc32(content) for content in each] for each in contents]
            rows += [row for _, row in block]
            start = length
            for whole in tar.samples(keys[-len(block) :], named, contents):
                digest.update(whole)
                stream.write(whole)
                length += len(whole)
            files.write_behind(stream, start, length)
        assert keys, f"{name}: an empty shard breaks readers"
        assert (np.diff(keys) > 0).all(), f"{name}: keys do not ascend"
        end = tar.trailer(length)
        digest.update(end)
        stream.write(end)
    offsets = tar.offsets(np.array(sizes))
    starts = (offsets[:, 0] - tar.BLOCK).tolist()
    files.write_file(index.idx_path(folder, name), index.encode_idx(starts, length))
    files.make_folder(folder / "index")
    entry = ShardEntry(name, len(keys), length + len(end), digest.hexdigest())
    content = index.encode_npz(keys, offsets, sizes, checksums, rows, entry)
    files.write_file(index.npz_path(folder, name), content)
    return entry


def _blocks(samples: Iterable[tuple[Sample, Row]]) -> Iterator[list[tuple[Sample, Row]]]:
    """So many at once that making their headers costs little, and holding them, too."""
    found = iter(samples)
    while block := list(itertools.islice(found, 64)):
        yield block


def finished_shard(folder: Path, name: str) -> ShardEntry | None:
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
    for name, split in manifest.splits.items():
        files.write_file(folder / f"{name}.wids.json", _wids(name, split))
    files.make_folder(folder / ".nv-meta")
    for name, content in _energon(manifest).items():
        files.write_file(folder / ".nv-meta" / name, content)
    files.write_file(folder / "README.md", _card(manifest))
    files.write_file(folder / NAME, encode_manifest(manifest))
    return manifest


def _wids(name: str, split: Split) -> bytes:
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
    return _json(described)


def _energon(manifest: Manifest) -> dict[str, bytes]:
    """What `energon prepare` would write, so that nobody has to run it."""
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
        ".info.json": _json({"energon_version": "7.0.0", "shard_counts": counts}),
        "split.yaml": f"exclude: []\nsplit_parts:\n{parts}".encode(),
        "dataset.yaml": b"__module__: megatron.energon\n__class__: CrudeWebdataset\nsubflavors: {}\n",
    }


def _card(manifest: Manifest) -> bytes:
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


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
