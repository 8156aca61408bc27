"""3x3 convolutions of a part of each pixel's channels into another part, with what comes before and behind them.

A 3x3 convolution reads nine shifted pictures. Here a program reads its pixels three times, shifted by whole rows,
multiplies them with the three taps of that row at once, and shifts the three sums by a column in the end: a third
of the reading, which is what bounds products of 32 columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trainer.networks.kernels.norms import normal_of, store_moments, store_sums


@triton.jit
def _summed(
    source,
    kernels,
    height,
    PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALONG_INPUTS: tl.constexpr,
    ALONG_OUTPUTS: tl.constexpr,
    TAP: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The convolution of a program's PIXELS, whole rows of a picture: float32 [PIXELS OUTPUTS]."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = pixel // WIDTH % height
    channel = tl.arange(0, STEP)
    out = tl.arange(0, OUTPUTS)
    left = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    middle = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    right = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for number in tl.range(0, INPUTS // STEP * 3, num_stages=STAGES):
        down = number % 3 - 1
        inputs = number // 3 * STEP + channel
        there = (row + down >= 0) & (row + down < height)
        at = source + (pixel + down * WIDTH)[:, None] * PITCH + inputs[None, :]
        maps = tl.load(at, mask=there[:, None], other=0.0)
        taps = kernels + (down + 1) * 3 * TAP
        taps = taps + inputs[:, None] * ALONG_INPUTS + out[None, :] * ALONG_OUTPUTS
        left = tl.dot(maps, tl.load(taps), left)
        middle = tl.dot(maps, tl.load(taps + TAP), middle)
        right = tl.dot(maps, tl.load(taps + 2 * TAP), right)
    place = tl.arange(0, PIXELS)
    before = tl.broadcast_to(tl.maximum(place - 1, 0)[:, None], (PIXELS, OUTPUTS))
    after = tl.broadcast_to(tl.minimum(place + 1, PIXELS - 1)[:, None], (PIXELS, OUTPUTS))
    column = pixel % WIDTH
    total = middle + tl.where((column > 0)[:, None], tl.gather(left, before, 0), 0.0)
    return total + tl.where((column < WIDTH - 1)[:, None], tl.gather(right, after, 0), 0.0)


@triton.jit
def forward(
    source,
    kernels,
    bias,
    target,
    first,
    second,
    moments,
    height,
    PITCH: tl.constexpr,
    TARGET_PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALONG_INPUTS: tl.constexpr,
    ALONG_OUTPUTS: tl.constexpr,
    TAP: tl.constexpr,
    RESIDUALS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SLOPE: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A map of a block, through its LeakyReLU; or, with RESIDUALS 1 or 2, what a block or three of them make.

    With NORM it is the map before its normalisation, and its moments.
    """
    total = _summed(
        source, kernels, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        ALONG_INPUTS, ALONG_OUTPUTS, TAP, PIXELS, STEP, STAGES,
    )  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    total += tl.load(bias + out)[None, :]
    if NORM:
        total = total.to(target.dtype.element_ty).to(tl.float32)
        store_moments(moments, total, PITCH, OUTPUTS, PIXELS)
    elif RESIDUALS == 0:
        total = tl.where(total > 0, total, SLOPE * total)
    else:
        at = pixel[:, None] * PITCH + out[None, :]
        total = tl.load(first + at).to(tl.float32) + RESIDUAL * total
        if RESIDUALS == 2:
            total = tl.load(second + at).to(tl.float32) + RESIDUAL * total
    tl.store(
        target + pixel[:, None] * TARGET_PITCH + out[None, :], total.to(target.dtype.element_ty)
    )


@triton.jit
def backward(
    source,
    kernels,
    seen,
    raw,
    scales,
    target,
    sums,
    height,
    PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALONG_INPUTS: tl.constexpr,
    ALONG_OUTPUTS: tl.constexpr,
    TAP: tl.constexpr,
    SLOPE: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of a map before its LeakyReLU, from all that read the map, and its sums."""
    total = _summed(
        source, kernels, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        ALONG_INPUTS, ALONG_OUTPUTS, TAP, PIXELS, STEP, STAGES,
    )  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    at = pixel[:, None] * PITCH + out[None, :]
    total = tl.where(tl.load(seen + at) > 0, total, SLOPE * total)
    tl.store(target + at, total.to(target.dtype.element_ty))
    normal = total
    if NORM:
        normal = normal_of(raw, scales, at, PITCH, OUTPUTS)
    store_sums(sums, total, normal, PITCH, OUTPUTS, NORM)


@triton.jit
def backward_out(
    source,
    kernels,
    first,
    second,
    target,
    share,
    raw,
    scales,
    sums,
    height,
    keep,
    part,
    PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ALONG_INPUTS: tl.constexpr,
    ALONG_OUTPUTS: tl.constexpr,
    TAP: tl.constexpr,
    SECOND: tl.constexpr,
    SHARED: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of a block's input; with SHARED also the part of it that enters the block before, and its sums."""
    total = _summed(
        source, kernels, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        ALONG_INPUTS, ALONG_OUTPUTS, TAP, PIXELS, STEP, STAGES,
    )  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    at = pixel[:, None] * OUTPUTS + out[None, :]
    total += keep * tl.load(first + at).to(tl.float32)
    if SECOND:
        total += tl.load(second + at).to(tl.float32)
    tl.store(target + at, total.to(target.dtype.element_ty))
    if SHARED:
        _share(share, raw, scales, sums, part * total, pixel, PITCH, OUTPUTS, NORM)


@triton.jit
def enter(
    given,
    share,
    raw,
    scales,
    sums,
    part,
    PITCH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """The part of a gradient that enters the last block, and its sums."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    total = part * tl.load(given + pixel[:, None] * OUTPUTS + out[None, :]).to(tl.float32)
    _share(share, raw, scales, sums, total, pixel, PITCH, OUTPUTS, NORM)


@triton.jit
def _share(
    share, raw, scales, sums, total, pixel, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    at = pixel[:, None] * PITCH + tl.arange(0, OUTPUTS)[None, :]
    tl.store(share + at, total.to(share.dtype.element_ty))
    normal = total
    if NORM:
        normal = normal_of(raw, scales, at, PITCH, OUTPUTS)
    store_sums(sums, total, normal, PITCH, OUTPUTS, NORM)
