"""Spills: the patch pairs of a chunk of photos on scratch, in runs sorted by rank.

`chunk-NNNNNN.spill` holds `hr lr hr lr …`, then a marker (a row for each pair, all sorted by rank, and
the photos' outcomes), then the marker's length and CRC-32. A file of that name is whole, so it says that
the chunk is done and a rerun need not cut it again.
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
from pipeline.patches.extract import PhotoPatches, extract_patches
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
        ("photo", "<u4"),  # in the chunk
        ("x", "<i4"),  # pixels
        ("y", "<i4"),
        ("luma_std", "<f8"),  # grey levels
        ("gradient", "<f8"),
        ("offset", "<u8"),  # of hr in the file; lr follows it
        ("hr", "<u4"),  # bytes
        ("lr", "<u4"),
        ("hr_crc32", "<u4"),
        ("lr_crc32", "<u4"),
    ]
)
Rows = npt.NDArray[np.void]
RUN = 2**27
"""Bytes of pairs that a process holds and sorts before it writes them: a chunk may be of any size."""
FEW, PART = 4, 2**20
"""The pairs of so few photos are written so many bytes at a time: what is on its way to the disk while others
are encoded need not be waited for, and a photo's pairs come in order."""
_FOOTER = struct.Struct("<QI")
"""Length of the marker, bytes, and its CRC-32."""


PhotoStamp = tuple[str, int, int, int, int]
"""Name, size and mtime of a photo, size and mtime of its official LR image."""


class Outcome(msgspec.Struct, frozen=True):
    """Result of one photo: its digests, or the reason why it was refused."""

    name: str
    val: bool = False
    sha256: str = ""
    pixels: str = ""
    area: int = 0
    look: PerceptualHash | None = None
    blockiness: float = 1.0
    pre_scale: float = 1.0
    code: str = ""
    reason: str = ""


class Marker(msgspec.Struct, frozen=True, array_like=True):
    """Footer of a spill, behind its pairs."""

    rows: bytes
    """`ROW`s, sorted by rank."""
    outcomes: list[Outcome]
    photos: list[PhotoStamp]
    """Size and time of each photo at the scan."""
    length: int
    """Size of all pairs in bytes."""


def spill_name(chunk: int) -> str:
    """`chunk-000000.spill`."""
    return f"chunk-{chunk:06d}.spill"


def write_spill(
    work: Path, chunk: int, photos: Sequence[FoundPhoto], options: Options, crashed: frozenset[str]
) -> int:
    """Read, cut and spill the photos of one chunk; returns the chunk's number.

    Args:
        work: the scratch folder.
        chunk: number of the chunk.
        photos: at least one.
        options: what to cut.
        crashed: names of photos that killed a process before; they are refused unread.

    Raises:
        UsrganError: a photo was changed or taken away after the scan.
    """
    outcomes: list[Outcome] = []
    runs = [np.zeros(0, ROW)]
    cuts: list[tuple[int, PhotoPatches]] = []
    at = held = 0
    most = PART if len(photos) <= FEW else RUN
    with atomic.open_replacement(work / spill_name(chunk)) as stream:
        for number, photo in enumerate(photos):
            outcome, found = _extract_photo(photo, options, crashed=photo.name in crashed)
            outcomes.append(outcome)
            for cut in found:
                cuts.append((number, cut))
                held += len(cut.hr) + len(cut.lr)
                if held >= most:
                    runs.append(_write_run(stream, cuts, at))
                    atomic.start_writeback(stream, at, at + held)
                    at, held = at + held, 0
                    cuts.clear()
        runs.append(_write_run(stream, cuts, at))
        rows = np.concatenate(runs)
        rows = rows[np.lexsort([rows[name] for name in ("y", "x", "photo", "rank")])]
        marker = Marker(rows.tobytes(), outcomes, _read_marker(photos), at + held)
        stored = msgspec.msgpack.encode(marker)
        stream.writelines((stored, _FOOTER.pack(len(stored), isal_zlib.crc32(stored))))
    return chunk


def _extract_photo(
    photo: FoundPhoto, options: Options, *, crashed: bool
) -> tuple[Outcome, Iterable[PhotoPatches]]:
    """Read one photo; its pairs are cut and encoded as they are asked for."""
    try:
        if crashed:
            raise RejectedPhoto("CRASHED", "made its decoder crash")
        read = accept_photo(photo, options)
    except RejectedPhoto as refused:
        _check_unchanged(photo)
        if (
            refused.code == READ_FAULT
        ):  # left out, the data set would be another one than the next time
            raise UsrganError(
                f"{photo.path}: {refused.reason}; check the disk or the network, and run the same command again"
            ) from None
        return Outcome(photo.name, photo.val, code=refused.code, reason=refused.reason), ()
    _check_unchanged(photo)
    outcome = Outcome(
        photo.name,
        photo.val,
        sha256=read.sha256,
        pixels=read.pixels,
        area=read.image.shape[0] * read.image.shape[1],
        look=hash_photo(read.luma),
        blockiness=read.blockiness,
        pre_scale=read.pre_scale,
    )
    return outcome, extract_patches(read, options)


def _write_run(stream: BinaryIO, cuts: Sequence[tuple[int, PhotoPatches]], at: int) -> Rows:
    """Append pairs, each with the number of its photo, to a spill of so many bytes, sorted; their rows."""
    rows = np.zeros(len(cuts), ROW)
    pieces: list[bytes] = []
    for row, (number, cut) in enumerate(sorted(cuts, key=lambda each: each[1].rank)):
        hr, lr = cut.hr, cut.lr
        stored = len(hr), len(lr), isal_zlib.crc32(hr), isal_zlib.crc32(lr)
        rows[row] = (cut.rank, number, *cut[1:5], at, *stored)
        pieces += (hr, lr)
        at += len(hr) + len(lr)
    atomic.write_parts(stream, pieces)
    return rows


def load_spill(
    work: Path, chunk: int, photos: Sequence[FoundPhoto] | None = None
) -> tuple[Rows, list[Outcome]] | None:
    """The rows and outcomes of a finished chunk, or None if it has to be cut (of these photos)."""
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
    held = int(rows["hr"].sum() + rows["lr"].sum())  # other rows than ours do not add up
    whole = isal_zlib.crc32(stored) == checksum and held == marker.length == end - length
    same = photos is None or marker.photos == _read_marker(photos)
    return (rows, marker.outcomes) if whole and same else None


def _read_marker(photos: Sequence[FoundPhoto]) -> list[PhotoStamp]:
    return [(photo.name, photo.size, photo.mtime_ns, *photo.lr_stamp) for photo in photos]


def _check_unchanged(photo: FoundPhoto) -> None:
    """A photo and its official LR image must stay what they were when the run began.

    Raises:
        UsrganError: one was changed or taken away.
    """
    for path, seen in (photo.path, (photo.size, photo.mtime_ns)), (photo.lr, photo.lr_stamp):
        if isinstance(path, Path) and stamp_file(path) != seen:
            raise UsrganError(f"{path}: was changed during the run; run the same command again")


def open_photo(photo: FoundPhoto, options: Options) -> str:
    """Read one photo and nothing else: a process of its own finds out which one kills it."""
    with contextlib.suppress(RejectedPhoto):
        accept_photo(photo, options)
    return photo.name
