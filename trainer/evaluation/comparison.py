"""Comparison sheets: LR, the result of every table row and HR of one test image, with error maps below.

    LR      bicubic   a model   …   HR
    (how)   error     error     …   colour scale of the error

A large image is cropped to its centre. An error map is the absolute difference of luma, with one
colour scale for all sheets: black is 0, the brightest colour `ERROR_LEVELS` grey levels or more.
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

MAX_SIDE = 384
"""Side of the centre crop of a large image, in pixels."""
GAP = 8
"""Distance between tiles, in pixels."""
CAPTION_HEIGHT = 40
"""Height of the two text lines above each image, in pixels."""
ERROR_LEVELS = 32
"""Difference of luma that has the brightest colour, in grey levels of 255."""
_INK = (32, 32, 32)


class SheetColumn(NamedTuple):
    """SR image of one table row, with its caption."""

    name: str
    pixels: RGB8
    score: str


def write_comparison_sheet(path: Path, pair: ImagePair, columns: Sequence[SheetColumn]) -> None:
    """Write the comparison sheet of one test image as PNG."""
    atomic.make_folder(path.parent)
    atomic.write_file(path, png.encode_rgb(build_comparison_sheet(pair, columns)))


def build_comparison_sheet(pair: ImagePair, columns: Sequence[SheetColumn]) -> RGB8:
    """Return a sheet of 2 + len(columns) columns, which `split_comparison_sheet` can split again."""
    hr = _crop_centre(pair.hr)
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    lr = _crop_centre(resize.upscale(pair.lr, scale=scale, kernel="nearest"))
    tiles = [_stack_tiles(_add_caption(lr, "LR", f"pixels x{scale}"), np.full_like(hr, 255))]
    for column in columns:
        sr = _crop_centre(column.pixels)
        captioned = _add_caption(sr, column.name, column.score)
        tiles.append(_stack_tiles(captioned, draw_error_map(sr, hr)))
    colour_scale = _draw_colour_scale(hr.shape[0], hr.shape[1])
    tiles.append(_stack_tiles(_add_caption(hr, "HR", "ground truth"), colour_scale))
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for tile in tiles for part in (gap, tile)]
    return np.ascontiguousarray(np.concatenate(parts[1:], axis=1))


def split_comparison_sheet(sheet: RGB8, *, columns: int) -> list[RGB8]:
    """Return the upper images of a sheet: LR, the result of each table row, HR.

    The list is empty if the image is not a sheet of `columns` columns.
    """
    width, extra_columns = divmod(sheet.shape[1] + GAP, columns)
    height, extra_rows = divmod(sheet.shape[0] - CAPTION_HEIGHT - GAP, 2)
    if extra_columns or extra_rows or width <= GAP or height <= 0:
        return []
    return [
        sheet[CAPTION_HEIGHT : CAPTION_HEIGHT + height, at * width : (at + 1) * width - GAP]
        for at in range(columns)
    ]


def draw_error_map(sr: RGB8, hr: RGB8) -> RGB8:
    """Return the absolute difference of luma as colours from black to yellow."""
    levels = np.abs(luma(sr) - luma(hr)) / ERROR_LEVELS
    return _apply_colours((levels * 255).clip(0, 255).astype(np.uint8))


def _crop_centre(image: RGB8) -> RGB8:
    height, width = image.shape[:2]
    top, left = max(0, (height - MAX_SIDE) // 2), max(0, (width - MAX_SIDE) // 2)
    return image[top : top + MAX_SIDE, left : left + MAX_SIDE]


def _stack_tiles(upper: RGB8, lower: RGB8) -> RGB8:
    gap = np.full((GAP, upper.shape[1], 3), 255, np.uint8)
    return np.concatenate((upper, gap, lower))


def _add_caption(image: RGB8, first: str, second: str) -> RGB8:
    band = np.full((CAPTION_HEIGHT, image.shape[1], 3), 255, np.uint8)
    _write_text(band, first, y=15)
    _write_text(band, second, y=33)
    return np.concatenate((band, image))


def _draw_colour_scale(height: int, width: int) -> RGB8:
    """Return a tile with the colour scale of the error maps and its unit."""
    tile = np.full((height, width, 3), 255, np.uint8)
    bar = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(min(16, height), 0)
    tile[: len(bar)] = _apply_colours(bar)
    for line, text in enumerate(
        (f"0 to {ERROR_LEVELS} or more", "error of luma,", "grey levels of 255")
    ):
        _write_text(tile, text, y=len(bar) + 18 * (line + 1))
    return tile


def _apply_colours(values: RGB8) -> RGB8:
    return np.ascontiguousarray(cv2.applyColorMap(values, cv2.COLORMAP_INFERNO)[..., ::-1])


def _write_text(canvas: RGB8, text: str, *, y: int) -> None:
    """Write text with its baseline at `y`, smaller on a narrow canvas; longer text is cut."""
    plain = text.encode("ascii", "replace").decode()
    (width, _), _ = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    size = 0.45 * min(1, max(0.6, (canvas.shape[1] - 2) / max(width, 1)))
    cv2.putText(canvas, plain, (1, y), cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)
