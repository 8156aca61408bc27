"""Bilinear enlargement to twice the sides in half precision on a GPU.

Autocast does it in float32, which takes twice the memory's time, and torch adds up its gradient in whatever order
threads come. The values are the same: both compute in float32 and round once.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainer import native

Maps = Float[Tensor, "b c h w"]
_VALUES = 4096
"""Of a program."""


def fits(x: Tensor) -> bool:
    """Whether maps are what the kernels are for: half precision, and a power of two of channels."""
    channels = x.shape[1]
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.is_cuda and half and channels & (channels - 1) == 0 and 16 <= channels <= _VALUES


def doubled(x: Maps) -> Maps:
    """Maps [B c 2h 2w], as `F.interpolate` makes them bilinearly."""
    made: Tensor = _Doubled.apply(x)  # type: ignore[no-untyped-call]  # as torch has it
    return made


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
    ) -> Maps:
        """Keeps nothing."""
        from trainer.networks.kernels import enlarge as kernels

        source = x.contiguous(memory_format=torch.channels_last)
        b, c, h, w = x.shape
        target = _empty(x, b, c, 2 * h, 2 * w)
        _launch(kernels.forward, source, target, x.shape)
        ctx.shape = x.shape
        return target

    @staticmethod
    @native.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> Maps:
        """In one order, whatever the threads."""
        from trainer.networks.kernels import enlarge as kernels

        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        target = _empty(gradient, *ctx.shape)
        _launch(kernels.backward, gradient, target, ctx.shape)
        return target


def _launch(kernel: Any, source: Maps, target: Maps, shape: torch.Size) -> None:  # noqa: ANN401  Triton's have no type
    b, c, h, w = shape
    each = _VALUES // c
    kernel[(-(-b * h * w // each),)](source, target, b * h * w, h, w, CHANNELS=c, EACH=each)


def _empty(like: Tensor, *shape: int) -> Maps:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
