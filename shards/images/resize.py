"""Antialiased bicubic resizing of 8-bit images: the maker of LR. Two kernels, one filter.

Both are Keys' cubic with a = -0.5, stretched by the scale (that is the antialiasing), rounded to
8 bits after each axis. `pillow` is PIL's (pillow-simd or Pillow), the fast one. `matlab` is
`imresize` of MATLAB R2015b and later, bit for bit: symmetric border, rows before columns, halves
rounded up. They differ in every sixth value by one level or so. OpenCV's INTER_CUBIC has no
antialiasing and is never used here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from shards.format.png import RGB8

Kernel = Literal["pillow", "matlab"]
Enlargement = Literal["bicubic", "lanczos", "nearest"]
_STRIP_ROWS = 128
"""Pixels across that are shrunk at a time."""


def downscale(image: RGB8, *, scale: int, kernel: Kernel = "pillow") -> RGB8:
    """Antialiased bicubic x1/scale of an image [h w 3] whose sides are multiples of the scale."""
    height, width = image.shape[:2]
    assert height % scale == 0, (image.shape, scale)
    assert width % scale == 0, (image.shape, scale)
    if kernel == "matlab":
        rows = _shrink_rows(image, scale)
        columns = _shrink_rows(rows.transpose(1, 0, 2), scale)
        return np.ascontiguousarray(columns.transpose(1, 0, 2))
    return _resize_pillow(
        image, height=height // scale, width=width // scale, by=Image.Resampling.BICUBIC
    )


def upscale(image: RGB8, *, scale: int, kernel: Enlargement = "bicubic") -> RGB8:
    """An image [h w 3] enlarged without learning: bicubic is what every model must beat.

    `lanczos` has three lobes; `nearest` repeats pixels.
    """
    if kernel == "nearest":
        return np.ascontiguousarray(image.repeat(scale, 0).repeat(scale, 1))
    return _resize_pillow(
        image,
        height=image.shape[0] * scale,
        width=image.shape[1] * scale,
        by=Image.Resampling.BICUBIC if kernel == "bicubic" else Image.Resampling.LANCZOS,
    )


def crop_to_multiple(image: RGB8, *, scale: int) -> RGB8:
    """Cut the right and bottom edge so that both sides are multiples of the scale."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def describe_implementation(kernel: Kernel = "pillow") -> tuple[str, str]:
    """Return name and version of the PIL that downscales; PILs differ by ±1 in rare values."""
    if kernel == "matlab":
        return "imresize", "R2015b"
    version = str(PIL.__version__)
    return ("pillow-simd" if ".post" in version else "pillow", version)


def _resize_pillow(image: RGB8, *, height: int, width: int, by: Image.Resampling) -> RGB8:
    """PIL holds RGB in four bytes a pixel: given as such it resizes without a copy of its own."""
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    given = Image.frombuffer("RGBX", (image.shape[1], image.shape[0]), padded, "raw", "RGBX", 0, 1)
    made = np.asarray(given.resize((width, height), by))
    return np.asarray(cv2.cvtColor(made, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def _shrink_rows(image: RGB8, scale: int) -> RGB8:
    """x1/scale along the first axis, rounded to 8 bits; in strips, as it takes 12 times their memory."""
    made = np.empty((image.shape[0] // scale, *image.shape[1:]), np.uint8)
    for start in range(0, image.shape[1], _STRIP_ROWS):
        strip = slice(start, start + _STRIP_ROWS)
        made[:, strip] = _shrink_strip(image[:, strip], scale)
    return made


def _shrink_strip(image: RGB8, scale: int) -> RGB8:
    first, weights = _filter_taps(scale)
    count = image.shape[0] // scale
    after = first + len(weights) + scale * (count - 1) - image.shape[0]
    padded = np.pad(image, ((-first, max(after, 0)), (0, 0), (0, 0)), mode="symmetric")
    total = np.zeros((count, *image.shape[1:]))
    for tap in range(len(weights) // 2):
        # the filter is symmetric: two pixels share a weight, and their sum is exact
        near = padded[tap::scale][:count].astype(np.uint16)
        near += padded[len(weights) - 1 - tap :: scale][:count]
        total += weights[tap] * near
    if len(weights) % 2:
        middle = len(weights) // 2
        total += weights[middle] * padded[middle::scale][:count]
    return np.floor(total + 0.5).clip(0, 255).astype(np.uint8)


@lru_cache
def _filter_taps(scale: int) -> tuple[int, npt.NDArray[np.float64]]:
    """Where the first output pixel begins to read, and its weights; the others are shifted copies."""
    centre = scale / 2 - 0.5
    reach = np.arange(int(np.floor(centre - 2 * scale)), int(np.ceil(centre + 2 * scale)) + 1)
    distance = np.abs(reach - centre) / scale
    cubic = np.where(
        distance <= 1,
        1.5 * distance**3 - 2.5 * distance**2 + 1,
        np.where(distance < 2, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2, 0.0),
    )
    used = cubic != 0
    # a zero between the two lobes is a tap, too
    start, stop = int(np.argmax(used)), len(used) - int(np.argmax(used[::-1]))
    return int(reach[start]), cubic[start:stop] / cubic[start:stop].sum()
