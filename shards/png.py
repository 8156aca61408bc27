"""PNG in the one form that is fast on both ends: filter Up on every row, deflated by ISA-L.

Filtering is then one subtraction and unfiltering a cumulative sum over rows modulo 256, done in
log2(rows) additions of whole images. Any PNG reader takes these files; `decode_rgb` takes any PNG and
uses OpenCV for other forms.
Format: https://www.w3.org/TR/png-3/ (§9.2 filter types, §11.2 critical chunks).
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from shards.errors import DamagedData

RGB8 = npt.NDArray[np.uint8]
"""An image: uint8, HWC, RGB, sRGB values 0..255, C-contiguous."""

Buffer = bytes | memoryview
"""Stored bytes, or a part of larger ones without a copy."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_AT = 8
_IDAT_AT = 8 + 25  # signature, then IHDR with its 13 bytes and 12 of framing
_UP = 2
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def encode_rgb(image: RGB8, *, level: int = 1) -> bytes:
    """Encode an RGB image [h w 3] losslessly; the bytes depend on the image and isal's version."""
    height, width, channels = image.shape
    assert image.dtype == np.uint8, image.dtype
    assert channels == 3, image.shape
    rows = image.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", _deflate(filtered.reshape(-1).data, level)),
            _END,
        )
    )


def decode_rgb(content: Buffer) -> RGB8:
    """Decode a PNG to RGB [h w 3].

    Raises:
        DamagedData: a checksum or the amount of pixels is wrong, or it is no PNG.
    """
    filtered = _inflate(content)
    if filtered is not None:
        height, width = filtered.shape[0], (filtered.shape[1] - 1) // 3
        made = np.empty((height, width, 3), np.uint8)
        _unfilter(filtered[:, 1:], made.reshape(height, 3 * width))
        return made
    if content[:8] != SIGNATURE:
        raise DamagedData("is not a PNG")
    decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise DamagedData("is a damaged PNG")
    return np.ascontiguousarray(decoded, dtype=np.uint8)


def decode_rgb_into(content: Buffer, out: RGB8) -> None:
    """Decode a PNG into `out` [h w 3], which it must fill.

    Raises:
        DamagedData: as `decode_rgb`, or it is of another size.
    """
    height, width, _ = out.shape
    filtered = _inflate(content)
    if filtered is not None and filtered.shape == (height, 1 + 3 * width):
        _unfilter(filtered[:, 1:], out.reshape(height, 3 * width))
        return
    image = decode_rgb(content)
    if image.shape != out.shape:
        raise DamagedData(f"is {image.shape[1]}x{image.shape[0]} instead of {width}x{height}")
    out[...] = image


def _inflate(content: Buffer) -> npt.NDArray[np.uint8] | None:
    """Rows of our own form, filtered, the filter's type first; None for any other PNG."""
    if len(content) < _IDAT_AT + 24 or content[:8] != SIGNATURE:
        return None
    size, kind = struct.unpack_from(">I4s", content, _IHDR_AT)
    width, height, *form = struct.unpack_from(">IIBBBBB", content, _IHDR_AT + 8)
    length, second = struct.unpack_from(">I4s", content, _IDAT_AT)
    if (size, kind, form, second) != (13, b"IHDR", [8, 2, 0, 0, 0], b"IDAT"):
        return None
    if _IDAT_AT + 12 + length + len(_END) != len(content) or content[-len(_END) :] != _END:
        return None
    _check_crc(content, _IHDR_AT, 13)
    _check_crc(content, _IDAT_AT, length)
    expected = height * (1 + width * 3)
    try:
        # a lying header cannot ask for more memory than deflate's 1032:1 allows
        raw = isal_zlib.decompress(
            memoryview(content)[_IDAT_AT + 8 : _IDAT_AT + 8 + length],
            bufsize=min(expected, 1032 * length + 64),
        )
    except isal_zlib.error as error:  # type: ignore[misc]  # isal ships no types for it
        raise DamagedData(f"is a damaged PNG ({error})") from error
    if len(raw) != expected:
        raise DamagedData(f"holds {len(raw)} bytes of pixels instead of {expected}")
    filtered = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * 3)
    return filtered if (filtered[:, 0] == _UP).all() else None


def _unfilter(rows: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Sums of rows from the first on, modulo 256: each addition doubles how many rows are in each sum.

    Hillis and Steele, "Data parallel algorithms", CACM 29 (1986). `np.add.accumulate` adds row by row and
    takes four times as long; here a zeroed margin above the rows lets each round be one addition.
    """
    height, width = out.shape
    steps = [1 << n for n in range((height - 1).bit_length())]
    if len(steps) < 2:
        np.add.accumulate(rows, axis=0, dtype=np.uint8, out=out)
        return
    margin = steps[-1]
    scratch = np.empty((2, margin + height, width), np.uint8)
    scratch[:, :margin] = 0
    here, there = scratch
    here[margin] = rows[0]
    np.add(rows[1:], rows[:-1], out=here[margin + 1 :])
    for step in steps[1:-1]:
        np.add(here[margin:], here[margin - step : -step], out=there[margin:])
        here, there = there, here
    np.add(here[margin:], here[margin - steps[-1] : -steps[-1]], out=out)


def _deflate(data: memoryview, level: int) -> bytes:
    """Compress, with the first bytes flushed into a block of their own.

    ISA-L (seen in 2.32) looks up position 2 of a longer first block under a hash taken from a register
    that it never set, an address of the stack, so that about one image in many thousands came out
    different in another process. Only the code for a block's last 16 bytes sets it: docs/decisions/0002.
    """
    stream = isal_zlib.compressobj(level)
    head = stream.compress(data[:16]) + stream.flush(isal_zlib.Z_SYNC_FLUSH)
    return head + stream.compress(data[16:]) + stream.flush()


def _check_crc(content: Buffer, at: int, length: int) -> None:
    stored = int.from_bytes(content[at + 8 + length : at + 12 + length], "big")
    if isal_zlib.crc32(memoryview(content)[at + 4 : at + 8 + length]) != stored:
        raise DamagedData(
            f"PNG checksum of {bytes(content[at + 4 : at + 8]).decode('latin-1')} is wrong"
        )


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
