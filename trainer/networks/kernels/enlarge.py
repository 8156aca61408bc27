"""Bilinear enlargement to twice the sides, as torch has it with align_corners off, and its gradient.

Between two pixels, outputs lie a quarter of the way from each; beyond the border the outermost pixel goes on.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    source,
    target,
    pixels,
    height,
    width,
    CHANNELS: tl.constexpr,
    EACH: tl.constexpr,
):
    """The four outputs of each of EACH pixels."""
    pixel = tl.program_id(0).to(tl.int64) * EACH + tl.arange(0, EACH)
    there = (pixel < pixels)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    column = pixel % width
    row = pixel // width % height
    left = pixel - (column > 0)
    right = pixel + (column < width - 1)
    up = -width * (row > 0)
    down = width * (row < height - 1)
    for vertical in tl.static_range(2):
        away = up if vertical == 0 else down
        near_left = 0.75 * _at(source, left, channel, there, CHANNELS)
        near_left += 0.25 * _at(source, left + away, channel, there, CHANNELS)
        near = 0.75 * _at(source, pixel, channel, there, CHANNELS)
        near += 0.25 * _at(source, pixel + away, channel, there, CHANNELS)
        near_right = 0.75 * _at(source, right, channel, there, CHANNELS)
        near_right += 0.25 * _at(source, right + away, channel, there, CHANNELS)
        place = (pixel // width * 2 + vertical) * width * 2 + column * 2
        to = target + place[:, None] * CHANNELS + channel
        kind = target.dtype.element_ty
        tl.store(to, (0.25 * near_left + 0.75 * near).to(kind), mask=there)
        tl.store(to + CHANNELS, (0.75 * near + 0.25 * near_right).to(kind), mask=there)


@triton.jit
def backward(
    gradient,
    target,
    pixels,
    height,
    width,
    CHANNELS: tl.constexpr,
    EACH: tl.constexpr,
):
    """What each of EACH pixels gave to the sixteen outputs around it."""
    pixel = tl.program_id(0).to(tl.int64) * EACH + tl.arange(0, EACH)
    there = pixel < pixels
    channel = tl.arange(0, CHANNELS)[None, :]
    column = pixel % width
    row = pixel // width % height
    first = (pixel // width * 2) * width * 2 + column * 2
    total = tl.zeros((EACH, CHANNELS), tl.float32)
    for vertical in tl.static_range(-1, 3):
        weight = _share(row, height, vertical)
        for horizontal in tl.static_range(-1, 3):
            share = weight * _share(column, width, horizontal)
            place = first + vertical * width * 2 + horizontal
            at = gradient + place[:, None] * CHANNELS + channel
            value = tl.load(at, mask=(there & (share > 0))[:, None], other=0.0)
            total += share[:, None] * value.to(tl.float32)
    to = target + pixel[:, None] * CHANNELS + channel
    tl.store(to, total.to(target.dtype.element_ty), mask=there[:, None])


@triton.jit
def _at(source, pixel, channel, there, CHANNELS: tl.constexpr):
    return tl.load(source + pixel[:, None] * CHANNELS + channel, mask=there, other=0.0).to(
        tl.float32
    )


@triton.jit
def _share(place, size, STEP: tl.constexpr):
    """Of a pixel in the output STEP behind its first one, along one side."""
    if STEP == -1:
        return tl.where(place > 0, 0.25, 0.0)
    if STEP == 0:
        return tl.where(place > 0, 0.75, 1.0)
    if STEP == 1:
        return tl.where(place < size - 1, 0.75, 1.0)
    return tl.where(place < size - 1, 0.25, 0.0)
