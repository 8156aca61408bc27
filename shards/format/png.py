"""PNG in the form that is fastest to write and read: filter Up on every row, deflated by ISA-L.

Filtering is then one subtraction; unfiltering is a cumulative sum over rows modulo 256. Any PNG reader
reads these files. `decode_rgb` reads any PNG and leaves other forms to OpenCV.
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
"""Stored bytes, or a view of a part of them."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_AT = 8
_IDAT_AT = 8 + 25  # signature, then IHDR with its 13 bytes and 12 of framing
_BATCH = 8
"""Images per call; two arrays of 8 images of 128 x 128 pixels fit into the L2 cache."""
_MAX_SIDE = 1_000_000
"""Longest side in pixels that libpng reads (PNG_USER_WIDTH_MAX)."""
_MAX_CHUNK_BYTES = 2**31 - 1
"""Longest data of a chunk in bytes (§5.3); an image of one gigapixel needs two chunks."""
_ZLIB_HEADER = b"\x78"
"""First byte of a zlib stream with a window of 32 KiB (RFC 1950 §2.2)."""
_IEND = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def encode_rgb(image: RGB8, *, level: int = 1) -> bytes:
    """Encode an RGB image [h w 3] losslessly; the bytes depend on the image and the version of isal."""
    height, width, channels = image.shape
    assert image.dtype == np.uint8, image.dtype
    assert channels == 3, image.shape
    rows = image.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    deflated = _deflate_rows(filtered.reshape(-1).data, level)
    starts = range(0, len(deflated), _MAX_CHUNK_BYTES)
    idats = [_png_chunk(b"IDAT", deflated[at : at + _MAX_CHUNK_BYTES]) for at in starts]
    return b"".join((_png_header(height, width), *idats, _IEND))


def decode_rgb(content: Buffer) -> RGB8:
    """Decode a PNG to RGB [h w 3].

    Raises:
        DamagedData: a checksum or the number of pixel bytes is wrong, or the content is not a PNG.
    """
    if len(content) > _IDAT_AT and content[:_IHDR_AT] == SIGNATURE:
        width, height = struct.unpack_from(">II", content, _IHDR_AT + 8)
        filtered = _inflate_rows(content, height, width)
        if filtered is not None:
            image: RGB8 = np.empty((height, width, 3), np.uint8)
            if unfilter([filtered], image[None]):
                return image
    if content[:_IHDR_AT] != SIGNATURE:
        raise DamagedData("is not a PNG")
    decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise DamagedData("is a damaged PNG")
    return np.ascontiguousarray(decoded, dtype=np.uint8)


def decode_plain(content: bytes, *, height: int, width: int) -> RGB8 | None:
    """Decode a non-interlaced 8-bit RGB PNG, whose chunks were checked, to pixels [h w 3].

    Returns None for files that OpenCV has to judge, so that the same files are accepted with and
    without a compiler: a damaged zlib stream, one of unexpected length or with a window below 32 KiB
    (which ISA-L does not enforce), separated IDAT chunks, and sides longer than libpng allows.
    """
    if missing_kernel_reason() or max(height, width) > _MAX_SIDE:
        return None
    parts: list[bytes] = []
    previous = b""
    for kind, start, stop in read_chunks(content):
        if kind == b"IDAT":
            if parts and previous != kind:
                return None
            parts.append(content[start + 8 : stop - 4])
        previous = kind
    expected, deflated = height * (1 + 3 * width), b"".join(parts)
    if deflated[:1] != _ZLIB_HEADER:
        return None
    stream = isal_zlib.decompressobj()
    try:
        filtered = stream.decompress(
            deflated, expected + 1
        )  # one more byte detects a longer stream
    except isal_zlib.error:  # type: ignore[misc]  # isal ships no types for it
        return None
    if len(filtered) != expected or not stream.eof:
        return None
    image: RGB8 = np.empty((height, width, 3), np.uint8)
    return image if unfilter([filtered], image[None]) else None


def read_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk with its framing, up to IEND or the end of the file.

    Checks nothing; `headers.read_header` does.
    """
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        yield kind, at, at + 12 + length
        if kind == b"IEND":
            return
        at += 12 + length


def decode_many(contents: Sequence[Buffer], out: npt.NDArray[np.uint8]) -> None:
    """Decode PNGs into `out` [n h w 3], several images per call of the C kernel.

    Every call releases and reacquires the interpreter lock. Fewer calls let decoding threads scale.

    Raises:
        DamagedData: as `decode_rgb`, or an image has another size.
    """
    _, height, width, _ = out.shape
    for first in range(0, len(contents), _BATCH):
        group, targets = contents[first : first + _BATCH], out[first : first + _BATCH]
        rows = [_inflate_rows(content, height, width) for content in group]
        plain = [filtered for filtered in rows if filtered is not None]
        if len(plain) == len(group) and unfilter(plain, targets[: len(group)]):
            continue
        for content, target in zip(group, targets, strict=False):
            image = decode_rgb(content)
            if image.shape != target.shape:
                size = f"{image.shape[1]}x{image.shape[0]}"
                raise DamagedData(f"is {size} instead of {width}x{height}")
            target[...] = image


def _inflate_rows(content: Buffer, height: int, width: int) -> bytes | None:
    """Return the filtered rows [h 1+3w] of an 8-bit RGB PNG with one IDAT; None for other PNGs or sizes."""
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
        # a forged header cannot allocate more than deflate's maximum ratio of 1032:1
        filtered: bytes = isal_zlib.decompress(data[4:], bufsize=min(expected, 1032 * length + 64))
    except isal_zlib.error as error:  # type: ignore[misc]  # isal ships no types for it
        raise DamagedData(f"is a damaged PNG ({error})") from error
    if len(filtered) != expected:
        raise DamagedData(f"holds {len(filtered)} bytes of pixels instead of {expected}")
    return filtered


@lru_cache(maxsize=64)
def _png_header(height: int, width: int) -> bytes:
    """Return signature and IHDR of an 8-bit RGB image, not interlaced."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _png_chunk(b"IHDR", header)


def _deflate_rows(data: memoryview, level: int) -> bytes:
    """Deflate filtered rows; the first 16 bytes are flushed into a block of their own.

    Do not remove the flush: ISA-L (seen in 2.32) hashes position 2 of a longer first block with a register
    that it never initialised. A stack address decided the output, so that one image in thousands differed
    between processes. Only the code for a block's last 16 bytes sets that register:
    docs/internals/decisions/0002.
    """
    stream = isal_zlib.compressobj(level)
    head = stream.compress(data[:16]) + stream.flush(isal_zlib.Z_SYNC_FLUSH)
    return head + stream.compress(data[16:]) + stream.flush()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
