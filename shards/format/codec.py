"""How the pixels of a patch are stored: `png`, `webp` (lossless) or `raw` (`.npy`).

A flipped bit of a lossless WebP or of raw pixels decodes to a wrong picture; the CRC-32 of the index
is what notices it, for every codec alike.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData
from shards.format import png
from shards.format.png import RGB8, Buffer

Codec = Literal["png", "webp", "raw"]
EXTENSIONS: dict[str, str] = {"png": "png", "webp": "webp", "raw": "npy"}


def encode(image: RGB8, codec: Codec) -> bytes:
    """Store an RGB image [h w 3] losslessly; the same pixels give the same bytes."""
    if codec == "png":
        return png.encode_rgb(image)
    if codec == "raw":
        return raw_header(image.shape[0], image.shape[1]) + image.tobytes()
    lossless = (cv2.IMWRITE_WEBP_QUALITY, 101)  # above 100 is lossless
    done, content = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), lossless)
    assert done, image.shape
    return content.tobytes()


def decode(content: Buffer, codec: Codec) -> RGB8:
    """Decode what `encode` stored to RGB [h w 3].

    Raises:
        DamagedData: it is damaged or of another codec.
    """
    if codec == "png":
        return png.decode_rgb(content)
    return _decode_raw(content) if codec == "raw" else _decode_webp(content)


def decode_many(contents: Sequence[Buffer], codec: Codec, out: npt.NDArray[np.uint8]) -> None:
    """Decode what `encode` stored into `out` [n h w 3], C-contiguous.

    Raises:
        DamagedData: one is damaged, or of another codec or size.
    """
    if codec == "png":
        png.decode_many(contents, out)
        return
    header = raw_header(out.shape[1], out.shape[2])
    for content, target in zip(contents, out, strict=True):
        head, pixels = content[: len(header)], memoryview(content)[len(header) :]
        if codec == "raw" and head == header and len(pixels) == target.size:
            memoryview(target.reshape(-1))[:] = pixels
            continue
        image = decode(content, codec)
        if image.shape != target.shape:
            size, wanted = image.shape, target.shape
            raise DamagedData(f"is {size[1]}x{size[0]} instead of {wanted[1]}x{wanted[0]}")
        target[...] = image


def _decode_webp(content: Buffer) -> RGB8:
    if content[8:12] != b"WEBP":
        raise DamagedData("is not a WebP")
    decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise DamagedData("is a damaged WebP")
    return np.ascontiguousarray(decoded, dtype=np.uint8)


def _decode_raw(content: Buffer) -> RGB8:
    try:
        image = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise DamagedData(f"is a damaged .npy ({error})") from None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DamagedData(f"holds {image.dtype}{list(image.shape)} instead of uint8 [h w 3]")
    return image


@lru_cache(maxsize=8)
def raw_header(height: int, width: int) -> bytes:
    """Version 1.0 of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html."""
    stream = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()
