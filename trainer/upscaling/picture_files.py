"""Upscaled pictures to the bytes of a file: grey stays grey, and the colour profile goes along.

Sources for where a profile lies: PNG https://www.w3.org/TR/png-3/ §11.3.2.3, JPEG ICC.1:2022 annex B.4,
WebP RFC 9649 §2.7.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np

from shards.errors import UsrganError
from shards.format import png
from shards.format.png import RGB8
from shards.images.photos import Photo

JPEG_QUALITY = 95
_JPEG_PIECE = 65519
"""Bytes of a profile that one segment of a JPEG holds; there may be 255."""
_PNG_PIXELS_AT = 8 + 25  # signature, then IHDR with its framing
_HAS_PROFILE = 0x20  # in the flags of an extended WebP


def encode_picture(sr: RGB8, photo: Photo, *, suffix: str) -> bytes:
    """The bytes of a .png, .jpg or .webp file of an upscaled photo.

    Raises:
        UsrganError: the format cannot hold it; completes a sentence that begins with the file's name.
    """
    space = b"GRAY" if photo.grey else b"RGB "
    profile = photo.icc if photo.icc[16:20] == space else b""  # inks were converted when decoded
    if profile and photo.grey and suffix == ".webp":
        raise UsrganError("has a grey colour profile, which a .webp cannot hold; choose .png")
    content = _encode(sr, grey=photo.grey, suffix=suffix)
    if not profile:
        return content
    match suffix:
        case ".png":
            return _png_with(profile, content)
        case ".webp":
            return _webp_with(profile, content, sr)
        case _:
            return _jpeg_with(profile, content)


def _encode(sr: RGB8, *, grey: bool, suffix: str) -> bytes:
    if grey:
        # a generator makes grey slightly coloured: luma, as image viewers weigh it
        image: Any = cv2.cvtColor(sr, cv2.COLOR_RGB2GRAY)
    elif suffix == ".png":
        return png.encode_rgb(np.ascontiguousarray(sr), level=1)
    else:
        image = cv2.cvtColor(sr, cv2.COLOR_RGB2BGR)
    quality = {
        ".png": [cv2.IMWRITE_PNG_COMPRESSION, 6],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101],  # lossless
    }.get(suffix, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    written, content = cv2.imencode(suffix, image, quality)
    if not written:
        raise UsrganError(f"cannot be written as {suffix}; choose .png")
    return content.tobytes()


def _png_with(profile: bytes, content: bytes) -> bytes:
    body = b"iCCP" + b"ICC\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"".join((content[:_PNG_PIXELS_AT], chunk, content[_PNG_PIXELS_AT:]))


def _jpeg_with(profile: bytes, content: bytes) -> bytes:
    pieces = [profile[at : at + _JPEG_PIECE] for at in range(0, len(profile), _JPEG_PIECE)]
    if len(pieces) > 255:
        raise UsrganError("has a colour profile that is too large for a .jpg; choose .png")
    segments = [
        struct.pack(">HH12sBB", 0xFFE2, 16 + len(piece), b"ICC_PROFILE\0", number, len(pieces))
        + piece
        for number, piece in enumerate(pieces, 1)
    ]
    start = 4 + int.from_bytes(content[4:6], "big")  # behind the JFIF segment
    return b"".join((content[:start], *segments, content[start:]))


def _webp_with(profile: bytes, content: bytes, sr: RGB8) -> bytes:
    height, width = sr.shape[:2]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = struct.pack("<4sIB3x", b"VP8X", 10, _HAS_PROFILE) + sides
    stored = struct.pack("<4sI", b"ICCP", len(profile)) + profile + bytes(len(profile) % 2)
    body = b"".join((b"WEBP", extended, stored, content[12:]))
    return struct.pack("<4sI", b"RIFF", len(body)) + body
