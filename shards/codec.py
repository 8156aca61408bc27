"""How the pixels of a patch are stored: `png`, `webp` (lossless) or `raw` (`.npy`).

A flipped bit of a lossless WebP or of raw pixels decodes to a wrong picture; the CRC-32 of the index
is what notices it, for every codec alike.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np

from shards import png
from shards.errors import DamagedData
from shards.png import RGB8, Buffer

Codec = Literal["png", "webp", "raw"]
EXTENSIONS: dict[str, str] = {"png": "png", "webp": "webp", "raw": "npy"}


def encode(image: RGB8, codec: Codec) -> bytes:
    """Store an RGB image [h w 3] losslessly; the same pixels give the same bytes."""
    if codec == "png":
        return png.encode_rgb(image)
    if codec == "raw":
        return _npy_header(image.shape[0], image.shape[1]) + image.tobytes()
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


def decode_into(content: Buffer, codec: Codec, out: RGB8) -> None:
    """Decode what `encode` stored into `out` [h w 3], which it must fill.

    Raises:
        DamagedData: it is damaged, or of another codec or size.
    """
    if codec == "png":
        png.decode_rgb_into(content, out)
        return
    if codec == "raw":
        header = _npy_header(out.shape[0], out.shape[1])
        if len(content) == len(header) + out.size and content[: len(header)] == header:
            out.reshape(-1)[:] = np.frombuffer(content, np.uint8, offset=len(header))
            return
    image = decode(content, codec)
    if image.shape != out.shape:
        raise DamagedData(
            f"is {image.shape[1]}x{image.shape[0]} instead of {out.shape[1]}x{out.shape[0]}"
        )
    out[...] = image


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
def _npy_header(height: int, width: int) -> bytes:
    """Version 1.0 of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html."""
    stream = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()
