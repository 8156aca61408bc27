"""3x3 convolutions from some channels of each pixel to others, with the pointwise operations before and after.

A 3x3 convolution reads nine shifted maps. Here a program reads its pixels three times, shifted by whole rows,
multiplies them with the three taps of that row at once, and shifts the three sums by a column at the end. That is a
third of the reading, and reading bounds products of 32 columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trainer.kernels.triton.norms import normalised_values, store_moments, store_sums


@triton.jit
def _convolve(
    source,
    weights,
    height,
    PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    TAP: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The convolution of a program's PIXELS, whole rows of an image: float32 [PIXELS OUTPUTS]."""
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
        inside = (row + down >= 0) & (row + down < height)
        at = source + (pixel + down * WIDTH)[:, None] * PITCH + inputs[None, :]
        maps = tl.load(at, mask=inside[:, None], other=0.0)
        taps = weights + (down + 1) * 3 * TAP
        taps = taps + inputs[:, None] * INPUT_STRIDE + out[None, :] * OUTPUT_STRIDE
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
    weights,
    bias,
    target,
    inner,
    outer,
    moments,
    height,
    PITCH: tl.constexpr,
    TARGET_PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    TAP: tl.constexpr,
    RESIDUALS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SLOPE: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A map of a block after its LeakyReLU; or, with RESIDUALS 1 or 2, the output of one block or of three.

    With NORM it is the map before its normalisation, and its moments.
    """
    total = _convolve(
        source, weights, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        INPUT_STRIDE, OUTPUT_STRIDE, TAP, PIXELS, STEP, STAGES,
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
        total = tl.load(inner + at).to(tl.float32) + RESIDUAL * total
        if RESIDUALS == 2:
            total = tl.load(outer + at).to(tl.float32) + RESIDUAL * total
    tl.store(
        target + pixel[:, None] * TARGET_PITCH + out[None, :], total.to(target.dtype.element_ty)
    )


@triton.jit
def backward(
    source,
    weights,
    output,
    pre_norm,
    scales,
    target,
    sums,
    height,
    PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    TAP: tl.constexpr,
    SLOPE: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of a map before its LeakyReLU, from all convolutions that read the map, and its sums."""
    total = _convolve(
        source, weights, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        INPUT_STRIDE, OUTPUT_STRIDE, TAP, PIXELS, STEP, STAGES,
    )  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    at = pixel[:, None] * PITCH + out[None, :]
    total = tl.where(tl.load(output + at) > 0, total, SLOPE * total)
    tl.store(target + at, total.to(target.dtype.element_ty))
    normalised = total
    if NORM:
        normalised = normalised_values(pre_norm, scales, at, PITCH, OUTPUTS)
    store_sums(sums, total, normalised, PITCH, OUTPUTS, NORM)


@triton.jit
def input_gradient(
    source,
    weights,
    inner,
    outer,
    target,
    seed,
    pre_norm,
    scales,
    sums,
    height,
    keep,
    part,
    PITCH: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    INPUT_STRIDE: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    TAP: tl.constexpr,
    OUTER: tl.constexpr,
    SEEDS: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of a block's input; with SEEDS also the part of it that seeds the previous block, and its sums."""
    total = _convolve(
        source, weights, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        INPUT_STRIDE, OUTPUT_STRIDE, TAP, PIXELS, STEP, STAGES,
    )  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    at = pixel[:, None] * OUTPUTS + out[None, :]
    total += keep * tl.load(inner + at).to(tl.float32)
    if OUTER:
        total += tl.load(outer + at).to(tl.float32)
    tl.store(target + at, total.to(target.dtype.element_ty))
    if SEEDS:
        _store_seed(seed, pre_norm, scales, sums, part * total, pixel, PITCH, OUTPUTS, NORM)


@triton.jit
def seed_gradient(
    gradient,
    seed,
    pre_norm,
    scales,
    sums,
    part,
    PITCH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """The part of a gradient that seeds the last block, and its sums."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    total = part * tl.load(gradient + pixel[:, None] * OUTPUTS + out[None, :]).to(tl.float32)
    _store_seed(seed, pre_norm, scales, sums, total, pixel, PITCH, OUTPUTS, NORM)


@triton.jit
def _store_seed(
    seed, pre_norm, scales, sums, total, pixel, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    at = pixel[:, None] * PITCH + tl.arange(0, OUTPUTS)[None, :]
    tl.store(seed + at, total.to(seed.dtype.element_ty))
    normalised = total
    if NORM:
        normalised = normalised_values(pre_norm, scales, at, PITCH, OUTPUTS)
    store_sums(sums, total, normalised, PITCH, OUTPUTS, NORM)
