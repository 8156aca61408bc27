"""Layers that the networks share, and how they start."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Maps = Float[Tensor, "b c h w"]
SLOPE = 0.2
"""Negative slope of every LeakyReLU (paper §3.2)."""
COLOURS = 3
UPSAMPLING_FACTORS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""Factors of the upsampling layers for each scale."""


class ConvLeakyReLU(nn.Conv2d):
    """A convolution with padding 1 and the LeakyReLU that follows it; a slope of 1 is none."""

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        x = super().forward(input)
        return x if slope == 1 else F.leaky_relu(x, slope)


class Conv3x3(ConvLeakyReLU):
    """Stride 1: the sides stay as they are."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)


class Conv4x4(ConvLeakyReLU):
    """Stride 2: the sides are halved."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1, bias=bias)


class ConvPixelShuffle(ConvLeakyReLU):
    """Sub-pixel convolution (Shi et al., arXiv:1609.05158): a 3x3 convolution, then a pixel shuffle."""

    def __init__(self, inputs: int, outputs: int, *, factor: int) -> None:
        super().__init__(inputs, outputs * factor**2, 3, padding=1)
        self.factor = factor

    def forward(self, input: Maps, slope: float = 1.0) -> Maps:  # noqa: A002  the name of nn.Conv2d
        return F.pixel_shuffle(super().forward(input, slope), self.factor)


class Float32Conv(nn.Conv2d):
    """The last convolution of a generator, to RGB, in the precision of its weights even under autocast.

    bf16 has eight bits of mantissa: an image that leaves a network in bf16 has steps of 1/256 near white, as
    coarse as 8 bits, and a smaller difference from HR is lost.
    """

    def __init__(
        self, inputs: int, side: int, *, padding_mode: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__(inputs, COLOURS, side, padding=side // 2, padding_mode=padding_mode)

    def forward(self, input: Maps) -> Float[Tensor, "b 3 h w"]:  # noqa: A002  the name of nn.Conv2d
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def enlarge_nearest(x: Maps, factor: int) -> Maps:
    """Nearest-neighbour enlargement in the precision of `x`; autocast on a GPU would copy in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, scale_factor=factor, mode="nearest")


def resize_bilinear(x: Maps, like: Maps) -> Maps:
    """`x` resized bilinearly to the sides of `like`, in the precision of `x`."""
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def init_identity_rgb(conv: nn.Conv2d, *, phases: int = 1) -> None:
    """Initialise a convolution so that its first three channels carry RGB through (docs/decisions/0005).

    A chain of such layers makes a fresh network an enlargement with a little noise: training starts near the
    answer instead of learning to copy. The `phases` of a pixel shuffle start alike, which avoids a
    checkerboard (Aitken et al. 2017, arXiv:1707.02937).
    """
    assert conv.bias is not None
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        conv.weight.copy_(conv.weight[::phases].repeat_interleave(phases, 0))
        conv.weight[: COLOURS * phases].mul_(0.1)
        for colour in range(COLOURS):
            conv.weight[colour * phases : (colour + 1) * phases, colour, middle, middle] += 1
        nn.init.zeros_(conv.bias)
