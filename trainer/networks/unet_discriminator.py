"""The U-Net discriminator of Real-ESRGAN (Wang et al., arXiv:2107.10833, figure 6)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from trainer.networks.convolution import Conv3x3, Conv4x4
from trainer.networks.rrdb import SLOPE

Maps = Float[Tensor, "b c h w"]


class UNetDiscriminator(nn.Module):
    """HR or SR patches in [0, 1] to one logit for each pixel: positive means real.

    Three halvings down to eight times `features` channels, three doublings up with the map of the same size
    added, then three convolutions. All but the first and the last layer are spectrally normalised,
    and have no bias. The pixels of a patch are judged on their own, so textures get a local gradient.
    """

    def __init__(self, *, features: int = 64) -> None:
        super().__init__()
        f1, f2, f4, f8 = features, features * 2, features * 4, features * 8
        self.conv0 = Conv3x3(3, f1)
        self.conv1 = _normalised_conv(f1, f2, stride=2)
        self.conv2 = _normalised_conv(f2, f4, stride=2)
        self.conv3 = _normalised_conv(f4, f8, stride=2)
        self.conv4 = _normalised_conv(f8, f4)
        self.conv5 = _normalised_conv(f4, f2)
        self.conv6 = _normalised_conv(f2, f1)
        self.conv7 = _normalised_conv(f1, f1)
        self.conv8 = _normalised_conv(f1, f1)
        self.conv9 = nn.Conv2d(f1, 1, 3, padding=1)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        x0 = self.conv0(image, SLOPE)
        x1 = self.conv1(x0, SLOPE)
        x2 = self.conv2(x1, SLOPE)
        x3 = self.conv3(x2, SLOPE)
        x = self.conv4(_resize_to(x2, x3), SLOPE) + x2
        x = self.conv5(_resize_to(x1, x), SLOPE) + x1
        x = self.conv6(_resize_to(x0, x), SLOPE) + x0
        x = self.conv8(self.conv7(x, SLOPE), SLOPE)
        logits: Tensor = self.conv9(x)
        return logits


def _resize_to(target: Maps, x: Maps) -> Maps:
    """`x` enlarged bilinearly to the sides of `target`, in the precision of `x`."""
    with torch.autocast(x.device.type, enabled=False):  # autocast would enlarge in float32
        return F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)


def _normalised_conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    if stride == 1:
        return spectral_norm(Conv3x3(inputs, outputs, bias=False))
    return spectral_norm(Conv4x4(inputs, outputs, bias=False))
