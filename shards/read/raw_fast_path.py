"""Raw pairs of local shards, read straight to where they are wanted.

`codec` raw stores pixels as they are, so one `preadv` puts HR and LR into the batch and what lies around
them beside it. All that the slow way checks is checked here; what differs in anything is left to it.
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
    """What the pairs of a data set have in common: what `.npy` puts before square pixels, and their length."""

    before_hr: bytes
    before_lr: bytes
    crc_hr: int
    """CRC-32 of what is before."""
    crc_lr: int
    hr_length: int
    lr_length: int


def raw_layout(hr_size: int, lr_size: int) -> RawLayout:
    """Of pairs with sides of so many pixels."""
    before_hr, before_lr = codec.raw_header(hr_size, hr_size), codec.raw_header(lr_size, lr_size)
    lengths = 3 * hr_size**2, 3 * lr_size**2
    return RawLayout(before_hr, before_lr, crc32(before_hr), crc32(before_lr), *lengths)


class RowCopies(NamedTuple):
    """Consecutive pairs of one shard, as `read_pair` wants them."""

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
    """What can be said of N pairs before they are read; None if they are not of that form.

    Args:
        form: of their data set.
        keys: [N].
        offset: [N 3], of the data of HR, JSON and LR in the shard.
        size: [N 3], of the data.
        crcs: [N 3], of the data.
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
    frames = tar.build_headers(keys, tar.split_name(codec.EXTENSIONS["raw"]), size, behind=behind)
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
