"""Bias, LeakyReLU and pixel shuffle behind a convolution in one pass.

Maps are channels last. With FACTOR a pixel of FACTOR^2 * CHANNELS becomes a square of FACTOR by FACTOR pixels of
CHANNELS: its channels are those of the square's first pixel, then of the one right of it, and so on by rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _output_pixel(pixel, height, width, FACTOR: tl.constexpr, PHASE: tl.constexpr):
    """Index of pixel PHASE of a square in the enlarged map."""
    if FACTOR == 1:
        return pixel
    column = pixel % width
    row = pixel // width  # over all images, which lie one below the other
    return (row * FACTOR + PHASE // FACTOR) * width * FACTOR + column * FACTOR + PHASE % FACTOR


@triton.jit
def forward(
    source,
    bias,
    target,
    pixels,
    height,
    width,
    FACTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Bias and LeakyReLU of PIXELS pixels."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < pixels)[:, None]
    channel = tl.arange(0, CHANNELS)
    for phase in tl.static_range(FACTOR * FACTOR):
        at = pixel * (FACTOR * FACTOR * CHANNELS) + phase * CHANNELS
        value = tl.load(source + at[:, None] + channel[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32) + tl.load(bias + phase * CHANNELS + channel)[None, :]
        value = tl.where(value > 0, value, 0.0 if SLOPE == 0 else SLOPE * value)
        place = _output_pixel(pixel, height, width, FACTOR, phase) * CHANNELS
        to = target + place[:, None] + channel[None, :]
        tl.store(to, value.to(target.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    gradient,
    output,
    target,
    sums,
    pixels,
    height,
    width,
    FACTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    SUMS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """The gradient of the convolution's output, and with SUMS its sums over PIXELS pixels."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < pixels)[:, None]
    channel = tl.arange(0, CHANNELS)
    for phase in tl.static_range(FACTOR * FACTOR):
        place = _output_pixel(pixel, height, width, FACTOR, phase) * CHANNELS
        place = place[:, None] + channel[None, :]
        value = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        below = 0.0 if SLOPE == 0 else SLOPE * value  # 0 times infinity would be NaN
        value = tl.where(tl.load(output + place, mask=inside, other=0.0) > 0, value, below)
        at = pixel * (FACTOR * FACTOR * CHANNELS) + phase * CHANNELS
        to = target + at[:, None] + channel[None, :]
        tl.store(to, value.to(target.dtype.element_ty), mask=inside)
        if SUMS:
            to_sums = sums + (tl.program_id(0) * FACTOR * FACTOR + phase) * CHANNELS + channel
            tl.store(to_sums, tl.sum(value, 0))
