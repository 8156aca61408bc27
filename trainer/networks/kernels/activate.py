"""Triton kernels of what follows a convolution: bias, LeakyReLU and the order of sub-pixel convolution, in one pass.

Pictures are channels last. With FACTOR a pixel of FACTOR^2 * CHANNELS becomes a square of FACTOR by FACTOR pixels of
CHANNELS: its channels are those of the square's first pixel, then of the one right of it, and so on by rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places(pixel, height, width, FACTOR: tl.constexpr, PHASE: tl.constexpr):
    """Where one pixel of a square lies in the larger picture."""
    if FACTOR == 1:
        return pixel
    column = pixel % width
    row = pixel // width  # of all pictures, which lie one below the other
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
    EACH: tl.constexpr,
):
    """Bias and LeakyReLU of EACH pixels."""
    pixel = tl.program_id(0).to(tl.int64) * EACH + tl.arange(0, EACH)
    there = (pixel < pixels)[:, None]
    channel = tl.arange(0, CHANNELS)
    for phase in tl.static_range(FACTOR * FACTOR):
        at = pixel * (FACTOR * FACTOR * CHANNELS) + phase * CHANNELS
        value = tl.load(source + at[:, None] + channel[None, :], mask=there, other=0.0)
        value = value.to(tl.float32) + tl.load(bias + phase * CHANNELS + channel)[None, :]
        value = tl.where(value > 0, value, 0.0 if SLOPE == 0 else SLOPE * value)
        place = _places(pixel, height, width, FACTOR, phase) * CHANNELS
        to = target + place[:, None] + channel[None, :]
        tl.store(to, value.to(target.dtype.element_ty), mask=there)


@triton.jit
def backward(
    gradient,
    seen,
    target,
    sums,
    pixels,
    height,
    width,
    FACTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    SUMS: tl.constexpr,
    EACH: tl.constexpr,
):
    """The gradient of what came out of the convolution, and with SUMS its sums over EACH pixels."""
    pixel = tl.program_id(0).to(tl.int64) * EACH + tl.arange(0, EACH)
    there = (pixel < pixels)[:, None]
    channel = tl.arange(0, CHANNELS)
    for phase in tl.static_range(FACTOR * FACTOR):
        place = _places(pixel, height, width, FACTOR, phase) * CHANNELS
        place = place[:, None] + channel[None, :]
        value = tl.load(gradient + place, mask=there, other=0.0).to(tl.float32)
        below = 0.0 if SLOPE == 0 else SLOPE * value  # an infinite one must not become NaN
        value = tl.where(tl.load(seen + place, mask=there, other=0.0) > 0, value, below)
        at = pixel * (FACTOR * FACTOR * CHANNELS) + phase * CHANNELS
        to = target + at[:, None] + channel[None, :]
        tl.store(to, value.to(target.dtype.element_ty), mask=there)
        if SUMS:
            to_sums = sums + (tl.program_id(0) * FACTOR * FACTOR + phase) * CHANNELS + channel
            tl.store(to_sums, tl.sum(value, 0))
