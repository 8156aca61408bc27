"""CRC-32 checksums by ISA-L, as indices and spills store them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from isal.isal_zlib import crc32

from shards.format.png import Buffer

_ONE = np.ones(64, np.uint8)


def crc32s(parts: Iterable[Buffer]) -> list[int]:
    """Return the CRC-32 of each part.

    ISA-L leaves the upper halves of the vector registers dirty, which slows SSE code that runs later:
    SHA-256 by a third, OpenCV's averaging by 1.5 to 2 times. A numpy operation clears them.
    """
    checksums = [crc32(part) for part in parts]
    np.subtract(_ONE, _ONE)
    return checksums
