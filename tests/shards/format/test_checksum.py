from __future__ import annotations

import os
import zlib

from shards.format.checksum import crc32s


def test_checksums_equal_those_of_zlib():
    parts = [b"", b"x", os.urandom(15), memoryview(os.urandom(10_000))[1:-1]]
    assert crc32s(iter(parts)) == [zlib.crc32(part) for part in parts]
