"""Positions of the samples of a shard: `NAME.tar.idx` and `index/NAME.npz`.

The `.tar.idx` is little-endian `u64[N+1]`: the offset of each sample's first header, then the end of
the last sample. Megatron-Energon reads this file. The `.npz` adds what a strict reader needs.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData, remedy
from shards.format.manifest import ShardEntry
from shards.messages import format_count

# exceptions of zipfile and numpy for a damaged file; RuntimeError: a flipped "encrypted" or "method" bit
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Origins(NamedTuple):
    """Photo, position and detail of N samples, as the index stores them."""

    src: Sequence[str]
    x: npt.ArrayLike
    y: npt.ArrayLike
    luma_std: npt.ArrayLike
    gradient: npt.ArrayLike


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard of N samples; P = 3 parts: HR, JSON, LR."""

    key: npt.NDArray[np.int64]  # [N]
    offset: npt.NDArray[np.uint64]  # [N P] first byte of the data
    size: npt.NDArray[np.uint32]  # [N P]
    crc32: npt.NDArray[np.uint32]  # [N P] of the data
    src: npt.NDArray[np.str_]  # [S] the photos, sorted
    src_id: npt.NDArray[np.int32]  # [N] into src
    x: npt.NDArray[np.int32]  # [N] pixels
    y: npt.NDArray[np.int32]
    luma_std: npt.NDArray[np.float32]  # [N] grey levels
    gradient: npt.NDArray[np.float32]
    bytes: int
    sha256: str

    def entry(self, name: str) -> ShardEntry:
        """Return the shard's entry in the manifest."""
        return ShardEntry(name=name, samples=len(self.key), bytes=self.bytes, sha256=self.sha256)


def idx_path(folder: Path, shard: str) -> Path:
    """Return the path of `train-000000.tar.idx` for the shard `train-000000.tar`."""
    return folder / f"{shard}.idx"


def npz_path(folder: Path, shard: str) -> Path:
    """Return the path of `index/train-000000.npz` for the shard `train-000000.tar`."""
    return folder / "index" / f"{shard.removesuffix('.tar')}.npz"


def encode_idx(starts: Sequence[int], end: int) -> bytes:
    """Return the bytes of a `.tar.idx`."""
    return np.array([*starts, end], dtype="<u8").tobytes()


def encode_npz(
    keys: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    crc32: npt.NDArray[np.uint32],
    origins: Origins,
    entry: ShardEntry,
) -> bytes:
    """Return the bytes of an `index/*.npz` with the fields of `ShardIndex`; equal for equal shards."""
    src, src_id = np.unique(np.array(origins.src), return_inverse=True)
    fields: dict[str, npt.NDArray[Any]] = {
        "key": keys,
        "offset": offsets.astype(np.uint64),
        "size": sizes.astype(np.uint32),
        "crc32": crc32,
        "src": src,
        "src_id": src_id.astype(np.int32),
        "x": np.asarray(origins.x, np.int32),
        "y": np.asarray(origins.y, np.int32),
        "luma_std": np.asarray(origins.luma_std, np.float32),
        "gradient": np.asarray(origins.gradient, np.float32),
        "bytes": np.array(entry.bytes, np.int64),
        "sha256": np.array(entry.sha256),
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, values in fields.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, values, allow_pickle=False)
            # Numbers hardly compress, and deflating them dominates the time; names shrink to a tenth.
            packing = zipfile.ZIP_DEFLATED if name == "src" else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), packing)
    return stream.getvalue()


def load_npz(path: Path) -> ShardIndex:
    """Read an index.

    Raises:
        DamagedData: the index is missing, damaged or inconsistent.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedData(f"{path}: is missing; {remedy(str(path))}") from None
    except OSError as error:
        raise DamagedData(f"{path}: is damaged ({error}); {remedy(str(path))}") from None
    return parse_npz(content, str(path))


def parse_npz(content: bytes, path: str) -> ShardIndex:
    """Return the index in the bytes of the file `path`.

    Raises:
        DamagedData: the index is damaged or inconsistent.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            fields = {name: stored[name] for name in stored.files}
        index = ShardIndex(
            **{name: fields[name] for name in ShardIndex.__dataclass_fields__ if fields[name].ndim},
            bytes=int(fields["bytes"]),
            sha256=str(fields["sha256"]),
        )
    except _DAMAGE as error:
        raise DamagedData(f"{path}: is damaged ({error}); {remedy(path)}") from None
    samples = len(index.key)
    for name in ("offset", "size", "crc32"):
        if getattr(index, name).shape != (samples, 3):
            raise DamagedData(
                f"{path}: {name} does not match its {format_count(samples, 'key')}; {remedy(path)}"
            )
    starts = index.offset[:, 0].astype(np.int64)
    if (index.offset + index.size > index.bytes).any() or (np.diff(starts) <= 0).any():
        raise DamagedData(f"{path}: has offsets outside its shard; {remedy(path)}")
    return index
