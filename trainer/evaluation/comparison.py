"""Strips: one test picture as everything in the table made it, side by side, with error maps below.

    LR      bicubic   a model   …   HR
    (how)   error     error     …   scale of the error

The middle of a large picture is shown. An error map is the absolute difference of luma, on one
scale in all strips: black is none, the brightest colour `ERROR_LEVELS` grey levels or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from shards.format import png
from shards.format.png import RGB8
from shards.images import resize
from shards.io import atomic
from trainer.evaluation.metrics import luma
from trainer.evaluation.test_sets import ImagePair

SIDE = 384
"""A strip shows at most so many pixels of a picture's side, around its middle."""
GAP = 8
CAPTION = 40
"""Height of the two lines above each picture."""
ERROR_LEVELS = 32
"""Difference of luma, in grey levels of 255, that an error map shows brightest."""
_INK = (32, 32, 32)


class SheetColumn(NamedTuple):
    """What one row of the table made of a picture."""

    name: str
    pixels: RGB8
    score: str


def write_comparison_sheet(path: Path, picture: ImagePair, shown: Sequence[SheetColumn]) -> None:
    """Write the strip of one picture as PNG."""
    atomic.make_folder(path.parent)
    atomic.write_file(path, png.encode_rgb(strip(picture, shown)))


def strip(picture: ImagePair, shown: Sequence[SheetColumn]) -> RGB8:
    """The strip of one picture: 2 + len(shown) columns (`tiles_of` takes them apart again)."""
    hr = _middle(picture.hr)
    scale = picture.hr.shape[0] // picture.lr.shape[0]
    lr = _middle(resize.upscale(picture.lr, scale=scale, kernel="nearest"))
    columns = [_column(_captioned(lr, "LR", f"pixels x{scale}"), np.full_like(hr, 255))]
    for each in shown:
        sr = _middle(each.pixels)
        columns.append(_column(_captioned(sr, each.name, each.score), error_map(sr, hr)))
    columns.append(_column(_captioned(hr, "HR", "the truth"), _legend(hr.shape[0], hr.shape[1])))
    gap = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for column in columns for part in (gap, column)]
    return np.ascontiguousarray(np.concatenate(parts[1:], axis=1))


def tiles_of(picture: RGB8, *, columns: int) -> list[RGB8]:
    """The pictures of a strip's upper row: LR, what each row of the table made, HR.

    An empty list for a picture that is no strip of so many columns.
    """
    width, wide = divmod(picture.shape[1] + GAP, columns)
    height, high = divmod(picture.shape[0] - CAPTION - GAP, 2)
    if wide or high or width <= GAP or height <= 0:
        return []
    return [
        picture[CAPTION : CAPTION + height, at * width : (at + 1) * width - GAP]
        for at in range(columns)
    ]


def error_map(sr: RGB8, hr: RGB8) -> RGB8:
    """Absolute difference of luma as colours from black to yellow."""
    levels = np.abs(luma(sr) - luma(hr)) / ERROR_LEVELS
    return _colours((levels * 255).clip(0, 255).astype(np.uint8))


def _middle(image: RGB8) -> RGB8:
    height, width = image.shape[:2]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    return image[top : top + SIDE, left : left + SIDE]


def _column(upper: RGB8, lower: RGB8) -> RGB8:
    gap = np.full((GAP, upper.shape[1], 3), 255, np.uint8)
    return np.concatenate((upper, gap, lower))


def _captioned(image: RGB8, first: str, second: str) -> RGB8:
    band = np.full((CAPTION, image.shape[1], 3), 255, np.uint8)
    _write(band, first, y=15)
    _write(band, second, y=33)
    return np.concatenate((band, image))


def _legend(height: int, width: int) -> RGB8:
    """The scale of the error maps: a bar of colours and what its ends mean."""
    tile = np.full((height, width, 3), 255, np.uint8)
    bar = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(min(16, height), 0)
    tile[: len(bar)] = _colours(bar)
    for line, text in enumerate(
        (f"0 to {ERROR_LEVELS} or more", "error of luma,", "grey levels of 255")
    ):
        _write(tile, text, y=len(bar) + 18 * (line + 1))
    return tile


def _colours(values: RGB8) -> RGB8:
    return np.ascontiguousarray(cv2.applyColorMap(values, cv2.COLORMAP_INFERNO)[..., ::-1])


def _write(canvas: RGB8, text: str, *, y: int) -> None:
    """Text with its foot at `y`, smaller where the canvas is narrow, cut at its end."""
    plain = text.encode("ascii", "replace").decode()
    (width, _), _ = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    size = 0.45 * min(1, max(0.6, (canvas.shape[1] - 2) / max(width, 1)))
    cv2.putText(canvas, plain, (1, y), cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)
