"""SRResNet, the generator of SRGAN (Ledig et al., arXiv:1609.04802, figure 4)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from trainer.networks.layers import (
    UPSAMPLING_FACTORS,
    Conv3x3,
    ConvPixelShuffle,
    Float32Conv,
    init_identity_rgb,
)
from trainer.networks.rrdb import Norm

INITIAL_GAIN = 0.1
"""Initial factor of the last layer of a residual branch: a fresh body adds little."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a PReLU between them, beside an identity."""

    def __init__(self, *, features: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv3x3(features, features)
        self.norm1 = _norm(features, norm)
        self.act = nn.PReLU()
        self.conv2 = Conv3x3(features, features)
        self.norm2 = _norm(features, norm)
        _start_small(self.conv2, self.norm2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        inner = self.act(self.norm1(self.conv1(x)))
        out: Tensor = x + self.norm2(self.conv2(inner))
        return out


class SRResNet(nn.Module):
    """LR RGB in [0, 1] to SR RGB around [0, 1], `scale` times larger.

    `blocks` residual blocks (16 in the paper) between 9x9 convolutions, then pixel shuffles; `norm`
    is the original's batch normalisation, after each convolution of the body, or none.
    """

    def __init__(
        self, *, scale: int = 4, features: int = 64, blocks: int = 16, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3, features, 9, padding=4)
        self.act_first = nn.PReLU()
        self.body = nn.Sequential(
            *(ResidualBlock(features=features, norm=norm) for _ in range(blocks))
        )
        self.conv_body = Conv3x3(features, features)
        self.norm_body = _norm(features, norm)
        _start_small(self.conv_body, self.norm_body)
        for number, factor in enumerate(UPSAMPLING_FACTORS[scale], start=1):
            conv = ConvPixelShuffle(features, features, factor=factor)
            init_identity_rgb(conv, phases=factor**2)
            self.add_module(f"conv_up{number}", conv)
            self.add_module(f"act_up{number}", nn.PReLU())
        self.conv_last = Float32Conv(features, 9)
        for each in (self.conv_first, self.conv_last):
            init_identity_rgb(each)

    def forward(self, lr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 sh sw"]:
        first = self.act_first(self.conv_first(lr))
        x = first + self.norm_body(self.conv_body(self.body(first)))
        for number in range(1, len(UPSAMPLING_FACTORS[self.scale]) + 1):
            x = self.get_submodule(f"conv_up{number}")(x)
            x = self.get_submodule(f"act_up{number}")(x)
        out: Tensor = self.conv_last(x)
        return out


def _norm(features: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm2d(features) if norm == "batch" else nn.Identity()


def _start_small(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Scale the last layer of a branch; the gain where batch normalisation would undo a factor before it."""
    gain = norm.weight if isinstance(norm, nn.BatchNorm2d) else conv.weight
    gain.data.mul_(INITIAL_GAIN)
