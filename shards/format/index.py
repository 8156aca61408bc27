"""Where each sample of a shard lies: `NAME.tar.idx` and `index/NAME.npz`.

The `.tar.idx` is little-endian `u64[N+1]`: the offset of each sample's first header, then the end
of the last (Megatron-Energon reads the same). The `.npz` adds what a strict reader needs.
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

# what zipfile and numpy raise at a damaged file; RuntimeError is a flipped "encrypted" or "method"
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Origins(NamedTuple):
    """Source, position and detail of N samples, as the index stores them."""

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
        """The shard as the manifest lists it."""
        return ShardEntry(name=name, samples=len(self.key), bytes=self.bytes, sha256=self.sha256)


def idx_path(folder: Path, shard: str) -> Path:
    """`FOLDER/train-000000.tar.idx` of `train-000000.tar`."""
    return folder / f"{shard}.idx"


def npz_path(folder: Path, shard: str) -> Path:
    """`FOLDER/index/train-000000.npz` of `train-000000.tar`."""
    return folder / "index" / f"{shard.removesuffix('.tar')}.npz"


def encode_idx(starts: Sequence[int], end: int) -> bytes:
    """The bytes of a `.tar.idx`."""
    return np.array([*starts, end], dtype="<u8").tobytes()


def encode_npz(
    keys: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    crc32: npt.NDArray[np.uint32],
    origin: Origins,
    entry: ShardEntry,
) -> bytes:
    """The bytes of an `index/*.npz`, with the fields of `ShardIndex`; the same for the same shard."""
    src, src_id = np.unique(np.array(origin.src), return_inverse=True)
    fields: dict[str, npt.NDArray[Any]] = {
        "key": keys,
        "offset": offsets.astype(np.uint64),
        "size": sizes.astype(np.uint32),
        "crc32": crc32,
        "src": src,
        "src_id": src_id.astype(np.int32),
        "x": np.asarray(origin.x, np.int32),
        "y": np.asarray(origin.y, np.int32),
        "luma_std": np.asarray(origin.luma_std, np.float32),
        "gradient": np.asarray(origin.gradient, np.float32),
        "bytes": np.array(entry.bytes, np.int64),
        "sha256": np.array(entry.sha256),
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, values in fields.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, values, allow_pickle=False)
            # numbers hardly shrink, and to try takes longer than all else here; names do, to a tenth
            packing = zipfile.ZIP_DEFLATED if name == "src" else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), packing)
    return stream.getvalue()


def load_npz(path: Path) -> ShardIndex:
    """Read an index.

    Raises:
        DamagedData: it is missing, damaged or contradicts itself.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedData(f"{path}: is missing; {remedy(str(path))}") from None
    except OSError as error:
        raise DamagedData(f"{path}: is damaged ({error}); {remedy(str(path))}") from None
    return parse_npz(content, str(path))


def parse_npz(content: bytes, path: str) -> ShardIndex:
    """The index in the bytes of an `index/*.npz` that lies at `path`.

    Raises:
        DamagedData: it is damaged or contradicts itself.
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
            raise DamagedData(f"{path}: {name} does not fit its {samples} keys; {remedy(path)}")
    starts = index.offset[:, 0].astype(np.int64)
    if (index.offset + index.size > index.bytes).any() or (np.diff(starts) <= 0).any():
        raise DamagedData(f"{path}: points outside of its shard; {remedy(path)}")
    return index
