"""Tiled inference: images of any size in bounded memory, without seams.

Neighbouring tiles overlap. The outer thirds of an overlap are discarded, because a tile lacks context
there; in the middle third the two tiles are blended linearly. If a third is at least as wide as the
radius of the receptive field, the result equals one pass over the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shards.errors import UsrganError
from shards.format.png import RGB8
from trainer.device import full_float32

SMALLEST_TILE = 16
"""Smallest side of a tile after halving, in LR pixels."""
TileCallback = Callable[[int, int], None]
"""`on_tile(done, total)`: progress in tiles of one image."""


class Span(NamedTuple):
    """Extent [start, stop) of a tile along one axis, in LR pixels."""

    start: int
    stop: int


def split_axis(length: int, *, tile: int, overlap: int) -> list[Span]:
    """Return evenly spaced tiles of one size that cover an axis; a short axis is one tile.

    Args:
        length: length of the axis, in LR pixels.
        tile: side of a tile, in LR pixels.
        overlap: smallest overlap of neighbours, in LR pixels, at most a quarter of a tile.
    """
    assert 0 <= 4 * overlap <= tile, (tile, overlap)
    if length <= tile:
        return [Span(0, length)]
    gaps = -(-(length - tile) // (tile - overlap))
    starts = [number * (length - tile) // gaps for number in range(gaps + 1)]
    return [Span(start, start + tile) for start in starts]


def blend_weights(axis: list[Span], number: int, *, scale: int) -> npt.NDArray[np.float32]:
    """Return the weight of each SR pixel of a tile along an axis; the weights of all tiles add up to 1."""
    span = axis[number]
    centres = np.arange(span.start * scale, span.stop * scale, dtype=np.float64) + 0.5
    weights = np.ones(len(centres), np.float32)
    if number > 0:
        fade_in = _ramp(centres, span.start, axis[number - 1].stop, scale)
        weights = np.minimum(weights, fade_in)
    if number + 1 < len(axis):
        fade_out = 1 - _ramp(centres, axis[number + 1].start, span.stop, scale)
        weights = np.minimum(weights, fade_out)
    return weights


def upscale_tiled(
    module: nn.Module,
    pixels: RGB8,
    *,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device,
    on_tile: TileCallback = lambda _done, _total: None,
) -> RGB8:
    """Return the upscaled image [h*scale w*scale 3] of an image [h w 3], both RGB.

    Args:
        module: generator in evaluation mode on `device`, from RGB in [0, 1] to RGB in [0, 1].
        pixels: image to upscale.
        scale: scale of the generator.
        tile: side of a tile, in LR pixels; halved until a tile fits into the memory of the device.
        overlap: overlap of neighbouring tiles, in LR pixels.
        device: device of the generator.
        on_tile: called after each tile; starts again at 1 after tiles were halved.

    Raises:
        UsrganError: the smallest tile does not fit into memory.
    """
    while True:
        try:
            return _blend_tiles(module, pixels, scale, tile, overlap, device, on_tile)
        except torch.OutOfMemoryError:
            if tile // 2 < SMALLEST_TILE:
                raise UsrganError(
                    f"a tile of {tile}x{tile} pixels does not fit into the device's memory; use --device cpu"
                ) from None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tile //= 2
        overlap = min(overlap, tile // 4)


def _blend_tiles(
    module: nn.Module,
    pixels: RGB8,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device,
    on_tile: TileCallback,
) -> RGB8:
    height, width = pixels.shape[:2]
    result = np.empty((height * scale, width * scale, 3), np.uint8)
    rows, columns = (split_axis(side, tile=tile, overlap=overlap) for side in (height, width))
    unfinished = np.zeros((0, width * scale, 3), np.float32)
    for row_number, row in enumerate(rows):
        # start from the lines that the tiles above have not finished
        top = row.start * scale
        total = np.zeros(((row.stop - row.start) * scale, width * scale, 3), np.float32)
        total[: len(unfinished)] = unfinished
        # add the weighted tiles of this row
        row_weights = blend_weights(rows, row_number, scale=scale)[:, None, None]
        for column_number, sr in _upscale_row(module, pixels, row, columns, scale, device):
            column_weights = blend_weights(columns, column_number, scale=scale)[None, :, None]
            left = columns[column_number].start * scale
            total[:, left : left + sr.shape[1]] += sr * row_weights * column_weights
            on_tile(row_number * len(columns) + column_number + 1, len(rows) * len(columns))
        # round the lines that no further tile overlaps
        last = row_number + 1 == len(rows)
        finished = len(total) if last else (rows[row_number + 1].start - row.start) * scale
        result[top : top + finished] = np.rint(total[:finished].clip(0, 255))
        unfinished = total[finished:]
    return result


@torch.inference_mode()
def _upscale_row(
    module: nn.Module,
    pixels: RGB8,
    row: Span,
    columns: list[Span],
    scale: int,
    device: torch.device,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield number and SR pixels [h w 3] in 0..255 of each tile of a row."""
    for number, column in enumerate(columns):
        patch = pixels[row.start : row.stop, column.start : column.stop].copy()
        # HWC => NCHW
        lr = torch.from_numpy(patch).to(device).permute(2, 0, 1)[None].float().div(255)
        lr = lr.contiguous(memory_format=torch.channels_last)
        with full_float32():
            sr = module(lr)[0]
        yield number, sr.float().clamp(0, 1).mul(255).permute(1, 2, 0).cpu().numpy()


def _ramp(
    centres: npt.NDArray[np.float64], start: int, stop: int, scale: int
) -> npt.NDArray[np.float32]:
    """Return weights that rise from 0 to 1 over the middle third of the overlap [start, stop) in LR pixels."""
    low, high = start * scale, stop * scale
    third = (high - low) / 3
    return np.clip((centres - low - third) / max(third, 1e-6), 0, 1).astype(np.float32)
