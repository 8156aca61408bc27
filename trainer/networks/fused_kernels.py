"""Triton kernels of a dense block on a GPU: 3x3 convolutions of a part of each pixel's channels into another part.

Pictures are channels last, [pictures * height * width, channels]: a row of such a matrix is a pixel, and a slice of
its columns a map. A kernel of one block holds all five weights in one square, [192 outputs, 9 taps, 192 inputs].

A 3x3 convolution reads nine shifted pictures. Here a program reads its pixels three times, shifted by whole rows,
multiplies them with the three taps of that row at once, and shifts the three sums by a column in the end: a third
of the reading, which is what bounds products of 32 columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _start(OVERLAP: tl.constexpr):
    """With OVERLAP a kernel is launched before the one before it ends: wait for that, and let the next be launched."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


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
def _store_moments(moments, values, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, PIXELS: tl.constexpr):
    """Mean and sum of squared distances from it of a program's pixels, float32 [programs 2 PITCH]."""
    out = tl.arange(0, OUTPUTS)
    mean = tl.sum(values, 0) / PIXELS
    apart = values - mean[None, :]
    at = moments + tl.program_id(0) * 2 * PITCH + out
    tl.store(at, mean)
    tl.store(at + PITCH, tl.sum(apart * apart, 0))


@triton.jit
def _store_sums(sums, gradient, normal, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, NORM: tl.constexpr):
    """Sums over a program's pixels, of gradients and with NORM of gradients times normalised values."""
    at = sums + tl.program_id(0) * (2 if NORM else 1) * PITCH + tl.arange(0, OUTPUTS)
    tl.store(at, tl.sum(gradient, 0))
    if NORM:
        tl.store(at + PITCH, tl.sum(gradient * normal, 0))


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
    OVERLAP: tl.constexpr,
):
    """A map of a block, through its LeakyReLU; or, with RESIDUALS 1 or 2, what a block or three of them make.

    With NORM it is the map before its normalisation, and its moments.
    """
    _start(OVERLAP)
    total = _summed(
        source, kernels, height, PITCH, INPUTS, OUTPUTS, WIDTH,
        ALONG_INPUTS, ALONG_OUTPUTS, TAP, PIXELS, STEP, STAGES,
    )  # fmt: skip
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    total += tl.load(bias + out)[None, :]
    if NORM:
        total = total.to(target.dtype.element_ty).to(tl.float32)
        _store_moments(moments, total, PITCH, OUTPUTS, PIXELS)
    elif RESIDUALS == 0:
        total = tl.where(total > 0, total, SLOPE * total)
    else:
        at = pixel[:, None] * PITCH + out[None, :]
        total = tl.load(first + at).to(tl.float32) + RESIDUAL * total
        if RESIDUALS == 2:
            total = tl.load(second + at).to(tl.float32) + RESIDUAL * total
    tl.store(target + pixel[:, None] * TARGET_PITCH + out[None, :], total.to(target.dtype.element_ty))


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
    OVERLAP: tl.constexpr,
):
    """The gradient of a map before its LeakyReLU, from all that read the map, and its sums."""
    _start(OVERLAP)
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
        normal = _normal(raw, scales, at, PITCH, OUTPUTS)
    _store_sums(sums, total, normal, PITCH, OUTPUTS, NORM)


@triton.jit
def _normal(raw, scales, at, PITCH: tl.constexpr, OUTPUTS: tl.constexpr):
    """Normalised values of a map; `scales` [2 PITCH] are its mean and one over its spread."""
    out = tl.arange(0, OUTPUTS)
    mean = tl.load(scales + out)
    scale = tl.load(scales + PITCH + out)
    return (tl.load(raw + at).to(tl.float32) - mean[None, :]) * scale[None, :]


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
    OVERLAP: tl.constexpr,
):
    """The gradient of a block's input; with SHARED also the part of it that enters the block before, and its sums."""
    _start(OVERLAP)
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
def _share(
    share, raw, scales, sums, total, pixel, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    at = pixel[:, None] * PITCH + tl.arange(0, OUTPUTS)[None, :]
    tl.store(share + at, total.to(share.dtype.element_ty))
    normal = total
    if NORM:
        normal = _normal(raw, scales, at, PITCH, OUTPUTS)
    _store_sums(sums, total, normal, PITCH, OUTPUTS, NORM)


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
    OVERLAP: tl.constexpr,
):
    """The part of a gradient that enters the last block, and its sums."""
    _start(OVERLAP)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    out = tl.arange(0, OUTPUTS)
    total = part * tl.load(given + pixel[:, None] * OUTPUTS + out[None, :]).to(tl.float32)
    _share(share, raw, scales, sums, total, pixel, PITCH, OUTPUTS, NORM)


@triton.jit
def normalise(
    raw,
    moments,
    weight,
    bias,
    running_mean,
    running_variance,
    count,
    scales,
    target,
    first,
    second,
    programs,
    PITCH: tl.constexpr,
    TARGET_PITCH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDUALS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SLOPE: tl.constexpr,
    EPS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    EACH: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Batch normalisation of a map by the moments of all programs, EACH pixels one, then as `forward` goes on.

    Moments are merged by Chan et al. (1983, eq. 1.5). The first program writes them to `scales` and into the
    running averages, whose variance is the unbiased one.
    """
    _start(OVERLAP)
    out = tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    there = (row < programs)[:, None]
    at = moments + row[:, None] * 2 * PITCH + out[None, :]
    means = tl.load(at, mask=there, other=0.0)
    mean = tl.sum(means, 0) / programs
    apart = tl.where(there, means - mean[None, :], 0.0)
    squares = tl.sum(tl.load(at + PITCH, mask=there, other=0.0) + EACH * apart * apart, 0)
    total = programs * EACH
    variance = squares / total
    scale = 1.0 / tl.sqrt(variance + EPS)
    if tl.program_id(0) == 0:
        tl.store(scales + out, mean)
        tl.store(scales + PITCH + out, scale)
        before = tl.load(running_mean + out)
        tl.store(running_mean + out, before + MOMENTUM * (mean - before))
        before = tl.load(running_variance + out)
        unbiased = squares / (total - 1)
        tl.store(running_variance + out, before + MOMENTUM * (unbiased - before))
        tl.store(count, tl.load(count) + 1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    at = pixel[:, None] * PITCH + out[None, :]
    value = (tl.load(raw + at).to(tl.float32) - mean[None, :]) * scale[None, :]
    value = value * tl.load(weight + out)[None, :] + tl.load(bias + out)[None, :]
    if RESIDUALS == 0:
        value = tl.where(value > 0, value, SLOPE * value)
    else:
        value = tl.load(first + at).to(tl.float32) + RESIDUAL * value
        if RESIDUALS == 2:
            value = tl.load(second + at).to(tl.float32) + RESIDUAL * value
    tl.store(target + pixel[:, None] * TARGET_PITCH + out[None, :], value.to(target.dtype.element_ty))


@triton.jit
def normalise_back(
    gradient,
    raw,
    scales,
    sums,
    weight,
    weight_gradient,
    bias_gradient,
    programs,
    PITCH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EACH: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """In place, the gradient of what was normalised from that of what came out; the first program adds those of
    weight and bias to theirs."""
    _start(OVERLAP)
    out = tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    there = (row < programs)[:, None]
    at = sums + row[:, None] * 2 * PITCH + out[None, :]
    plain = tl.sum(tl.load(at, mask=there, other=0.0), 0)
    along = tl.sum(tl.load(at + PITCH, mask=there, other=0.0), 0)
    if tl.program_id(0) == 0:
        tl.store(weight_gradient + out, tl.load(weight_gradient + out) + along)
        tl.store(bias_gradient + out, tl.load(bias_gradient + out) + plain)
    total = programs * EACH
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    at = pixel[:, None] * PITCH + out[None, :]
    normal = _normal(raw, scales, at, PITCH, OUTPUTS)
    value = tl.load(gradient + at).to(tl.float32)
    value -= plain[None, :] / total + normal * (along[None, :] / total)
    value *= (tl.load(weight + out) * tl.load(scales + PITCH + out))[None, :]
    tl.store(gradient + at, value.to(gradient.dtype.element_ty))


@triton.jit
def gather(
    w1, w2, w3, w4, w5,
    square,
    FEATURES: tl.constexpr,
    GROWTH: tl.constexpr,
    WIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """A row of the square of a block's kernels, of its five weights [outputs inputs 3 3], float32, channels last."""
    _start(OVERLAP)
    row = tl.program_id(0)
    tap = tl.program_id(1)
    total: tl.constexpr = FEATURES + 4 * GROWTH
    channel = tl.arange(0, WIDE)
    which = tl.minimum(row // GROWTH, 4)
    inputs = FEATURES + which * GROWTH
    weight = w5
    if which == 0:
        weight = w1
    elif which == 1:
        weight = w2
    elif which == 2:
        weight = w3
    elif which == 3:
        weight = w4
    at = ((row - which * GROWTH) * 9 + tap) * inputs + channel
    value = tl.load(weight + at, mask=channel < inputs, other=0.0)
    tl.store(square + (row * 9 + tap) * total + channel, value.to(square.dtype.element_ty), mask=channel < total)


@triton.jit
def spread(
    square, sums,
    w1, w2, w3, w4, w5,
    b1, b2, b3, b4, b5,
    programs,
    FEATURES: tl.constexpr,
    GROWTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BIASES: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Add a row of the square of a block's gradients to those of its five weights, and with BIASES a sum to those of its biases."""
    _start(OVERLAP)
    row = tl.program_id(0)
    tap = tl.program_id(1)
    total: tl.constexpr = FEATURES + 4 * GROWTH
    channel = tl.arange(0, WIDE)
    which = tl.minimum(row // GROWTH, 4)
    inputs = FEATURES + which * GROWTH
    weight = w5
    bias = b5
    if which == 0:
        weight = w1
        bias = b1
    elif which == 1:
        weight = w2
        bias = b2
    elif which == 2:
        weight = w3
        bias = b3
    elif which == 3:
        weight = w4
        bias = b4
    inside = channel < inputs
    at = weight + ((row - which * GROWTH) * 9 + tap) * inputs + channel
    more = tl.load(square + (row * 9 + tap) * total + channel, mask=inside, other=0.0)
    tl.store(at, tl.load(at, mask=inside, other=0.0) + more.to(tl.float32), mask=inside)
    if BIASES and tap == 0:
        each = tl.arange(0, ROWS)
        found = tl.load(sums + each * total + row, mask=each < programs, other=0.0)
        place = bias + row - which * GROWTH
        tl.store(place, tl.load(place) + tl.sum(found, 0))
