"""The discriminators: HR or SR patches in [0, 1] to logits, where positive means real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from trainer.networks.layers import SLOPE, Conv3x3, Conv4x4, resize_bilinear


class VGGDiscriminator(nn.Module):
    """One logit for each patch: VGG style with spectral normalisation throughout (paper §3.2, figure 2).

    Ten convolutions, `features` → 2x → 4x → 8x channels (64 → 128 → 256 → 512 in the paper), every
    second one of stride 2, then two dense layers. The 4x4 grid in front of the dense layers is an
    adaptive average, which changes nothing for 128-pixel patches and admits any from 32 up.

    In training mode each forward pass advances the power iteration of every layer by one step. In
    evaluation mode the singular vectors stand still, as the generator's step needs it.
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


class UNetDiscriminator(nn.Module):
    """One logit for each pixel: the U-Net of Real-ESRGAN (Wang et al., arXiv:2107.10833, figure 6).

    Three halvings to eight times `features` channels, three doublings with the map of the same size added,
    then three convolutions. All but the first and the last layer are spectrally normalised and have no bias.
    Each pixel has its own logit, so textures get a local gradient.
    """

    def __init__(self, *, features: int = 64) -> None:
        super().__init__()
        f1, f2, f4, f8 = features, features * 2, features * 4, features * 8
        self.conv0 = Conv3x3(3, f1)
        self.conv1 = spectral_norm(Conv4x4(f1, f2, bias=False))
        self.conv2 = spectral_norm(Conv4x4(f2, f4, bias=False))
        self.conv3 = spectral_norm(Conv4x4(f4, f8, bias=False))
        self.conv4 = spectral_norm(Conv3x3(f8, f4, bias=False))
        self.conv5 = spectral_norm(Conv3x3(f4, f2, bias=False))
        self.conv6 = spectral_norm(Conv3x3(f2, f1, bias=False))
        self.conv7 = spectral_norm(Conv3x3(f1, f1, bias=False))
        self.conv8 = spectral_norm(Conv3x3(f1, f1, bias=False))
        self.conv9 = nn.Conv2d(f1, 1, 3, padding=1)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        x0 = self.conv0(image, SLOPE)
        x1 = self.conv1(x0, SLOPE)
        x2 = self.conv2(x1, SLOPE)
        x3 = self.conv3(x2, SLOPE)
        x = self.conv4(resize_bilinear(x3, x2), SLOPE) + x2
        x = self.conv5(resize_bilinear(x, x1), SLOPE) + x1
        x = self.conv6(resize_bilinear(x, x0), SLOPE) + x0
        x = self.conv8(self.conv7(x, SLOPE), SLOPE)
        logits: Tensor = self.conv9(x)
        return logits


class PatchDiscriminator(nn.Module):
    """One logit for each overlapping 70x70 window: pix2pix's (Isola et al., arXiv:1611.07004).

    C64-C128-C256-C512 with 4x4 kernels when `features` is 64, the first three of stride 2, and a last
    convolution to one channel. Spectral normalisation throughout replaces the original's batch
    normalisation, which would make the logits of a patch depend on the other patches of the batch.
    """

    def __init__(self, *, features: int = 64) -> None:
        super().__init__()
        f1, f2, f4, f8 = features, features * 2, features * 4, features * 8
        self.conv0 = spectral_norm(nn.Conv2d(3, f1, 4, stride=2, padding=1))
        self.conv1 = spectral_norm(Conv4x4(f1, f2))
        self.conv2 = spectral_norm(Conv4x4(f2, f4))
        self.conv3 = spectral_norm(nn.Conv2d(f4, f8, 4, padding=1))
        self.conv4 = spectral_norm(nn.Conv2d(f8, 1, 4, padding=1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 hp wp"]:
        x = image
        for conv in (self.conv0, self.conv1, self.conv2, self.conv3):
            x = F.leaky_relu(conv(x), SLOPE)
        logits: Tensor = self.conv4(x)
        return logits


@contextlib.contextmanager
def cached_spectral_weights(discriminator: nn.Module) -> Iterator[None]:
    """Compute each spectrally normalised weight once, in float32, for all forward passes inside.

    In training mode that is the one power iteration of the step; autocast would otherwise run it in bf16.
    """
    with parametrize.cached():
        with torch.autocast(next(discriminator.parameters()).device.type, enabled=False):
            for module in discriminator.modules():
                if parametrize.is_parametrized(module):
                    _ = module.weight
        yield
