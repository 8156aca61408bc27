"""Raw pairs of local shards, read straight into the batch.

Codec `raw` stores pixels uncompressed, so one `preadv` puts HR and LR into the batch and the bytes around them into
a side buffer. Every check of the general path is made here; a pair that differs in anything is left to that path.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from shards.format import codec, tar
from shards.format.tar import BLOCK

_HEADER_BYTES = 16 * BLOCK
"""Bytes between the pixels of HR and those of LR: two headers, the JSON and some padding; else the slow way."""


class RawLayout(NamedTuple):
    """Properties shared by all pairs of a data set: the `.npy` header of square images, and its length in bytes."""

    before_hr: bytes
    before_lr: bytes
    crc_hr: int
    """CRC-32 of what is before."""
    crc_lr: int
    hr_length: int
    lr_length: int


def raw_layout(hr_size: int, lr_size: int) -> RawLayout:
    """Return the layout of pairs with the given sides, in pixels."""
    before_hr, before_lr = codec.raw_header(hr_size, hr_size), codec.raw_header(lr_size, lr_size)
    lengths = 3 * hr_size**2, 3 * lr_size**2
    return RawLayout(before_hr, before_lr, crc32(before_hr), crc32(before_lr), *lengths)


class RowCopies(NamedTuple):
    """Consecutive pairs of one shard, in the form that `read_raw_pair` takes."""

    form: RawLayout
    places: list[list[int]]
    """Offset of the first header; bytes from there to the end; bytes between the pixels of HR and those
    of LR; where among these the JSON begins and ends."""
    frames: bytes
    """Headers and what `.npy` puts before pixels, of each pair, one after the other."""
    crcs: list[list[int]]
    """CRC-32 of HR, JSON and LR."""


def row_copies(
    form: RawLayout,
    keys: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    crcs: npt.NDArray[np.uint32],
) -> RowCopies | None:
    """Return everything about N pairs that is known before they are read; None if they do not have that layout.

    Args:
        form: layout of their data set.
        keys: [N], sample keys.
        offset: [N 3], offsets of the data of HR, JSON and LR in the shard.
        size: [N 3], sizes of the data.
        crcs: [N 3], CRC-32 of the data.
    """
    before_hr, before_lr = len(form.before_hr), len(form.before_lr)
    start, hr_end, lr_at = offset[:, 0] - BLOCK, offset[:, 0] + size[:, 0], offset[:, 2]
    gap, json_at = lr_at + before_lr - hr_end, offset[:, 1] - hr_end
    lengths = before_hr + form.hr_length, before_lr + form.lr_length
    if (size[:, ::2] != lengths).any() or (gap > _HEADER_BYTES).any():
        return None
    length = lr_at + size[:, 2] - start
    places = np.stack((start, length, gap, json_at, json_at + size[:, 1]), axis=1).tolist()
    behind = form.before_hr, b"", form.before_lr
    frames = tar.build_headers(keys, tar.member_names(codec.EXTENSIONS["raw"]), size, behind=behind)
    return RowCopies(form, places, frames.tobytes(), crcs.tolist())


class HeaderBuffer:
    """Where a thread puts what lies around pixels."""

    __slots__ = ("frame", "head", "lr_frame", "middle")

    def __init__(self, form: RawLayout) -> None:
        self.head = memoryview(bytearray(BLOCK + len(form.before_hr)))
        self.middle = memoryview(bytearray(_HEADER_BYTES))
        self.lr_frame = BLOCK + len(form.before_lr)
        self.frame = len(self.head) + BLOCK + self.lr_frame


def read_raw_pair(
    descriptor: int, rows: RowCopies, row: int, room: HeaderBuffer, hr: memoryview, lr: memoryview
) -> bool:
    """Read the pixels of a pair into `hr` and `lr`, flat bytes; False if anything is not as promised."""
    form, places, frames, crcs = rows
    start, length, gap, json_at, json_end = places[row]
    head, middle, at = room.head, room.middle[:gap], row * room.frame
    try:
        if os.preadv(descriptor, (head, hr, middle, lr), start) != length:
            return False
    except OSError:
        return False
    parts = head, middle[json_at - BLOCK : json_at], middle[gap - room.lr_frame :]
    found = [
        crc32(hr, form.crc_hr),
        crc32(middle[json_at:json_end]),
        crc32(lr, form.crc_lr),
    ]
    return found == crcs[row] and b"".join(parts) == frames[at : at + room.frame]
