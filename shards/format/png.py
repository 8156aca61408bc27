"""PNG in the one form that is fast on both ends: filter Up on every row, deflated by ISA-L.

Filtering is then one subtraction and unfiltering a cumulative sum over rows modulo 256. Any PNG reader
takes these files; `decode_rgb` takes any PNG, and what is not of this form by OpenCV.
Format: https://www.w3.org/TR/png-3/ (§9.2 filter types, §11.2 critical chunks).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from shards.errors import DamagedData
from shards.format.unfilter import UP, missing_kernel_reason, unfilter

RGB8 = npt.NDArray[np.uint8]
"""An image: uint8, HWC, RGB, sRGB values 0..255, C-contiguous."""

Buffer = bytes | memoryview
"""Stored bytes, or a part of larger ones without a copy."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_AT = 8
_IDAT_AT = 8 + 25  # signature, then IHDR with its 13 bytes and 12 of framing
_BATCH = 8
"""Images: two arrays of so many of 128 pixels fit into the second cache."""
_LARGEST_PATCH_BYTES = 1_000_000
"""Pixels of a side that libpng takes (PNG_USER_WIDTH_MAX)."""
_LARGEST_CHUNK = 2**31 - 1
"""Bytes that a chunk may hold (§5.3): a picture of a gigapixel takes two."""
_ZLIB_HEADER = b"\x78"
"""How zlib's format begins where matches may reach back 32 KiB: RFC 1950 §2.2."""
_IEND = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def encode_rgb(image: RGB8, *, level: int = 1) -> bytes:
    """Encode an RGB image [h w 3] losslessly; the bytes depend on the image and isal's version."""
    height, width, channels = image.shape
    assert image.dtype == np.uint8, image.dtype
    assert channels == 3, image.shape
    rows = image.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    deflated = _deflate_rows(filtered.reshape(-1).data, level)
    starts = range(0, len(deflated), _LARGEST_CHUNK)
    idats = [_png_chunk(b"IDAT", deflated[at : at + _LARGEST_CHUNK]) for at in starts]
    return b"".join((_png_header(height, width), *idats, _IEND))


def decode_rgb(content: Buffer) -> RGB8:
    """Decode a PNG to RGB [h w 3].

    Raises:
        DamagedData: a checksum or the amount of pixels is wrong, or it is no PNG.
    """
    if len(content) > _IDAT_AT and content[:_IHDR_AT] == SIGNATURE:
        width, height = struct.unpack_from(">II", content, _IHDR_AT + 8)
        raw = _inflate_rows(content, height, width)
        if raw is not None:
            made: RGB8 = np.empty((height, width, 3), np.uint8)
            if unfilter([raw], made[None]):
                return made
    if content[:_IHDR_AT] != SIGNATURE:
        raise DamagedData("is not a PNG")
    decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise DamagedData("is a damaged PNG")
    return np.ascontiguousarray(decoded, dtype=np.uint8)


def decode_plain(content: bytes, *, height: int, width: int) -> RGB8 | None:
    """The pixels [h w 3] of a PNG of 8-bit RGB in rows, whose chunks have been checked.

    Returns:
        None for what OpenCV must look at, so that the same files are taken with and without a compiler:
        a stream that is damaged, of another length or of a smaller window than deflate's, which ISA-L does
        not hold it to; IDATs apart; sides that are longer than libpng allows.
    """
    if missing_kernel_reason() or max(height, width) > _LARGEST_PATCH_BYTES:
        return None
    parts: list[bytes] = []
    behind = b""
    for kind, start, stop in read_chunks(content):
        if kind == b"IDAT":
            if parts and behind != kind:
                return None
            parts.append(content[start + 8 : stop - 4])
        behind = kind
    expected, deflated = height * (1 + 3 * width), b"".join(parts)
    if deflated[:1] != _ZLIB_HEADER:
        return None
    stream = isal_zlib.decompressobj()
    try:
        filtered = stream.decompress(deflated, expected + 1)  # one more, to see its end
    except isal_zlib.error:  # type: ignore[misc]  # isal ships no types for it
        return None
    if len(filtered) != expected or not stream.eof:
        return None
    made: RGB8 = np.empty((height, width, 3), np.uint8)
    return made if unfilter([filtered], made[None]) else None


def read_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk, its framing included, up to IEND or where the file is cut off.

    Nothing is checked: `headers.read_header` does that.
    """
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        yield kind, at, at + 12 + length
        if kind == b"IEND":
            return
        at += 12 + length


def decode_many(contents: Sequence[Buffer], out: npt.NDArray[np.uint8]) -> None:
    """Decode PNGs into `out` [n h w 3], several images by one call.

    Each call into C lets go of the interpreter and fights for it again when threads decode: fewer
    calls are what lets two threads do more than one.

    Raises:
        DamagedData: as `decode_rgb`, or one is of another size.
    """
    _, height, width, _ = out.shape
    for first in range(0, len(contents), _BATCH):
        group, targets = contents[first : first + _BATCH], out[first : first + _BATCH]
        raws = [_inflate_rows(content, height, width) for content in group]
        plain = [raw for raw in raws if raw is not None]
        if len(plain) == len(group) and unfilter(plain, targets[: len(group)]):
            continue
        for content, target in zip(group, targets, strict=False):
            image = decode_rgb(content)
            if image.shape != target.shape:
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise DamagedData(f"is {size} instead of {width}x{height}")
            target[...] = image


def _inflate_rows(content: Buffer, height: int, width: int) -> bytes | None:
    """The filtered rows [h 1+3w] of a PNG of 8-bit RGB with one IDAT; None for any other PNG or size."""
    if not height * width or content[:_IDAT_AT] != _png_header(height, width):
        return None
    if len(content) < _IDAT_AT + 24:
        return None
    length, kind = struct.unpack_from(">I4s", content, _IDAT_AT)
    if kind != b"IDAT" or _IDAT_AT + 12 + length + len(_IEND) != len(content):
        return None
    if content[-len(_IEND) :] != _IEND:
        return None
    data = memoryview(content)[_IDAT_AT + 4 : _IDAT_AT + 8 + length]
    if isal_zlib.crc32(data).to_bytes(4, "big") != content[-len(_IEND) - 4 : -len(_IEND)]:
        raise DamagedData("PNG checksum of IDAT is wrong")
    expected = height * (1 + width * 3)
    try:
        # a lying header cannot ask for more memory than deflate's 1032:1 allows
        raw: bytes = isal_zlib.decompress(data[4:], bufsize=min(expected, 1032 * length + 64))
    except isal_zlib.error as error:  # type: ignore[misc]  # isal ships no types for it
        raise DamagedData(f"is a damaged PNG ({error})") from error
    if len(raw) != expected:
        raise DamagedData(f"holds {len(raw)} bytes of pixels instead of {expected}")
    return raw


@lru_cache(maxsize=64)
def _png_header(height: int, width: int) -> bytes:
    """Signature and IHDR: 8 bits, RGB, not interlaced."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _png_chunk(b"IHDR", header)


def _deflate_rows(data: memoryview, level: int) -> bytes:
    """Compress, with the first bytes flushed into a block of their own.

    ISA-L (seen in 2.32) looks up position 2 of a longer first block under a hash taken from a register
    that it never set, an address of the stack, so that about one image in many thousands came out
    different in another process. Only the code for a block's last 16 bytes sets it: docs/internals/decisions/0002.
    """
    stream = isal_zlib.compressobj(level)
    head = stream.compress(data[:16]) + stream.flush(isal_zlib.Z_SYNC_FLUSH)
    return head + stream.compress(data[16:]) + stream.flush()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
