"""Convolutions of bf16 pictures on a CPU with fewer products: 2.25 times where they are 3x3, and 1.78 times
where they are 4x4 of stride 2 (`tiles_3x3.c` has the algorithm, `chains` its gradients).

Tiles are rounded to bf16 before the products, where the direct way rounds only the sum, so the result is off by
nearly twice as much: 0.44 % of its spread instead of 0.23 % (`tests/trainer/test_winograd.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trainer.networks import activate
from trainer.networks.chains import Chain
from trainer.networks.halving import Halved
from trainer.networks.planes import HALVING, KEEPING, Tiling

Maps = Float[Tensor, "b c h w"]
_LEAST_WORK = 32 * 32
"""Inputs times outputs from which on the products saved are more than what the tiles cost."""


class _Conv(nn.Conv2d):
    """A convolution that may be Winograd's under bf16 autocast."""

    tiling: Tiling
    winograd = False
    fused = False
    """Both set by `trainer.speed`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        tiling = self.tiling
        super().__init__(inputs, outputs, tiling.kernel, tiling.stride, padding=1, bias=bias)

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """The convolution, followed by a LeakyReLU."""
        weight = self.weight  # once: spectral normalisation computes it
        if self.winograd and fits(input, [weight], self.tiling):
            if self.tiling is HALVING:
                return halved(input, weight, self.bias, slope)
            return chain(input, [weight], [self.bias], last_slope=slope)
        if self.fused and self.bias is not None and slope != 1:
            if activate.fits(input, weight, self.bias):
                maps = self._conv_forward(input, weight, None)
                return activate.activate(maps, self.bias, slope)
        return _activated(self._conv_forward(input, weight, self.bias), slope)


class Conv3x3(_Conv):
    """Of stride 1: the sides stay as they are."""

    tiling = KEEPING


class Conv4x4(_Conv):
    """Of stride 2: the sides are halved."""

    tiling = HALVING


def _activated(x: Maps, slope: float) -> Maps:
    if slope == 0:
        return functional.relu(x)
    return x if slope == 1 else functional.leaky_relu(x, slope)


def shuffled(conv: Conv3x3, x: Maps, factor: int, slope: float = 1.0) -> Maps:
    """`pixel_shuffle(conv(x, slope), factor)`, with the channels of each new pixel side by side from the start.

    torch's own moves every value of channels-last maps on its own, backward 2 ns each.
    """
    weight = conv.weight
    tiled = conv.winograd and fits(x, [weight])
    fused = conv.fused and activate.fits(x, weight, conv.bias, factor=factor)
    if not (tiled or fused):
        out: Tensor = functional.pixel_shuffle(conv(x, slope), factor)
        return out
    count, phases = len(weight) // factor**2, (factor, factor)
    by_phase = weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
    bias = None if conv.bias is None else conv.bias.view(count, -1).T.flatten()
    if fused and bias is not None:
        return activate.activate_shuffled(functional.conv2d(x, by_phase, padding=1), bias, slope, factor)
    maps = chain(x, [by_phase], [bias], last_slope=slope)
    in_order: Tensor = maps.permute(0, 2, 3, 1).unflatten(3, (*phases, count)).transpose(2, 3)
    return in_order.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def fits(x: Maps, weights: Sequence[Tensor], tiling: Tiling = KEEPING) -> bool:
    """Whether a chain can be Winograd's, and gains by it: bf16 on a CPU, whole tiles, channels enough."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not x.numel():
        return False
    side = 2 * tiling.stride
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.shape[2] % side or x.shape[3] % side:
        return False
    if any(weight.shape[0] % 16 or weight.shape[1] % 16 for weight in weights):
        return False
    return max(weight.shape[0] * weight.shape[1] for weight in weights) >= _LEAST_WORK


def chain(
    x: Maps,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    slope: float = 1.0,
    last_slope: float = 1.0,
) -> Maps:
    """What the last convolution makes, through a LeakyReLU of `last_slope`; the others have one of `slope`."""
    slopes = [slope] * (len(weights) - 1) + [last_slope]
    with torch.autocast("cpu", enabled=False):
        out: Tensor = Chain.apply(x.to(torch.bfloat16), slopes, *weights, *biases)  # type: ignore[no-untyped-call]  # as torch has it
    return out


def halved(x: Maps, weight: Tensor, bias: Tensor | None, slope: float) -> Maps:
    """The 4x4 convolution of stride 2, through a LeakyReLU."""
    with torch.autocast("cpu", enabled=False):
        out: Tensor = Halved.apply(x.to(torch.bfloat16), slope, weight, bias)  # type: ignore[no-untyped-call]  # as torch has it
    return out
