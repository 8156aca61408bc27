"""SRResNet, the generator of SRGAN (Ledig et al., arXiv:1609.04802, figure 4)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from trainer.networks.convolution import Conv3x3, shuffled
from trainer.networks.last import LastConv
from trainer.networks.rrdb import STAGES, Norm
from trainer.networks.start import pass_colours

QUIET = 0.1
"""What the last layer of a residual branch starts multiplied with, so that a fresh trunk is quiet."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a PReLU between them, beside an identity."""

    def __init__(self, *, features: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv3x3(features, features)
        self.norm1 = _norm(features, norm)
        self.act = nn.PReLU()
        self.conv2 = Conv3x3(features, features)
        self.norm2 = _norm(features, norm)
        _quieten(self.conv2, self.norm2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        inner = self.act(self.norm1(self.conv1(x)))
        out: Tensor = x + self.norm2(self.conv2(inner))
        return out


class SRResNet(nn.Module):
    """LR RGB in [0, 1] to SR RGB around [0, 1], `scale` times larger.

    `blocks` residual blocks (16 in the paper) between 9x9 convolutions, then pixel shuffles; `norm`
    is the original's batch normalisation, after each convolution of the trunk, or none.
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
        _quieten(self.conv_body, self.norm_body)
        for number, factor in enumerate(STAGES[scale], start=1):
            conv = Conv3x3(features, features * factor**2)
            pass_colours(conv, phases=factor**2)
            self.add_module(f"conv_up{number}", conv)
            self.add_module(f"act_up{number}", nn.PReLU())
        self.conv_last = LastConv(features, 9)
        for each in (self.conv_first, self.conv_last):
            pass_colours(each)

    def forward(self, lr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 sh sw"]:
        first = self.act_first(self.conv_first(lr))
        x = first + self.norm_body(self.conv_body(self.body(first)))
        for number, factor in enumerate(STAGES[self.scale], start=1):
            conv = self.get_submodule(f"conv_up{number}")
            assert isinstance(conv, Conv3x3)
            x = self.get_submodule(f"act_up{number}")(shuffled(conv, x, factor))
        out: Tensor = self.conv_last(x)
        return out


def _norm(features: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm2d(features) if norm == "batch" else nn.Identity()


def _quieten(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Batch normalisation undoes any factor before it, so there it is the gain that starts small."""
    gain = norm.weight if isinstance(norm, nn.BatchNorm2d) else conv.weight
    gain.data.mul_(QUIET)
