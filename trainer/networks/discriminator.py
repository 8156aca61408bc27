"""The discriminator: VGG style with spectral normalisation throughout (paper §3.2, figure 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from trainer.networks.convolution import Conv3x3, Conv4x4
from trainer.networks.rrdb import SLOPE


class VGGDiscriminator(nn.Module):
    """HR or SR patches in [0, 1] to one logit each: positive means real.

    Ten convolutions, `features` → 2x → 4x → 8x channels (64 → 128 → 256 → 512 in the paper), every
    second one of stride 2, then two dense layers. The 4x4 grid in front of the dense layers is an
    adaptive average, which changes nothing for 128-pixel patches and admits any from 32 up.

    In training mode each forward pass advances the power iteration of every layer by one step; in
    evaluation mode the singular vectors stand still, which is what the generator's step wants.
    """

    def __init__(self, *, features: int = 64, dense: int = 100) -> None:
        super().__init__()
        f1, f2, f4, f8 = features, features * 2, features * 4, features * 8
        self.conv0_0 = spectral_norm(Conv3x3(3, f1))
        self.conv0_1 = spectral_norm(Conv4x4(f1, f1))
        self.conv1_0 = spectral_norm(Conv3x3(f1, f2))
        self.conv1_1 = spectral_norm(Conv4x4(f2, f2))
        self.conv2_0 = spectral_norm(Conv3x3(f2, f4))
        self.conv2_1 = spectral_norm(Conv4x4(f4, f4))
        self.conv3_0 = spectral_norm(Conv3x3(f4, f8))
        self.conv3_1 = spectral_norm(Conv4x4(f8, f8))
        self.conv4_0 = spectral_norm(Conv3x3(f8, f8))
        self.conv4_1 = spectral_norm(Conv4x4(f8, f8))
        self.linear1 = spectral_norm(nn.Linear(f8 * 4 * 4, dense))
        self.linear2 = spectral_norm(nn.Linear(dense, 1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        x = self.conv0_1(self.conv0_0(image, SLOPE), SLOPE)
        x = self.conv1_1(self.conv1_0(x, SLOPE), SLOPE)
        x = self.conv2_1(self.conv2_0(x, SLOPE), SLOPE)
        x = self.conv3_1(self.conv3_0(x, SLOPE), SLOPE)
        x = self.conv4_1(self.conv4_0(x, SLOPE), SLOPE)
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        logits: Tensor = self.linear2(F.leaky_relu(self.linear1(x), SLOPE))
        return logits.flatten()


@contextlib.contextmanager
def normalised(discriminator: nn.Module) -> Iterator[None]:
    """Compute each normalised weight once, in float32, for all forward passes inside.

    In training mode that is the one power iteration of the update; autocast would otherwise run
    it in bf16.
    """
    with parametrize.cached():
        with torch.autocast(next(discriminator.parameters()).device.type, enabled=False):
            for module in discriminator.modules():
                if parametrize.is_parametrized(module):
                    _ = module.weight
        yield
