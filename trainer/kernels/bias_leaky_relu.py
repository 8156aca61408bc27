"""Bias, LeakyReLU and pixel shuffle behind a convolution in one pass on a GPU.

torch takes one pass for each, and two in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.kernels.autograd import once_differentiable

Maps = Float[Tensor, "b c h w"]
_VALUES = 8192
"""Values that one program handles."""


def supports(x: Tensor, *, channels: int) -> bool:
    """Whether the kernel can follow a convolution of x: half precision, and a power of two of `channels`."""
    half = x.is_cuda and torch.is_autocast_enabled("cuda")
    return half and channels & (channels - 1) == 0 and 16 <= channels <= _VALUES


def add_bias_leaky_relu(x: Maps, bias: Tensor, slope: float) -> Maps:
    """LeakyReLU of x + bias, written over x."""
    return add_bias_leaky_relu_shuffle(x, bias, slope, 1)


def add_bias_leaky_relu_shuffle(x: Maps, bias: Tensor, slope: float, factor: int) -> Maps:
    """LeakyReLU of x + bias [B factor^2*c h w], with each pixel spread over a square of `factor` x `factor` pixels.

    Channels of x are ordered by pixel of the square, by rows: first all c of the first pixel. (torch's pixel
    shuffle has the pixels of a channel side by side.)
    """
    out: Tensor = _BiasLeakyReLU.apply(x, bias, slope, factor)  # type: ignore[no-untyped-call]  # untyped in torch
    return out


class _BiasLeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  untyped in torch
        x: Maps,
        bias: Tensor,
        slope: float,
        factor: int,
    ) -> Maps:
        """Saves the output alone: its signs are those before the LeakyReLU."""
        from trainer.kernels.triton import bias_leaky_relu as kernels

        source = x.contiguous(memory_format=torch.channels_last)
        b, c, h, w = x.shape
        out = source
        if factor > 1:
            out = _empty((b, c // factor**2, h * factor, w * factor), x)
        pixels = _VALUES * factor**2 // c
        kernels.forward[(-(-b * h * w // pixels),)](
            source, bias, out, b * h * w, h, w,
            FACTOR=factor, CHANNELS=c // factor**2, SLOPE=slope, PIXELS=pixels,
        )  # fmt: skip
        if out is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        ctx.slope, ctx.factor, ctx.shape = slope, factor, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  untyped in torch
        *gradients: Tensor,
    ) -> tuple[Tensor, Tensor | None, None, None]:
        """Gradients of x and of bias."""
        from trainer.kernels.triton import bias_leaky_relu as kernels

        (out,) = ctx.saved_tensors
        b, c, h, w = ctx.shape
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        target = _empty(ctx.shape, out)
        pixels = _VALUES * ctx.factor**2 // c
        programs = -(-b * h * w // pixels)
        needs_bias = ctx.needs_input_grad[1]
        sums = torch.empty(programs if needs_bias else 1, c, device=out.device)
        kernels.backward[(programs,)](
            gradient, out, target, sums, b * h * w, h, w,
            FACTOR=ctx.factor, CHANNELS=c // ctx.factor**2, SLOPE=ctx.slope, SUMS=needs_bias, PIXELS=pixels,
        )  # fmt: skip
        return target, sums.sum(0) if needs_bias else None, None, None


def _empty(shape: tuple[int, ...], like: Tensor) -> Maps:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
