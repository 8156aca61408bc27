"""The last convolution of a generator: in the precision of its weights, whatever autocast says.

bf16 has eight bits of mantissa, so a picture that leaves a network in it has steps of 1/256 near
white: as coarse as 8 bits, and a difference from HR that is smaller is gone.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn

from trainer import native

Maps = BFloat16[Tensor, "b c h w"]
Colours = Float[Tensor, "b 3 h w"]
_WIDEST = 4096
"""Three rows of colours have to fit onto a thread's stack."""


class LastConv(nn.Conv2d):
    """A convolution outside autocast; with `native`, 3x3 ones of bf16 maps are those of `last.c`."""

    native = False
    """Set by `trainer.speed`."""

    def __init__(
        self, inputs: int, side: int, *, padding_mode: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__(inputs, 3, side, padding=side // 2, padding_mode=padding_mode)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Colours:  # noqa: A002  the name of nn.Conv2d
        """Colours in float32."""
        with torch.autocast(input.device.type, enabled=False):
            if self.native and _fits(input, self):
                found: Tensor = _Colours.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]  # as torch has it
                return found
            return super().forward(input.to(self.weight.dtype))


def _fits(x: Tensor, conv: LastConv) -> bool:
    weight, bias = conv.weight, conv.bias
    wide = x.shape[1] % 16 == 0 and x.shape[3] % 2 == 0 and x.shape[3] <= _WIDEST
    plain = weight.shape[2:] == (3, 3) and conv.padding_mode == "zeros" and bias is not None
    on_cpu = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.numel() > 0
    return on_cpu and wide and plain and weight.dtype == torch.float32


class _Colours(torch.autograd.Function):
    """The convolution of maps, with weight [3 c 3 3] and bias [3]."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  as torch has it
        x: Maps,
        weight: Tensor,
        bias: Tensor,
    ) -> Colours:
        """Products and sums in float32."""
        x = x.contiguous(memory_format=torch.channels_last)
        taps = weight.permute(2, 3, 0, 1).contiguous()
        out = torch.empty(x[:, :3].shape, memory_format=torch.channels_last)
        kernels().colours(*map(_at, (x, taps, bias.float().contiguous(), out)), *native.pictures(x))
        ctx.save_for_backward(x, taps)
        return out

    @staticmethod
    @native.once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401  as torch has it
        *gradients: Tensor,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Of maps in bf16, of weight and bias in float32."""
        x, taps = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = torch.empty_like(x)
            kernels().colours_back(*map(_at, (gradient, taps, to_x)), *native.pictures(x))
        each = torch.empty(len(x), *taps.shape)
        kernels().colours_weights(*map(_at, (x, gradient, each)), *native.pictures(x))
        return to_x, each.sum(0).permute(2, 3, 0, 1), gradient.sum((0, 2, 3))


def _at(tensor: Tensor) -> int:
    return tensor.data_ptr()


@cache
def kernels() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        NotHere: this machine cannot have them.
    """
    library = native.load(Path(__file__).with_suffix(".c"))
    pointers = [ctypes.c_void_p] * 4
    library.colours.argtypes = [*pointers, *native.PICTURES]
    library.colours_back.argtypes = library.colours_weights.argtypes = [
        *pointers[1:],
        *native.PICTURES,
    ]
    for each in (library.colours, library.colours_back, library.colours_weights):
        each.restype = None
    return library
