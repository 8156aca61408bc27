"""Antialiased bicubic resizing of 8-bit images, which makes LR: one filter, two implementations.

Both use Keys' cubic with a = -0.5, stretched by the scale for antialiasing, and round to 8 bits after each
axis. `pillow` is the fast one, of pillow-simd or Pillow. `matlab` equals `imresize` of MATLAB R2015b and
later bit for bit: symmetric border, rows before columns, halves rounded up. They differ by about one
level in every sixth value. OpenCV's INTER_CUBIC has no antialiasing; do not use it here.
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
_STRIP_COLUMNS = 128
"""Columns of pixels downscaled at a time."""


def downscale(image: RGB8, *, scale: int, kernel: Kernel = "pillow") -> RGB8:
    """Downscale an image [h w 3], whose sides are multiples of the scale, by antialiased bicubic."""
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
    """Enlarge an image [h w 3] by interpolation; bicubic is the baseline of every model.

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
    """Crop the right and bottom edges to multiples of the scale."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def describe_implementation(kernel: Kernel = "pillow") -> tuple[str, str]:
    """Return name and version of the implementation; versions differ by ±1 in rare values."""
    if kernel == "matlab":
        return "imresize", "R2015b"
    version = str(PIL.__version__)
    return ("pillow-simd" if ".post" in version else "pillow", version)


def _resize_pillow(image: RGB8, *, height: int, width: int, by: Image.Resampling) -> RGB8:
    """Resize with PIL, which stores RGB in four bytes per pixel; passing RGBX avoids its copy."""
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    source = Image.frombuffer("RGBX", (image.shape[1], image.shape[0]), padded, "raw", "RGBX", 0, 1)
    resized = np.asarray(source.resize((width, height), by))
    return np.asarray(cv2.cvtColor(resized, cv2.COLOR_RGBA2RGB), dtype=np.uint8)


def _shrink_rows(image: RGB8, scale: int) -> RGB8:
    """Downscale the first axis, rounded to 8 bits; in strips, because it needs 12 times their memory."""
    result = np.empty((image.shape[0] // scale, *image.shape[1:]), np.uint8)
    for start in range(0, image.shape[1], _STRIP_COLUMNS):
        strip = slice(start, start + _STRIP_COLUMNS)
        result[:, strip] = _shrink_strip(image[:, strip], scale)
    return result


def _shrink_strip(image: RGB8, scale: int) -> RGB8:
    first, weights = _filter_taps(scale)
    count = image.shape[0] // scale
    after = first + len(weights) + scale * (count - 1) - image.shape[0]
    padded = np.pad(image, ((-first, max(after, 0)), (0, 0), (0, 0)), mode="symmetric")
    total = np.zeros((count, *image.shape[1:]))
    for tap in range(len(weights) // 2):
        # the filter is symmetric: two pixels share a weight, and their integer sum is exact
        both = padded[tap::scale][:count].astype(np.uint16)
        both += padded[len(weights) - 1 - tap :: scale][:count]
        total += weights[tap] * both
    if len(weights) % 2:
        middle = len(weights) // 2
        total += weights[middle] * padded[middle::scale][:count]
    return np.floor(total + 0.5).clip(0, 255).astype(np.uint8)


@lru_cache
def _filter_taps(scale: int) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the offset of the first tap of output pixel 0, and the weights, equal for every output pixel."""
    centre = scale / 2 - 0.5
    reach = np.arange(int(np.floor(centre - 2 * scale)), int(np.ceil(centre + 2 * scale)) + 1)
    distance = np.abs(reach - centre) / scale
    cubic = np.where(
        distance <= 1,
        1.5 * distance**3 - 2.5 * distance**2 + 1,
        np.where(distance < 2, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2, 0.0),
    )
    used = cubic != 0
    # keep zeros between the two lobes as taps
    start, stop = int(np.argmax(used)), len(used) - int(np.argmax(used[::-1]))
    return int(reach[start]), cubic[start:stop] / cubic[start:stop].sum()
