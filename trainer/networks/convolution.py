"""Convolutions with the LeakyReLU behind them, as most layers here are, and the ways in which they can be done."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trainer.networks import activate, winograd
from trainer.networks.planes import HALVING, KEEPING, Tiling

Maps = Float[Tensor, "b c h w"]


class _Conv(nn.Conv2d):
    """A convolution that may be done in another way under autocast."""

    tiling: Tiling
    winograd = False
    """On a CPU, in bf16."""
    fused = False
    """On a GPU: with bias and LeakyReLU in one pass. Both are set by `trainer.speed`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        tiling = self.tiling
        super().__init__(inputs, outputs, tiling.kernel, tiling.stride, padding=1, bias=bias)

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """The convolution, followed by a LeakyReLU."""
        weight = self.weight  # once: spectral normalisation computes it
        if self.winograd and winograd.fits(input, [weight], self.tiling):
            if self.tiling is HALVING:
                return winograd.halved(input, weight, self.bias, slope)
            return winograd.chain(input, [weight], [self.bias], last_slope=slope)
        bias = self.bias
        if self.fused and slope != 1 and bias is not None and activate.fits(input, weight):
            return activate.activate(self._conv_forward(input, weight, None), bias, slope)
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
    tiled = conv.winograd and winograd.fits(x, [weight])
    fused = conv.fused and conv.bias is not None and activate.fits(x, weight, factor=factor)
    if not (tiled or fused):
        out: Tensor = functional.pixel_shuffle(conv(x, slope), factor)
        return out
    count, phases = len(weight) // factor**2, (factor, factor)
    by_phase = weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
    bias = None if conv.bias is None else conv.bias.view(count, -1).T.flatten()
    if fused and bias is not None:
        return activate.activate_shuffled(
            functional.conv2d(x, by_phase, padding=1), bias, slope, factor
        )
    maps = winograd.chain(x, [by_phase], [bias], last_slope=slope)
    in_order: Tensor = maps.permute(0, 2, 3, 1).unflatten(3, (*phases, count)).transpose(2, 3)
    return in_order.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
