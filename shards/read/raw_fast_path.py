"""Raw pairs of local shards, read directly into the batch.

Codec `raw` stores pixels uncompressed, so one `preadv` reads HR and LR into the batch and the bytes around them
into a side buffer. This path makes every check of the general path and leaves each deviating pair to it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from shards.format import codec, tar
from shards.format.tar import BLOCK

_MAX_GAP = 16 * BLOCK
"""Longest gap in bytes between the pixels of HR and LR (two headers, the JSON, padding) for this path."""


class RawLayout(NamedTuple):
    """Properties that all pairs of a data set share."""

    hr_header: bytes
    """`.npy` header of an HR image."""
    lr_header: bytes
    hr_header_crc: int
    """CRC-32 of the header, with which the CRC-32 of a whole member starts."""
    lr_header_crc: int
    hr_bytes: int
    """Bytes of the pixels of an HR image."""
    lr_bytes: int


def raw_layout(hr_size: int, lr_size: int) -> RawLayout:
    """Return the layout of pairs of square images with these sides, in pixels."""
    hr_header, lr_header = codec.raw_header(hr_size, hr_size), codec.raw_header(lr_size, lr_size)
    lengths = 3 * hr_size**2, 3 * lr_size**2
    return RawLayout(hr_header, lr_header, crc32(hr_header), crc32(lr_header), *lengths)


class RawPairs(NamedTuple):
    """Consecutive raw pairs of one shard, as `read_raw_pair` needs them."""

    layout: RawLayout
    offsets: list[list[int]]
    """Per pair: offset of the first header; bytes from there to the end of LR; bytes of the gap between the
    pixels of HR and LR; start and end of the JSON in this gap."""
    frames: bytes
    """Per pair, the expected tar and `.npy` headers, one after the other."""
    crcs: list[list[int]]
    """Per pair, CRC-32 of HR, JSON and LR."""


def locate_raw_pairs(
    layout: RawLayout,
    keys: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
    crcs: npt.NDArray[np.uint32],
) -> RawPairs | None:
    """Return N pairs in the form of this path; None if they do not have the layout.

    Args:
        layout: of their data set.
        keys: sample keys [N].
        offset: offsets of the data of HR, JSON and LR in the shard [N 3].
        size: bytes of these data [N 3].
        crcs: CRC-32 of these data [N 3].
    """
    hr_header, lr_header = len(layout.hr_header), len(layout.lr_header)
    start, hr_end, lr_at = offset[:, 0] - BLOCK, offset[:, 0] + size[:, 0], offset[:, 2]
    gap, json_at = lr_at + lr_header - hr_end, offset[:, 1] - hr_end
    lengths = hr_header + layout.hr_bytes, lr_header + layout.lr_bytes
    if (size[:, ::2] != lengths).any() or (gap > _MAX_GAP).any():
        return None
    length = lr_at + size[:, 2] - start
    offsets = np.stack((start, length, gap, json_at, json_at + size[:, 1]), axis=1).tolist()
    behind = layout.hr_header, b"", layout.lr_header
    frames = tar.build_headers(keys, tar.member_names(codec.EXTENSIONS["raw"]), size, behind=behind)
    return RawPairs(layout, offsets, frames.tobytes(), crcs.tolist())


class HeaderBuffer:
    """Buffers of one thread for the bytes around the pixels."""

    __slots__ = ("frame", "gap", "head", "lr_frame")

    def __init__(self, layout: RawLayout) -> None:
        self.head = memoryview(bytearray(BLOCK + len(layout.hr_header)))
        self.gap = memoryview(bytearray(_MAX_GAP))
        self.lr_frame = BLOCK + len(layout.lr_header)
        self.frame = len(self.head) + BLOCK + self.lr_frame


def read_raw_pair(
    descriptor: int, pairs: RawPairs, row: int, buffer: HeaderBuffer, hr: memoryview, lr: memoryview
) -> bool:
    """Read the pixels of a pair into `hr` and `lr`, flat bytes; return False if any check fails."""
    layout, offsets, frames, crcs = pairs
    start, length, gap_bytes, json_at, json_end = offsets[row]
    head, gap, at = buffer.head, buffer.gap[:gap_bytes], row * buffer.frame
    try:
        if os.preadv(descriptor, (head, hr, gap, lr), start) != length:
            return False
    except OSError:
        return False
    parts = head, gap[json_at - BLOCK : json_at], gap[gap_bytes - buffer.lr_frame :]
    checksums = [
        crc32(hr, layout.hr_header_crc),
        crc32(gap[json_at:json_end]),
        crc32(lr, layout.lr_header_crc),
    ]
    return checksums == crcs[row] and b"".join(parts) == frames[at : at + buffer.frame]
