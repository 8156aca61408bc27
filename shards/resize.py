"""Antialiased bicubic resizing of 8-bit images by PIL (pillow-simd or Pillow): the maker of LR.

PIL's filter is Keys' cubic with a = -0.5, stretched by the scale (that is the antialiasing), with
8-bit rounding after each axis pass. OpenCV's INTER_CUBIC has no antialiasing and is never used here.
"""

from __future__ import annotations

import numpy as np
import PIL
from PIL import Image

from shards.png import RGB8


def downscale(image: RGB8, *, scale: int) -> RGB8:
    """Antialiased bicubic x1/scale of an image [h w 3] whose sides are multiples of the scale."""
    height, width = image.shape[:2]
    assert height % scale == 0, (image.shape, scale)
    assert width % scale == 0, (image.shape, scale)
    return _bicubic(image, height=height // scale, width=width // scale)


def upscale(image: RGB8, *, scale: int) -> RGB8:
    """Bicubic x scale of an image [h w 3]: the baseline that every model must beat."""
    return _bicubic(image, height=image.shape[0] * scale, width=image.shape[1] * scale)


def crop_to_multiple(image: RGB8, *, scale: int) -> RGB8:
    """Cut the right and bottom edge so that both sides are multiples of the scale."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def implementation() -> tuple[str, str]:
    """Which PIL resizes here, by name and version; results differ by ±1 in rare values."""
    version = str(PIL.__version__)
    return ("pillow-simd" if ".post" in version else "pillow", version)


def _bicubic(image: RGB8, *, height: int, width: int) -> RGB8:
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)
