"""Pictures of the report page: held-out patches and photos under a slider."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from shards.errors import DamagedData
from shards.format import png
from shards.format.png import RGB8
from trainer.evaluation.comparison import split_comparison_sheet
from trainer.reporting.page_tables import read_evaluation

PHOTOS = 4
"""Largest number of photos on the page; the others stay in `strips/`."""


class Picture(NamedTuple):
    """An image inside the page."""

    name: str
    uri: str


class Comparison(NamedTuple):
    """Two images of one size under a slider, and the true image beside them."""

    before: Picture
    after: Picture
    truth: Picture
    caption: str


def show_photos(run: Path) -> tuple[list[Comparison | Picture], int]:
    """Return the first comparison sheets, and the number of the others.

    A sheet becomes a slider from bicubic to the last model where the evaluation scored that photo.
    """
    paths = sorted((run / "strips").glob("*.png"))
    rows = read_evaluation(run).get("rows", [])
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    scored = {f"{row['set']}-{image['image']}" for row in rows for image in row["per_image"]}
    photos: list[Comparison | Picture] = []
    for path in paths[:PHOTOS]:
        sheet = _decode_png(path)
        if sheet is None:
            continue
        tiles = split_comparison_sheet(sheet, columns=len(models) + 2)
        if len(models) > 1 and tiles and path.stem in scored:
            _, first, *_, last, truth = tiles
            photos.append(
                _compare((models[0], first), (models[-1], last), ("HR", truth), path.stem)
            )
        else:
            photos.append(_embed(path.stem, sheet))
    return photos, max(len(paths) - PHOTOS, 0) if photos else 0


def show_samples(run: Path, stage: str) -> Comparison | None:
    """Return the newest held-out patches: bicubic, generator and truth."""
    paths = sorted((run / "samples").glob(f"{stage}-*.png"))
    sheet = _decode_png(paths[-1]) if paths else None
    if sheet is None or sheet.shape[1] % 3:
        return None
    side = sheet.shape[1] // 3
    bicubic, ours, truth = (
        _fold_column(sheet[:, index * side : (index + 1) * side]) for index in range(3)
    )
    patches = paths[-1].stem.partition("-")[2]
    when = f" after {int(patches):,} patches of stage {stage}" if patches.isdecimal() else ""
    caption = f"Held-out patches{when}; drag the line."
    return _compare(("bicubic", bicubic), (f"stage {stage}", ours), ("HR", truth), caption)


def _compare(
    before: tuple[str, RGB8], after: tuple[str, RGB8], truth: tuple[str, RGB8], caption: str
) -> Comparison:
    return Comparison(_embed(*before), _embed(*after), _embed(*truth), caption)


def _embed(name: str, pixels: RGB8) -> Picture:
    """Return an image as a lossless data URI."""
    bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
    written, content = cv2.imencode(".webp", bgr, lossless)
    assert written
    return Picture(name, f"data:image/webp;base64,{base64.b64encode(content.tobytes()).decode()}")


def _fold_column(column: RGB8) -> RGB8:
    """Return a column of square patches as two columns, where their number is even."""
    half, odd = divmod(column.shape[0], 2)
    if odd or half % column.shape[1]:
        return column
    return np.concatenate((column[:half], column[half:]), axis=1)


def _decode_png(path: Path) -> RGB8 | None:
    with contextlib.suppress(OSError, DamagedData):
        return png.decode_rgb(path.read_bytes())
    return None
