"""RRDBNet, the generator: residual-in-residual dense blocks (paper §3.2; ESRGAN, arXiv:1809.00219).

Layer names are those of BasicSR, which every consumer of ESRGAN weights knows: `conv_first`,
`body.N.rdbM.convK`, `conv_body`, `conv_up1`, `conv_up2`, `conv_hr`, `conv_last`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.networks.layers import (
    SLOPE,
    UPSAMPLING_FACTORS,
    Conv3x3,
    ConvPixelShuffle,
    Float32Conv,
    enlarge_nearest,
    init_identity_rgb,
)

Upsampler = Literal["pixelshuffle", "nearest_conv"]
Norm = Literal["batch", "none"]

RESIDUAL = 0.2
"""Factor of a residual branch before it is added (ESRGAN §3.1)."""


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of which reads the outputs of all before it."""

    def __init__(self, *, features: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _small_conv(features, growth, norm)
        self.conv2, self.norm2 = _small_conv(features + growth, growth, norm)
        self.conv3, self.norm3 = _small_conv(features + 2 * growth, growth, norm)
        self.conv4, self.norm4 = _small_conv(features + 3 * growth, growth, norm)
        self.conv5, self.norm5 = _small_conv(features + 4 * growth, features, norm)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x1 = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        x2 = F.leaky_relu(self.norm2(self.conv2(torch.cat((x, x1), 1))), SLOPE)
        x3 = F.leaky_relu(self.norm3(self.conv3(torch.cat((x, x1, x2), 1))), SLOPE)
        x4 = F.leaky_relu(self.norm4(self.conv4(torch.cat((x, x1, x2, x3), 1))), SLOPE)
        x5 = self.norm5(self.conv5(torch.cat((x, x1, x2, x3, x4), 1)))
        out: Tensor = x + RESIDUAL * x5
        return out


def _small_conv(inputs: int, outputs: int, norm: Norm) -> tuple[Conv3x3, nn.Module]:
    """A convolution that starts small, which keeps 23 blocks of residuals stable (ESRGAN §3.1), and its norm."""
    conv = Conv3x3(inputs, outputs)
    nn.init.kaiming_normal_(conv.weight).data.mul_(0.1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv, nn.BatchNorm2d(outputs) if norm == "batch" else nn.Identity()


class RRDB(nn.Module):
    """Three dense blocks inside one more residual."""

    def __init__(self, *, features: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features=features, growth=growth, norm=norm)
        self.rdb2 = DenseBlock(features=features, growth=growth, norm=norm)
        self.rdb3 = DenseBlock(features=features, growth=growth, norm=norm)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        out: Tensor = x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))
        return out


class RRDBNet(nn.Module):
    """LR RGB in [0, 1] to SR RGB around [0, 1], `scale` times larger.

    `upsampler` is the paper's two pixel-shuffle layers or ESRGAN's nearest-neighbour enlargement
    with a convolution; `norm` is the paper's batch normalisation, after each convolution of a
    dense block, where it folds into that convolution exactly, or none (ESRGAN).
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        features: int = 64,
        blocks: int = 23,
        growth: int = 32,
        upsampler: Upsampler = "pixelshuffle",
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        self.scale = scale
        self.upsampler = upsampler
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(
            *(RRDB(features=features, growth=growth, norm=norm) for _ in range(blocks))
        )
        self.conv_body = Conv3x3(features, features)
        for number, factor in enumerate(UPSAMPLING_FACTORS[scale], start=1):
            if upsampler == "pixelshuffle":
                conv: nn.Conv2d = ConvPixelShuffle(features, features, factor=factor)
                init_identity_rgb(conv, phases=factor**2)
            else:
                conv = Conv3x3(features, features)
                init_identity_rgb(conv)
            self.add_module(f"conv_up{number}", conv)
        self.conv_hr = Conv3x3(features, features)
        self.conv_last = Float32Conv(features, 3)
        for each in (self.conv_first, self.conv_hr, self.conv_last):
            init_identity_rgb(each)
        self.conv_body.weight.data.mul_(0.1)

    def forward(self, lr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 sh sw"]:
        first = self.conv_first(lr)
        x = first + self.conv_body(self.body(first))
        for number, factor in enumerate(UPSAMPLING_FACTORS[self.scale], start=1):
            if self.upsampler == "nearest_conv":
                x = enlarge_nearest(x, factor)
            x = self.get_submodule(f"conv_up{number}")(x, SLOPE)
        out: Tensor = self.conv_last(self.conv_hr(x, SLOPE))
        return out


def to_pixelshuffle(weights: dict[str, Tensor], *, scale: int) -> dict[str, Tensor]:
    """Rewrite `nearest_conv` weights as `pixelshuffle` weights of the same function.

    A 3x3 convolution of a nearest-neighbour enlargement reads each LR pixel several times: output
    phase p and tap d meet LR offset floor((p + d) / factor). Summing the taps that meet gives one
    3x3 kernel per phase, and pixel shuffle puts the phases back in place.
    """
    converted = dict(weights)
    for number, factor in enumerate(UPSAMPLING_FACTORS[scale], start=1):
        old = weights[f"conv_up{number}.weight"]
        outputs, inputs = old.shape[:2]
        new = old.new_zeros(outputs, factor, factor, inputs, 3, 3)
        for row in range(factor):
            for column in range(factor):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, x = (row + dy) // factor + 1, (column + dx) // factor + 1
                        new[:, row, column, :, y, x] += old[:, :, dy + 1, dx + 1]
        converted[f"conv_up{number}.weight"] = new.flatten(0, 2)
        bias = weights[f"conv_up{number}.bias"]
        converted[f"conv_up{number}.bias"] = bias.repeat_interleave(factor**2)
    return converted
