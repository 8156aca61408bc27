"""The patch discriminator of pix2pix (Isola et al., arXiv:1611.07004), spectrally normalised."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from trainer.networks.convolution import Conv4x4
from trainer.networks.rrdb import SLOPE


class PatchDiscriminator(nn.Module):
    """HR or SR patches in [0, 1] to a map of logits, one for each overlapping 70x70 window.

    C64-C128-C256-C512 with 4x4 kernels when `features` is 64, the first three of stride 2, and a last
    convolution to one channel; spectral normalisation throughout in place of the original's batch
    normalisation, which would make the judgement of a patch depend on its neighbours in the batch.
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
