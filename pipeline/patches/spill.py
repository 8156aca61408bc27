"""Spills: scratch files with the patch pairs of a chunk of photos, in runs sorted by rank.

`chunk-NNNNNN.spill` contains `hr lr hr lr …`, then a marker (one row per pair, all sorted by rank, and the
outcome of each photo), then the length and CRC-32 of the marker. A file with this name is complete, so a rerun
does not process its chunk again.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from pipeline.options import Options
from pipeline.patches.extract import EncodedPair, extract_patches
from pipeline.photos.accept import accept_photo
from pipeline.photos.near_duplicates import PerceptualHash, hash_photo
from pipeline.photos.scan import FoundPhoto
from pipeline.photos.walk import stamp_file
from shards.errors import UsrganError
from shards.images.photos import READ_FAULT, RejectedPhoto
from shards.io import atomic

ROW = np.dtype(
    [
        ("rank", "<u8"),
        ("photo", "<u4"),  # index in the chunk
        ("x", "<i4"),  # pixels
        ("y", "<i4"),
        ("luma_std", "<f8"),  # grey levels
        ("gradient", "<f8"),
        ("offset", "<u8"),  # of HR in the file; LR follows
        ("hr", "<u4"),  # bytes
        ("lr", "<u4"),
        ("hr_crc32", "<u4"),
        ("lr_crc32", "<u4"),
    ]
)
Rows = npt.NDArray[np.void]
RUN = 2**27
"""Bytes of pairs that a process sorts in memory before it writes them; a chunk may be of any size."""
FEW, PART = 4, 2**20
"""A chunk of at most FEW photos is written PART bytes at a time: the disk then works during encoding, and the
pairs of a photo stay in order."""
_FOOTER = struct.Struct("<QI")
"""Length of the marker in bytes, and its CRC-32."""


PhotoStamp = tuple[str, int, int, int, int]
"""Name, size and modification time of a photo; size and modification time of its official LR image."""


class Outcome(msgspec.Struct, frozen=True):
    """Result of one photo: its digests, or the reason for its rejection."""

    name: str
    val: bool = False
    sha256: str = ""
    pixels: str = ""
    """Digest of the pixels."""
    area: int = 0
    """Pixels of the image."""
    perceptual_hash: PerceptualHash | None = msgspec.field(default=None, name="look")
    blockiness: float = 1.0
    pre_scale: float = 1.0
    code: str = ""
    reason: str = ""


class Marker(msgspec.Struct, frozen=True, array_like=True):
    """Index of a spill, stored after its pairs."""

    rows: bytes
    """Array of `ROW`, sorted by rank."""
    outcomes: list[Outcome]
    photos: list[PhotoStamp]
    """Sizes and times of the photos at the scan."""
    length: int
    """Bytes of all pairs."""


def spill_name(chunk: int) -> str:
    """Return the file name of a spill, such as `chunk-000000.spill`."""
    return f"chunk-{chunk:06d}.spill"


def write_spill(
    work: Path, chunk: int, photos: Sequence[FoundPhoto], options: Options, crashed: frozenset[str]
) -> int:
    """Read the photos of one chunk, extract their pairs and write the spill; return the chunk's number.

    Args:
        work: the scratch folder.
        chunk: number of the chunk.
        photos: photos of the chunk, at least one.
        options: the extraction options.
        crashed: names of photos that crashed a process before; they are rejected unread.

    Raises:
        UsrganError: a photo changed after the scan, or cannot be read for now.
    """
    outcomes: list[Outcome] = []
    runs = [np.zeros(0, ROW)]
    pairs: list[tuple[int, EncodedPair]] = []
    at = pending = 0
    limit = PART if len(photos) <= FEW else RUN
    with atomic.open_replacement(work / spill_name(chunk)) as stream:
        for number, photo in enumerate(photos):
            outcome, extracted = _extract_photo(photo, options, crashed=photo.name in crashed)
            outcomes.append(outcome)
            for pair in extracted:
                pairs.append((number, pair))
                pending += len(pair.hr) + len(pair.lr)
                if pending >= limit:
                    runs.append(_write_run(stream, pairs, at))
                    atomic.start_writeback(stream, at, at + pending)
                    at, pending = at + pending, 0
                    pairs.clear()
        runs.append(_write_run(stream, pairs, at))
        rows = np.concatenate(runs)
        rows = rows[np.lexsort([rows[name] for name in ("y", "x", "photo", "rank")])]
        marker = Marker(rows.tobytes(), outcomes, _photo_stamps(photos), at + pending)
        stored = msgspec.msgpack.encode(marker)
        stream.writelines((stored, _FOOTER.pack(len(stored), isal_zlib.crc32(stored))))
    return chunk


def _extract_photo(
    photo: FoundPhoto, options: Options, *, crashed: bool
) -> tuple[Outcome, Iterable[EncodedPair]]:
    """Read one photo; return its outcome and its pairs, which are extracted lazily."""
    try:
        if crashed:
            raise RejectedPhoto("CRASHED", "crashes its decoder")
        accepted = accept_photo(photo, options)
    except RejectedPhoto as refused:
        _check_unchanged(photo)
        # a transient fault must not reject the photo, because the next run could accept it
        if refused.code == READ_FAULT:
            raise UsrganError(
                f"{photo.path}: {refused.reason}; check the disk or the network, and run the same command again"
            ) from None
        return Outcome(photo.name, photo.val, code=refused.code, reason=refused.reason), ()
    _check_unchanged(photo)
    outcome = Outcome(
        photo.name,
        photo.val,
        sha256=accepted.sha256,
        pixels=accepted.pixels,
        area=accepted.image.shape[0] * accepted.image.shape[1],
        perceptual_hash=hash_photo(accepted.luma),
        blockiness=accepted.blockiness,
        pre_scale=accepted.pre_scale,
    )
    return outcome, extract_patches(accepted, options)


def _write_run(stream: BinaryIO, pairs: Sequence[tuple[int, EncodedPair]], at: int) -> Rows:
    """Append pairs, each with its photo's index, to a spill of `at` bytes, sorted by rank; return their rows."""
    rows = np.zeros(len(pairs), ROW)
    parts: list[bytes] = []
    for row, (number, pair) in enumerate(sorted(pairs, key=lambda numbered: numbered[1].rank)):
        hr, lr = pair.hr, pair.lr
        stored = len(hr), len(lr), isal_zlib.crc32(hr), isal_zlib.crc32(lr)
        rows[row] = (pair.rank, number, *pair[1:5], at, *stored)
        parts += (hr, lr)
        at += len(hr) + len(lr)
    atomic.write_parts(stream, parts)
    return rows


def load_spill(
    work: Path, chunk: int, photos: Sequence[FoundPhoto] | None = None
) -> tuple[Rows, list[Outcome]] | None:
    """Return rows and outcomes of a finished chunk; None if it is missing, damaged or of other photos."""
    try:
        with (work / spill_name(chunk)).open("rb", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END) - _FOOTER.size
            length, checksum = _FOOTER.unpack(os.pread(stream.fileno(), _FOOTER.size, end))
            if length > end:
                return None
            stored = os.pread(stream.fileno(), length, end - length)
        marker = msgspec.msgpack.decode(stored, type=Marker)
        rows = np.frombuffer(marker.rows, ROW)
    except (OSError, OverflowError, ValueError, struct.error, msgspec.DecodeError):
        return None
    total = int(rows["hr"].sum() + rows["lr"].sum())  # rows of another format have another sum
    intact = isal_zlib.crc32(stored) == checksum and total == marker.length == end - length
    same = photos is None or marker.photos == _photo_stamps(photos)
    return (rows, marker.outcomes) if intact and same else None


def _photo_stamps(photos: Sequence[FoundPhoto]) -> list[PhotoStamp]:
    return [(photo.name, photo.size, photo.mtime_ns, *photo.lr_stamp) for photo in photos]


def _check_unchanged(photo: FoundPhoto) -> None:
    """Check that a photo and its official LR image have not changed since the scan.

    Raises:
        UsrganError: a file was changed or removed.
    """
    for path, stamp in (photo.path, (photo.size, photo.mtime_ns)), (photo.lr, photo.lr_stamp):
        if isinstance(path, Path) and stamp_file(path) != stamp:
            raise UsrganError(f"{path}: changed during the run; run the same command again")


def open_photo(photo: FoundPhoto, options: Options) -> str:
    """Read one photo and return its name; a process of its own shows whether the photo crashes it."""
    with contextlib.suppress(RejectedPhoto):
        accept_photo(photo, options)
    return photo.name
