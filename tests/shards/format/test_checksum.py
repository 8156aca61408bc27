from __future__ import annotations

import os
import zlib

from shards.format.checksum import crc32s


def test_each_part_has_the_checksum_that_zlib_computes():
    parts = [b"", b"x", os.urandom(15), memoryview(os.urandom(10_000))[1:-1]]
    assert crc32s(iter(parts)) == [zlib.crc32(part) for part in parts]
