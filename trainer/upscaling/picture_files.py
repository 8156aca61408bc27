"""Encoding of upscaled images as PNG, JPEG or WebP; grey stays grey and the colour profile is kept.

Sources for the position of the profile: PNG https://www.w3.org/TR/png-3/ §11.3.2.3, JPEG ICC.1:2022 annex B.4,
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
_JPEG_SEGMENT_BYTES = 65519
"""Bytes of a profile in one JPEG segment."""
_JPEG_MAX_SEGMENTS = 255
_PNG_IHDR_END = 8 + 25
"""Bytes of the PNG signature and the IHDR chunk."""
_WEBP_ICC_FLAG = 0x20
"""Flag of a colour profile in the VP8X chunk."""


def encode_picture(sr: RGB8, photo: Photo, *, suffix: str) -> bytes:
    """Return the bytes of an image file.

    Args:
        sr: upscaled image [h w 3], RGB.
        photo: the input photo, which gives colour mode and profile.
        suffix: `.png`, `.jpg`, `.jpeg` or `.webp`.

    Raises:
        UsrganError: the format cannot hold the image; the message continues a line that begins with the file name.
    """
    space = b"GRAY" if photo.grey else b"RGB "
    profile = (
        photo.icc if photo.icc[16:20] == space else b""
    )  # a CMYK profile does not describe the decoded RGB
    if profile and photo.grey and suffix == ".webp":
        raise UsrganError("has a grey colour profile, which a .webp cannot hold; write .png")
    content = _encode_pixels(sr, grey=photo.grey, suffix=suffix)
    if not profile:
        return content
    match suffix:
        case ".png":
            return _insert_png_profile(profile, content)
        case ".webp":
            return _insert_webp_profile(profile, content, sr)
        case _:
            return _insert_jpeg_profile(profile, content)


def _encode_pixels(sr: RGB8, *, grey: bool, suffix: str) -> bytes:
    if grey:
        # the output for a grey input is slightly coloured: take luma with the weights of image viewers
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
        raise UsrganError(f"cannot be written as {suffix}; write .png")
    return content.tobytes()


def _insert_png_profile(profile: bytes, content: bytes) -> bytes:
    body = b"iCCP" + b"ICC\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"".join((content[:_PNG_IHDR_END], chunk, content[_PNG_IHDR_END:]))


def _insert_jpeg_profile(profile: bytes, content: bytes) -> bytes:
    step = _JPEG_SEGMENT_BYTES
    parts = [profile[start : start + step] for start in range(0, len(profile), step)]
    if len(parts) > _JPEG_MAX_SEGMENTS:
        raise UsrganError("has a colour profile that is too large for a .jpg; write .png")
    segments = [
        struct.pack(">HH12sBB", 0xFFE2, 16 + len(part), b"ICC_PROFILE\0", number, len(parts)) + part
        for number, part in enumerate(parts, 1)
    ]
    jfif_end = 4 + int.from_bytes(content[4:6], "big")
    return b"".join((content[:jfif_end], *segments, content[jfif_end:]))


def _insert_webp_profile(profile: bytes, content: bytes, sr: RGB8) -> bytes:
    height, width = sr.shape[:2]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = struct.pack("<4sIB3x", b"VP8X", 10, _WEBP_ICC_FLAG) + sides
    stored = struct.pack("<4sI", b"ICCP", len(profile)) + profile + bytes(len(profile) % 2)
    body = b"".join((b"WEBP", extended, stored, content[12:]))
    return struct.pack("<4sI", b"RIFF", len(body)) + body
