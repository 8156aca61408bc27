"""Storage of patch pixels: `png`, `webp` (lossless) or `raw` (`.npy`).

A flipped bit in a WebP or in raw pixels decodes to a wrong image without an error. The CRC-32 of the
index detects it for every codec.
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
    """Encode an RGB image [h w 3] losslessly; the same pixels give the same bytes."""
    if codec == "png":
        return png.encode_rgb(image)
    if codec == "raw":
        return raw_header(image.shape[0], image.shape[1]) + image.tobytes()
    lossless = (cv2.IMWRITE_WEBP_QUALITY, 101)  # OpenCV encodes losslessly above 100
    done, content = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), lossless)
    assert done, image.shape
    return content.tobytes()


def decode(content: Buffer, codec: Codec) -> RGB8:
    """Decode the bytes of `encode` to RGB [h w 3].

    Raises:
        DamagedData: the bytes are damaged or of another codec.
    """
    if codec == "png":
        return png.decode_rgb(content)
    return _decode_raw(content) if codec == "raw" else _decode_webp(content)


def decode_many(contents: Sequence[Buffer], codec: Codec, out: npt.NDArray[np.uint8]) -> None:
    """Decode the bytes of `encode` into `out` [n h w 3], C-contiguous.

    Raises:
        DamagedData: an image is damaged, or of another codec or size.
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
            (h, w, _), (height, width, _) = image.shape, target.shape
            raise DamagedData(f"is {w}x{h} instead of {width}x{height}")
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
    """Return the header of an `.npy` file of RGB pixels, version 1.0.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    stream = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()
