"""Format, size, orientation and colour profile of an image file, read before it is decoded.

A PNG of 49 kB can demand 2.3 GB, and decoders accept some truncated files; both are detected here.
Sources: PNG https://www.w3.org/TR/png-3/, WebP RFC 9649, JPEG ITU-T T.81 annex B.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from isal import isal_zlib

from shards.format.png import SIGNATURE, read_chunks
from shards.images import tiff

Kind = Literal["JPEG", "PNG", "WebP", "TIFF", "BMP"]
_NOT_FRAMES = {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC: no frames, but in the range of frame markers
_BGR = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)  # bit masks of red, green and blue in a BMP
_RGB = bytes((8, 2, 0, 0, 0))  # IHDR of 8-bit RGB: bits, colour type, methods, no interlacing
_PNG_CRITICAL = {b"PLTE", b"IDAT", b"IEND"}  # critical chunks after IHDR
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # JPEG markers TEM, RST0 to RST7 and SOI


class BadHeader(Exception):
    """The file violates its format; `code` is CUT_OFF, DAMAGED, MODE or NOT_IMAGE."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Header:
    """Properties of an image file; width and height in pixels are those before the orientation is applied."""

    kind: Kind
    width: int
    height: int
    orientation: int = 1
    """Exif orientation, 1 to 8."""
    icc: bytes = b""
    """ICC profile, empty without one."""
    animated: bool = False
    """Whether the file is an animation; decoders return its first frame."""
    inverted_cmyk: bool = False
    """Whether the CMYK values are inverted, as Adobe stores them."""
    transparent: bool = False
    """Whether metadata marks grey pixels as transparent; OpenCV ignores that."""
    plain: bool = False
    """Whether the file is a PNG of 8-bit RGB, not interlaced and without transparency."""
    inverted_or_planar: bool = False
    """Whether the file is a white-is-zero or planar TIFF; at 16 bits OpenCV ignores that."""


def read_header(content: bytes) -> Header:
    """Detect the format from the first bytes and check its structure.

    Raises:
        BadHeader: the format is unknown or violated.
    """
    try:
        if content.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(content)
        if content.startswith(SIGNATURE):
            return _read_png(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _read_webp(content)
        if content[:4] in (b"II*\0", b"MM\0*"):
            return _read_tiff(content)
        if content[:2] == b"BM" and len(content) >= 30:
            return _read_bmp(content)
    except (struct.error, IndexError):
        raise BadHeader("CUT_OFF", "ends inside its header") from None
    raise BadHeader("NOT_IMAGE", _describe_other(content))


def _read_jpeg(content: bytes) -> Header:
    at, size, orientation, inverted = 2, None, None, False
    profile: dict[int, bytes] = {}
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            raise BadHeader("DAMAGED", "has bytes between its JPEG segments")
        marker = content[at + 1]
        if marker == 0xFF or marker in _MARKERS_WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            break
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        body = content[at + 4 : at + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            height, width = struct.unpack_from(">HH", body, 1)
            size = width, height
        elif marker == 0xE1 and body.startswith(b"Exif\0\0") and orientation is None:
            orientation = tiff.find_orientation(tiff.read_tags(body[6:]))
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == 0xEE and body.startswith(b"Adobe"):
            inverted = True
        at += 2 + length
    if size is None:
        raise BadHeader("CUT_OFF", "ends before its JPEG frame")
    icc = b"".join(profile[number] for number in sorted(profile))
    return Header("JPEG", *size, orientation or 1, icc, inverted_cmyk=inverted)


def _read_png(content: bytes) -> Header:
    size, orientation, icc, form, palette = None, 1, b"", b"", 3
    kinds = set()
    for kind, body in _check_png_chunks(content):
        if size is None:
            if kind != b"IHDR":
                raise BadHeader("DAMAGED", "does not start with a PNG header")
            size, form = struct.unpack_from(">II", body), body[8:]
        elif kind[:1].isupper() and kind not in _PNG_CRITICAL:
            raise BadHeader("DAMAGED", f"has an unknown critical PNG chunk {kind.decode()}")
        elif kind == b"eXIf":
            orientation = tiff.find_orientation(tiff.read_tags(body))
        elif kind == b"iCCP":
            icc = _inflate_profile(body.partition(b"\0")[2][1:])
        elif kind == b"PLTE":
            palette = len(body)
        kinds.add(kind)
    if size is None or b"IDAT" not in kinds:
        raise BadHeader("CUT_OFF", "ends before its pixels")
    animated, transparent = b"acTL" in kinds, b"tRNS" in kinds
    plain = form == _RGB and not transparent and 0 < palette <= 768 and palette % 3 == 0
    return Header(
        "PNG", size[0], size[1], orientation, icc, animated, transparent=transparent, plain=plain
    )


def _check_png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of all chunks up to IEND; check their checksums."""
    kind = b""
    for kind, start, stop in read_chunks(content):
        if not kind.isalpha():
            raise BadHeader("DAMAGED", "has a broken chain of PNG chunks")
        if stop > len(content):
            raise BadHeader("CUT_OFF", f"ends inside its {kind.decode()} chunk")
        body = content[start + 8 : stop - 4]
        if isal_zlib.crc32(body, isal_zlib.crc32(kind)) != int.from_bytes(
            content[stop - 4 : stop], "big"
        ):
            raise BadHeader("DAMAGED", f"has a wrong checksum in its {kind.decode()} chunk")
        yield kind, body
    if kind != b"IEND":
        raise BadHeader("CUT_OFF", f"ends after {len(content):,} bytes, before its IEND")


def strip_png(content: bytes) -> bytes:
    """Return a PNG with only the chunks that define its pixels.

    Decoders print warnings about the other chunks, or play them as an animation.
    """
    chunks = [
        content[start:stop]
        for kind, start, stop in read_chunks(content)
        if kind[:1].isupper() or kind == b"tRNS"
    ]
    return b"".join((SIGNATURE, *chunks))


def _read_webp(content: bytes) -> Header:
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise BadHeader("CUT_OFF", f"ends after {len(content):,} of {end:,} bytes")
    size: tuple[int, int] | None = None
    orientation, icc, animated, at = 1, b"", False, 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", content, at)
        body = content[at + 8 : at + 8 + length]
        if kind == b"VP8X":
            size = _read_u24(body[4:7]) + 1, _read_u24(body[7:10]) + 1
        elif kind == b"VP8L" and size is None:
            bits = struct.unpack_from("<I", body, 1)[0]
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", body, 6)
            size = width & 0x3FFF, height & 0x3FFF
        elif kind == b"EXIF":
            orientation = tiff.find_orientation(tiff.read_tags(body.removeprefix(b"Exif\0\0")))
        elif kind == b"ICCP":
            icc = body
        animated |= kind == b"ANIM"
        at += 8 + length + length % 2
    if size is None:
        raise BadHeader("DAMAGED", "contains no WebP image")
    return Header("WebP", *size, orientation, icc, animated)


def _read_tiff(content: bytes) -> Header:
    tags = tiff.read_tags(content)
    return Header(
        "TIFF",
        tags.get(256, 0),
        tags.get(257, 0),
        tiff.find_orientation(tags),
        tiff.find_profile(content),
        transparent=tags.get(338) in (1, 2),
        inverted_or_planar=tags.get(262) == 0 or (tags.get(284) == 2 and tags.get(277, 1) > 1),
    )


def _read_bmp(content: bytes) -> Header:
    start, header, width, height, _, depth, packing = struct.unpack_from("<IIiiHHI", content, 10)
    if header < 40:
        raise BadHeader("DAMAGED", "is a BMP from before Windows 3")
    stride = (abs(width) * depth + 31) // 32 * 4
    if packing in (0, 3) and start + stride * abs(height) > len(content):
        raise BadHeader("CUT_OFF", f"ends after {len(content):,} bytes, before its last row")
    if depth == 16 or (packing in (3, 6) and content[54:66] != _BGR):  # OpenCV ignores the masks
        raise BadHeader("MODE", "is a BMP with bit fields; convert it to PNG")
    return Header("BMP", abs(width), abs(height))


def _inflate_profile(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 2**24)
    except zlib.error:
        return b""


def _read_u24(data: bytes) -> int:
    return int.from_bytes(data[:3], "little")


def _describe_other(content: bytes) -> str:
    head = content[:64].lstrip().lower()
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "is HEIC or AVIF; convert it to PNG or JPEG first"
    for start, name in (
        (b"gif8", "a GIF"),
        (b"%pdf", "a PDF"),
        (b"<", "HTML or XML"),
        (b"pk", "a ZIP"),
    ):
        if head.startswith(start):
            return f"is {name}, not a photo"
    return "is not a PNG, JPEG, WebP, TIFF or BMP"
