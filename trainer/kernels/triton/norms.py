"""Batch normalisation in two halves, forward and backward.

The convolution before it stores the moments of its pixels; the pass in this module reads them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_moments(
    moments, values, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, PIXELS: tl.constexpr
):
    """Store mean and sum of squared deviations of a program's pixels, float32 [programs 2 PITCH]."""
    out = tl.arange(0, OUTPUTS)
    mean = tl.sum(values, 0) / PIXELS
    deviation = values - mean[None, :]
    at = moments + tl.program_id(0) * 2 * PITCH + out
    tl.store(at, mean)
    tl.store(at + PITCH, tl.sum(deviation * deviation, 0))


@triton.jit
def store_sums(
    sums, gradient, normalised, PITCH: tl.constexpr, OUTPUTS: tl.constexpr, NORM: tl.constexpr
):
    """Store a program's sums of gradients, and with NORM of gradients times normalised values."""
    at = sums + tl.program_id(0) * (2 if NORM else 1) * PITCH + tl.arange(0, OUTPUTS)
    tl.store(at, tl.sum(gradient, 0))
    if NORM:
        tl.store(at + PITCH, tl.sum(gradient * normalised, 0))


@triton.jit
def normalised_values(pre_norm, scales, at, PITCH: tl.constexpr, OUTPUTS: tl.constexpr):
    """Normalised values of a map; `scales` [2 PITCH] are its mean and one over its standard deviation."""
    out = tl.arange(0, OUTPUTS)
    mean = tl.load(scales + out)
    scale = tl.load(scales + PITCH + out)
    return (tl.load(pre_norm + at).to(tl.float32) - mean[None, :]) * scale[None, :]


@triton.jit
def normalise(
    pre_norm,
    moments,
    weight,
    bias,
    running_mean,
    running_variance,
    count,
    scales,
    target,
    inner,
    outer,
    programs,
    PITCH: tl.constexpr,
    TARGET_PITCH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RESIDUALS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SLOPE: tl.constexpr,
    EPS: tl.constexpr,
    MOMENTUM: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Batch normalisation of a map by the moments of all programs, COUNT pixels each, then LeakyReLU or residuals.

    Moments are merged by Chan et al. (1983, eq. 1.5). The first program writes them to `scales` and into the
    running averages, whose variance is the unbiased one.
    """
    out = tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    inside = (row < programs)[:, None]
    at = moments + row[:, None] * 2 * PITCH + out[None, :]
    means = tl.load(at, mask=inside, other=0.0)
    mean = tl.sum(means, 0) / programs
    deviation = tl.where(inside, means - mean[None, :], 0.0)
    squares = tl.sum(tl.load(at + PITCH, mask=inside, other=0.0) + COUNT * deviation * deviation, 0)
    total = programs * COUNT
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
    value = (tl.load(pre_norm + at).to(tl.float32) - mean[None, :]) * scale[None, :]
    value = value * tl.load(weight + out)[None, :] + tl.load(bias + out)[None, :]
    if RESIDUALS == 0:
        value = tl.where(value > 0, value, SLOPE * value)
    else:
        value = tl.load(inner + at).to(tl.float32) + RESIDUAL * value
        if RESIDUALS == 2:
            value = tl.load(outer + at).to(tl.float32) + RESIDUAL * value
    tl.store(
        target + pixel[:, None] * TARGET_PITCH + out[None, :], value.to(target.dtype.element_ty)
    )


@triton.jit
def normalise_back(
    gradient,
    pre_norm,
    scales,
    sums,
    weight,
    weight_gradient,
    bias_gradient,
    programs,
    PITCH: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """In place, the gradient before normalisation from the one behind it; the first program adds the gradients of
    weight and bias to theirs."""
    out = tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    inside = (row < programs)[:, None]
    at = sums + row[:, None] * 2 * PITCH + out[None, :]
    plain = tl.sum(tl.load(at, mask=inside, other=0.0), 0)
    along = tl.sum(tl.load(at + PITCH, mask=inside, other=0.0), 0)
    if tl.program_id(0) == 0:
        tl.store(weight_gradient + out, tl.load(weight_gradient + out) + along)
        tl.store(bias_gradient + out, tl.load(bias_gradient + out) + plain)
    total = programs * COUNT
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    at = pixel[:, None] * PITCH + out[None, :]
    normalised = normalised_values(pre_norm, scales, at, PITCH, OUTPUTS)
    value = tl.load(gradient + at).to(tl.float32)
    value -= plain[None, :] / total + normalised * (along[None, :] / total)
    value *= (tl.load(weight + out) * tl.load(scales + PITCH + out))[None, :]
    tl.store(gradient + at, value.to(gradient.dtype.element_ty))
