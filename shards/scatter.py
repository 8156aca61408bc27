"""Raw pairs of local shards, read straight to where they are wanted.

`codec` raw stores pixels as they are, so one `preadv` puts HR and LR into the batch and what lies around
them beside it. All that the slow way checks is checked here; what differs in anything is left to it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from isal.isal_zlib import crc32

from shards.tar import BLOCK

_ROOM = 16 * BLOCK
"""Bytes between the pixels of HR and those of LR: two headers, the JSON and some padding; else the slow way."""
_own = threading.local()


class Form:
    """What stands before the pixels of HR and LR in every pair of a data set."""

    __slots__ = ("before_hr", "before_lr", "crc_hr", "crc_lr")

    def __init__(self, before_hr: bytes, before_lr: bytes) -> None:
        self.before_hr, self.crc_hr = before_hr, crc32(before_hr)
        self.before_lr, self.crc_lr = before_lr, crc32(before_lr)


def read_pair(
    descriptor: int,
    span: Sequence[int],
    headers: bytes,
    crcs: Sequence[int],
    form: Form,
    *,
    hr: memoryview,
    lr: memoryview,
) -> bool:
    """Read one pair's pixels into `hr` and `lr`, flat; False if anything is not as promised.

    Args:
        descriptor: of the shard.
        span: where the data of HR, JSON and LR begins and ends in it.
        headers: the three headers, one after the other.
        crcs: CRC-32 of HR, JSON and LR.
        form: what stands before the pixels.
        hr: [h*w*3], contiguous bytes.
        lr: likewise.
    """
    hr_at, hr_end, json_at, json_end, lr_at, lr_end = span
    before_hr, before_lr = len(form.before_hr), len(form.before_lr)
    gap = lr_at + before_lr - hr_end
    fits = hr_end - hr_at == before_hr + len(hr) and lr_end - lr_at == before_lr + len(lr)
    if not fits or gap > _ROOM:
        return False
    try:
        head, middle = _own.head, _own.middle
    except AttributeError:
        head = _own.head = memoryview(bytearray(_ROOM))
        middle = _own.middle = memoryview(bytearray(_ROOM))
    head, middle = head[: BLOCK + before_hr], middle[:gap]
    start = hr_at - BLOCK
    try:
        read = os.preadv(descriptor, (head, hr, middle, lr), start)
    except OSError:
        return False
    if read != lr_end - start:
        return False
    json_at, json_end, lr_at = json_at - hr_end, json_end - hr_end, lr_at - hr_end
    return (
        b"".join((head[:BLOCK], middle[json_at - BLOCK : json_at], middle[lr_at - BLOCK : lr_at]))
        == headers
        and head[BLOCK:] == form.before_hr
        and middle[lr_at:] == form.before_lr
        and [
            crc32(hr, form.crc_hr),
            crc32(middle[json_at:json_end]),
            crc32(lr, form.crc_lr),
        ]
        == crcs
    )
