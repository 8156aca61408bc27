"""Spills: the patch pairs of a chunk of photos on scratch, sorted by rank, with a durable marker.

`NAME.bin` holds `hr lr hr lr …`; `NAME.npz` holds a row for each pair and the photos' outcomes. The
second is written last, so it says that the chunk is done and a rerun need not cut it again.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from pipeline.admit import admit
from pipeline.options import Options
from pipeline.patches import cut_photo
from pipeline.scan import Found, stamp
from pipeline.similar import Look, look_of
from shards import files
from shards.errors import UsrganError
from shards.photos import RejectedPhoto

ROW = np.dtype(
    [
        ("rank", "<u8"),
        ("photo", "<u4"),  # in the chunk
        ("x", "<i4"),  # pixels
        ("y", "<i4"),
        ("luma_std", "<f8"),  # grey levels
        ("gradient", "<f8"),
        ("offset", "<u8"),  # of hr in the .bin; lr follows it
        ("hr", "<u4"),  # bytes
        ("lr", "<u4"),
        ("crc32", "<u4"),  # of both
    ]
)
Rows = npt.NDArray[np.void]


class Outcome(msgspec.Struct, frozen=True):
    """What became of one photo: its digests, or why it was refused."""

    name: str
    val: bool = False
    sha256: str = ""
    pixels: str = ""
    area: int = 0
    look: Look | None = None
    blockiness: float = 1.0
    pre_scale: float = 1.0
    code: str = ""
    reason: str = ""


def spill_name(chunk: int) -> str:
    """`chunk-000000`."""
    return f"chunk-{chunk:06d}"


def write_spill(
    work: Path, chunk: int, photos: Sequence[Found], options: Options, crashed: frozenset[str]
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
    cuts: list[tuple[int, int, int, int, float, float, bytes, bytes]] = []
    for number, photo in enumerate(photos):
        try:
            if photo.name in crashed:
                raise RejectedPhoto("CRASHED", "made its decoder crash")
            read = admit(photo, options)
        except RejectedPhoto as refused:
            _check_unchanged(photo)
            outcomes.append(
                Outcome(photo.name, photo.val, code=refused.code, reason=refused.reason)
            )
            continue
        _check_unchanged(photo)
        outcomes.append(
            Outcome(
                photo.name,
                photo.val,
                sha256=read.sha256,
                pixels=read.pixels,
                area=read.image.shape[0] * read.image.shape[1],
                look=look_of(read.luma),
                blockiness=read.blockiness,
                pre_scale=read.pre_scale,
            )
        )
        found = cut_photo(read, options)
        cuts.extend((cut.rank, number, *cut[1:]) for cut in found)
    cuts.sort(key=lambda cut: cut[:4])
    rows = np.zeros(len(cuts), ROW)
    at = 0
    with files.replacing(work / f"{spill_name(chunk)}.bin") as stream:
        for row, (rank, number, x, y, spread, gradient, hr, lr) in enumerate(cuts):
            checksum = isal_zlib.crc32(lr, isal_zlib.crc32(hr))
            rows[row] = (rank, number, x, y, spread, gradient, at, len(hr), len(lr), checksum)
            stream.write(hr)
            stream.write(lr)
            at += len(hr) + len(lr)
    marker = io.BytesIO()
    stored = np.frombuffer(msgspec.json.encode(outcomes), np.uint8)
    np.savez(marker, rows=rows, outcomes=stored, length=np.array(at), photos=_listing(photos))
    files.write_file(work / f"{spill_name(chunk)}.npz", marker.getvalue())
    return chunk


def load_spill(
    work: Path, chunk: int, photos: Sequence[Found] | None = None
) -> tuple[Rows, list[Outcome]] | None:
    """The rows and outcomes of a finished chunk, or None if it has to be cut (of these photos)."""
    try:
        marker = (work / f"{spill_name(chunk)}.npz").read_bytes()
        with np.load(io.BytesIO(marker), allow_pickle=False) as stored:
            rows, length = stored["rows"], int(stored["length"])
            outcomes = msgspec.json.decode(stored["outcomes"].tobytes(), type=list[Outcome])
            same = photos is None or bytes(stored["photos"]) == bytes(_listing(photos))
        whole = (work / f"{spill_name(chunk)}.bin").stat().st_size == length
        if not (same and whole and rows.dtype == ROW):
            return None
    except (OSError, ValueError, KeyError, EOFError, msgspec.DecodeError):
        return None
    return rows, outcomes


def _listing(photos: Sequence[Found]) -> npt.NDArray[np.uint8]:
    """What a scan knows of the photos of a chunk."""
    seen = [(photo.name, photo.size, photo.mtime_ns) for photo in photos]
    return np.frombuffer(msgspec.json.encode(seen), np.uint8)


def _check_unchanged(photo: Found) -> None:
    """A photo must stay what it was when the run began.

    Raises:
        UsrganError: it was changed or taken away.
    """
    if isinstance(photo.path, Path) and stamp(photo.path) != (photo.size, photo.mtime_ns):
        raise UsrganError(f"{photo.path}: was changed during the run; run the same command again")


def open_photo(photo: Found, options: Options) -> str:
    """Read one photo and nothing else: a process of its own finds out which one kills it."""
    with contextlib.suppress(RejectedPhoto):
        admit(photo, options)
    return photo.name
