"""CRC-32 by ISA-L, as indices and spills hold it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from isal.isal_zlib import crc32

from shards.format.png import Buffer

_ONE = np.ones(64, np.uint8)


def crc32s(parts: Iterable[Buffer]) -> list[int]:
    """The CRC-32 of each part.

    ISA-L leaves the upper halves of the vector registers in use, with which older instructions take longer:
    SHA-256 a third, OpenCV's averages half as much again as twice. An operation of NumPy ends that.
    """
    found = [crc32(part) for part in parts]
    np.subtract(_ONE, _ONE)
    return found
