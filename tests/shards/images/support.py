"""Encoded images and colour profiles for the tests of shards.images."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from shards.images.photos import (
    RejectedPhoto,
    decode_photo,
)

ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))

P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))

PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13518, 0.71188, 0.0), (0.03134, 0.00009, 0.82490))

SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))

"""D50 XYZ of red, green and blue, as the profiles store them."""

IEC_61966 = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

SRGB_CURVE = struct.pack(">4s4xHxx5i", b"para", 3, *(round(65536 * v) for v in IEC_61966))

GAMMA_22 = struct.pack(">4s4xIH", b"curv", 1, round(2.2 * 256))

TABLE_18 = struct.pack(">4s4xI", b"curv", 512) + struct.pack(
    ">512H", *(round(65535 * (n / 511) ** 1.8) for n in range(512))
)

PROFILES = {
    "adobe": (ADOBE, struct.pack(">4s4xIH", b"curv", 1, 563)),
    "p3": (P3, SRGB_CURVE),
    "table": (P3, TABLE_18),
    "prophoto": (PROPHOTO, struct.pack(">4s4xIH", b"curv", 1, round(1.8 * 256))),
    "linear": (SRGB, struct.pack(">4s4xI", b"curv", 0)),
    "gamma": (ADOBE, struct.pack(">4s4xHxxi", b"para", 0, round(1.9 * 65536))),
    "grey": (None, GAMMA_22),
}


def profile_of(primaries: tuple[tuple[float, ...], ...] | None, curve: bytes) -> bytes:
    """Return a minimal version 2 profile."""
    point = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": xyz(point), b"desc": b"desc" + bytes(8) + b"\x00\x00\x00\x01\x00" + bytes(80)}
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0"
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
        tags |= {name + b"XYZ": xyz(p) for name, p in zip((b"r", b"g", b"b"), primaries, strict=True)}  # fmt: skip
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    space = b"GRAY" if primaries is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(24)
    head += struct.pack(">I3i", 0, *(round(65536 * v) for v in point)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def xyz(values: tuple[float, ...]) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * v) for v in values))


RNG = np.random.default_rng(5)

IMAGE = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encode(suffix: str, image: np.ndarray = IMAGE, *options: int) -> bytes:
    """Encode an RGB(A) or grey image with OpenCV."""
    order = [2, 1, 0, 3][: image.shape[2]] if image.ndim == 3 else None
    stored = image if order is None else np.ascontiguousarray(image[..., order])
    return cv2.imencode(suffix, stored, options)[1].tobytes()


LOSSLESS = {
    "png": encode(".png"),
    "webp": encode(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 101),
    "tiff": encode(".tif"),
    "bmp": encode(".bmp"),
}


def tiff(image: np.ndarray, photometric: int, **more: int) -> bytes:
    """Return an uncompressed TIFF; `more` are other tags by number, such as t339=2."""
    height, width, channels = image.shape
    planes = channels if more.get("t284") == 2 else 1
    tags = {256: [width], 257: [height], 258: [8 * image.itemsize] * channels, 259: [1]}
    tags |= {262: [photometric], 277: [channels], 278: [height]}
    tags |= {279: [image.nbytes // planes] * planes}
    tags |= {
        int(tag[1:]): [value] * (channels if tag == "t339" else 1) for tag, value in more.items()
    }
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = [start + 64 + plane * (image.nbytes // planes) for plane in range(planes)]
    directory, beside = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, beside = struct.pack("<I", start + len(beside)), beside + packed
        directory += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    pixels = np.moveaxis(image, 2, 0) if planes > 1 else image
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    return head + beside.ljust(64, b"\0") + pixels.astype(image.dtype.newbyteorder("<")).tobytes()


def refused(content: bytes, **options: object) -> str:
    with pytest.raises(RejectedPhoto) as caught:
        decode_photo(content, **options)
    assert "\n" not in caught.value.reason
    assert str(caught.value) == caught.value.reason
    return caught.value.code


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
