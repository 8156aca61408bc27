"""What follows a convolution on a GPU in one pass: bias and LeakyReLU, and the order of a sub-pixel convolution.

torch takes a pass each, and two in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.kernels.autograd import once_differentiable

Maps = Float[Tensor, "b c h w"]
_VALUES = 8192
"""Of a program."""


def fits(x: Tensor, weight: Tensor, *, factor: int = 1) -> bool:
    """Whether a convolution of x is followed by this: half precision, and a power of two of channels."""
    channels = len(weight) // factor**2
    half = x.is_cuda and torch.is_autocast_enabled("cuda")
    return half and channels & (channels - 1) == 0 and 16 <= channels <= _VALUES


def activate(x: Maps, bias: Tensor, slope: float) -> Maps:
    """LeakyReLU of x + bias, in the memory of x."""
    made: Tensor = _Activate.apply(x, bias, slope, 1)  # type: ignore[no-untyped-call]  # as torch has it
    return made


def activate_shuffled(x: Maps, bias: Tensor, slope: float, factor: int) -> Maps:
    """LeakyReLU of x + bias with each pixel a square of pixels: the channels of its first, then of the next."""
    made: Tensor = _Activate.apply(x, bias, slope, factor)  # type: ignore[no-untyped-call]  # as torch has it
    return made


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
        bias: Tensor,
        slope: float,
        factor: int,
    ) -> Maps:
        """Keeps what it makes, whose signs are those before the LeakyReLU."""
        from trainer.networks.kernels import activate as kernels

        source = x.contiguous(memory_format=torch.channels_last)
        b, c, h, w = x.shape
        out = source
        if factor > 1:
            shape = b, c // factor**2, h * factor, w * factor
            out = _empty(shape, x)
        each = _VALUES * factor**2 // c
        kernels.forward[(-(-b * h * w // each),)](
            source, bias, out, b * h * w, h, w, FACTOR=factor, CHANNELS=c // factor**2, SLOPE=slope, EACH=each
        )  # fmt: skip
        if out is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        ctx.slope, ctx.factor, ctx.shape = slope, factor, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor, Tensor | None, None, None]:
        """Of x and of bias."""
        from trainer.networks.kernels import activate as kernels

        (out,) = ctx.saved_tensors
        b, c, h, w = ctx.shape
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        target = _empty(ctx.shape, out)
        each = _VALUES * ctx.factor**2 // c
        programs = -(-b * h * w // each)
        wanted = ctx.needs_input_grad[1]
        sums = torch.empty(programs if wanted else 1, c, device=out.device)
        kernels.backward[(programs,)](
            gradient, out, target, sums, b * h * w, h, w, FACTOR=ctx.factor, CHANNELS=c // ctx.factor**2,
            SLOPE=ctx.slope, SUMS=wanted, EACH=each,
        )  # fmt: skip
        return target, sums.sum(0) if wanted else None, None, None


def _empty(shape: tuple[int, ...], like: Tensor) -> Maps:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
