"""Convolutions with the LeakyReLU that follows them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trainer.networks import activate

Maps = Float[Tensor, "b c h w"]


class _Conv(nn.Conv2d):
    """A convolution that may be computed in another way under autocast."""

    kernel = 3
    steps = 1
    fused = False
    """On a GPU: with bias and LeakyReLU in one pass. Set by `trainer.training.speed_settings`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, self.kernel, self.steps, padding=1, bias=bias)

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        """The convolution, followed by a LeakyReLU."""
        weight = self.weight  # once: spectral normalisation computes it
        bias = self.bias
        if self.fused and slope != 1 and bias is not None and activate.fits(input, weight):
            return activate.activate(self._conv_forward(input, weight, None), bias, slope)
        return _activated(self._conv_forward(input, weight, self.bias), slope)


class Conv3x3(_Conv):
    """Stride 1: the sides stay as they are."""


class Conv4x4(_Conv):
    """Stride 2: the sides are halved."""

    kernel = 4
    steps = 2


def _activated(x: Maps, slope: float) -> Maps:
    if slope == 0:
        return functional.relu(x)
    return x if slope == 1 else functional.leaky_relu(x, slope)


def shuffled(conv: Conv3x3, x: Maps, factor: int, slope: float = 1.0) -> Maps:
    """`pixel_shuffle(conv(x, slope), factor)`, with the channels of each new pixel side by side from the start.

    torch's own moves every value of channels-last maps on its own, backward 2 ns each.
    """
    weight = conv.weight
    if not conv.fused or conv.bias is None or not activate.fits(x, weight, factor=factor):
        out: Tensor = functional.pixel_shuffle(conv(x, slope), factor)
        return out
    count = len(weight) // factor**2
    by_phase = weight.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
    bias = conv.bias.view(count, -1).T.flatten()
    return activate.activate_shuffled(
        functional.conv2d(x, by_phase, padding=1), bias, slope, factor
    )
