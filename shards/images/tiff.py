"""First directory of a TIFF, or of an Exif block, which has the same layout: TIFF 6.0 §2, Exif 3.0 §4.5.2."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_SHORT, _LONG = 3, 4
_ORIENTATION, _PROFILE = 274, 34675


def read_tags(content: bytes) -> dict[int, int]:
    """Return the integer tags of the first directory; those before the first damage."""
    order = _byte_order(content)
    return {
        tag: struct.unpack_from(order + ("H" if kind == _SHORT else "I"), value)[0]
        for tag, kind, _, value in _read_entries(content)
        if kind in (_SHORT, _LONG)
    }


def find_profile(content: bytes) -> bytes:
    """Return the colour profile, empty without one."""
    for tag, _, size, value in _read_entries(content):
        if tag == _PROFILE:
            (offset,) = struct.unpack(_byte_order(content) + "I", value)
            return content[offset : offset + size]
    return b""


def find_orientation(tags: dict[int, int]) -> int:
    """Return the Exif orientation, 1 to 8; 1 for missing or invalid values."""
    orientation = tags.get(_ORIENTATION, 1)
    return orientation if 1 <= orientation <= 8 else 1


def _read_entries(content: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield tag, type, count and value (four bytes) of each entry, up to the first damage."""
    order = _byte_order(content)
    try:
        (at,) = struct.unpack_from(order + "I", content, 4)
        (count,) = struct.unpack_from(order + "H", content, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            yield struct.unpack_from(order + "HHI4s", content, entry)
    except struct.error:
        return


def _byte_order(content: bytes) -> str:
    return "<" if content[:2] == b"II" else ">"
