"""The five weights of a dense block packed as one square, [outputs, 9 taps, inputs], and its gradient unpacked.

Weights are [outputs inputs 3 3], float32, channels last.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pack(
    w1, w2, w3, w4, w5,
    square,
    FEATURES: tl.constexpr,
    GROWTH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Write one row and tap of the square."""
    row = tl.program_id(0)
    tap = tl.program_id(1)
    total: tl.constexpr = FEATURES + 4 * GROWTH
    channel = tl.arange(0, WIDE)
    which = tl.minimum(row // GROWTH, 4)
    inputs = FEATURES + which * GROWTH
    weight = _select(which, w1, w2, w3, w4, w5)
    at = ((row - which * GROWTH) * 9 + tap) * inputs + channel
    value = tl.load(weight + at, mask=channel < inputs, other=0.0)
    tl.store(
        square + (row * 9 + tap) * total + channel,
        value.to(square.dtype.element_ty),
        mask=channel < total,
    )


@triton.jit
def accumulate_grads(
    square, sums,
    w1, w2, w3, w4, w5,
    b1, b2, b3, b4, b5,
    programs,
    FEATURES: tl.constexpr,
    GROWTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BIASES: tl.constexpr,
):  # fmt: skip
    """Add a row of a square of gradients to a weight's gradient, and with BIASES a sum over programs to a bias's."""
    row = tl.program_id(0)
    tap = tl.program_id(1)
    total: tl.constexpr = FEATURES + 4 * GROWTH
    channel = tl.arange(0, WIDE)
    which = tl.minimum(row // GROWTH, 4)
    inputs = FEATURES + which * GROWTH
    weight = _select(which, w1, w2, w3, w4, w5)
    bias = _select(which, b1, b2, b3, b4, b5)
    inside = channel < inputs
    at = weight + ((row - which * GROWTH) * 9 + tap) * inputs + channel
    more = tl.load(square + (row * 9 + tap) * total + channel, mask=inside, other=0.0)
    tl.store(at, tl.load(at, mask=inside, other=0.0) + more.to(tl.float32), mask=inside)
    if BIASES and tap == 0:
        program = tl.arange(0, ROWS)
        parts = tl.load(sums + program * total + row, mask=program < programs, other=0.0)
        place = bias + row - which * GROWTH
        tl.store(place, tl.load(place) + tl.sum(parts, 0))


@triton.jit
def _select(which, first, second, third, fourth, fifth):
    """The pointer of one convolution among those of all five."""
    chosen = fifth
    if which == 0:
        chosen = first
    elif which == 1:
        chosen = second
    elif which == 2:
        chosen = third
    elif which == 3:
        chosen = fourth
    return chosen
