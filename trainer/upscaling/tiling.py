"""Whole pictures through a generator in tiles: any size, bounded memory, no seams.

Neighbouring tiles overlap. The outer thirds of an overlap are left out, because there a tile lacks
its surroundings, and in the middle third one tile fades into the other. So a third as wide as the
network looks makes the result equal to one pass over the whole picture.
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
Tiled = Callable[[int, int], None]
"""`tiled(done, total)`: so many tiles of a picture are done."""


class Span(NamedTuple):
    """One tile along one axis, LR pixels: read [start, stop), faded over the overlaps."""

    start: int
    stop: int


def spans(length: int, *, tile: int, overlap: int) -> list[Span]:
    """Tiles of one size along an axis, evenly spread; a short axis is one tile.

    Neighbours share at least `overlap` pixels.
    """
    assert 0 <= 4 * overlap <= tile, (tile, overlap)
    if length <= tile:
        return [Span(0, length)]
    gaps = -(-(length - tile) // (tile - overlap))
    starts = [number * (length - tile) // gaps for number in range(gaps + 1)]
    return [Span(start, start + tile) for start in starts]


def weights(axis: list[Span], number: int, *, scale: int) -> npt.NDArray[np.float32]:
    """How much each SR pixel of a tile counts along an axis; all tiles together make one everywhere."""
    here = axis[number]
    at = np.arange(here.start * scale, here.stop * scale, dtype=np.float64) + 0.5
    rise = np.ones(len(at), np.float32)
    if number > 0:
        rise = np.minimum(rise, _ramp(at, here.start, axis[number - 1].stop, scale))
    if number + 1 < len(axis):
        rise = np.minimum(rise, 1 - _ramp(at, axis[number + 1].start, here.stop, scale))
    return rise


def upscale_tiled(
    module: nn.Module,
    pixels: RGB8,
    *,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device,
    tiled: Tiled = lambda _done, _total: None,
) -> RGB8:
    """Upscale a picture [h w 3] to [h*scale w*scale 3].

    Args:
        module: generator in evaluation mode on `device`, [0, 1] RGB in and out.
        pixels: the picture.
        scale: of the generator.
        tile: side of a tile, LR pixels; halved where the device's memory does not suffice.
        overlap: LR pixels that neighbouring tiles share.
        device: where to compute.
        tiled: called after each tile; from the first again where tiles were halved.

    Raises:
        UsrganError: even the smallest tile does not fit into memory.
    """
    while True:
        try:
            return _upscale(module, pixels, scale, tile, overlap, device, tiled)
        except torch.OutOfMemoryError:
            if tile // 2 < SMALLEST_TILE:
                raise UsrganError(
                    f"a tile of {tile}x{tile} pixels does not fit into the device's memory; use --device cpu"
                ) from None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tile //= 2
        overlap = min(overlap, tile // 4)


def _upscale(
    module: nn.Module,
    pixels: RGB8,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device,
    tiled: Tiled,
) -> RGB8:
    height, width = pixels.shape[:2]
    result = np.empty((height * scale, width * scale, 3), np.uint8)
    rows, columns = (spans(side, tile=tile, overlap=overlap) for side in (height, width))
    band = np.zeros((0, width * scale, 3), np.float32)
    for number, row in enumerate(rows):
        # the rows of the last band that this one overlaps are still open
        top = row.start * scale
        opened = np.zeros(((row.stop - row.start) * scale, width * scale, 3), np.float32)
        opened[: len(band)] = band
        down = weights(rows, number, scale=scale)[:, None, None]
        for place, sr in _row(module, pixels, row, columns, scale, device):
            across = weights(columns, place, scale=scale)[None, :, None]
            left = columns[place].start * scale
            opened[:, left : left + sr.shape[1]] += sr * down * across
            tiled(number * len(columns) + place + 1, len(rows) * len(columns))
        closed = (
            (rows[number + 1].start - row.start) * scale if number + 1 < len(rows) else len(opened)
        )
        result[top : top + closed] = np.rint(opened[:closed].clip(0, 255))
        band = opened[closed:]
    return result


@torch.inference_mode()
def _row(
    module: nn.Module,
    pixels: RGB8,
    row: Span,
    columns: list[Span],
    scale: int,
    device: torch.device,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The tiles of one row, upscaled, in 0..255."""
    for place, column in enumerate(columns):
        patch = pixels[row.start : row.stop, column.start : column.stop].copy()
        # HWC => NCHW
        lr = torch.from_numpy(patch).to(device).permute(2, 0, 1)[None].float().div(255)
        lr = lr.contiguous(memory_format=torch.channels_last)
        with full_float32():
            sr = module(lr)[0]
        yield place, sr.float().clamp(0, 1).mul(255).permute(1, 2, 0).cpu().numpy()


def _ramp(
    at: npt.NDArray[np.float64], start: int, stop: int, scale: int
) -> npt.NDArray[np.float32]:
    """0 to 1 over the middle third of the SR pixels between two LR edges."""
    low, high = start * scale, stop * scale
    third = (high - low) / 3
    return np.clip((at - low - third) / max(third, 1e-6), 0, 1).astype(np.float32)
