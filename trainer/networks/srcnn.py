"""SRCNN 9-5-5 (Dong et al., arXiv:1501.00092), the baseline of the paper's Table 1.

The journal version compares 9-1-5, 9-3-5 and 9-5-5. The last scores best, and its 30.5 dB on Set5 x4 are
what the field quotes. Those are for luma alone; here, as in its section on colour channels, input and
output are RGB.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.networks.layers import Float32Conv, init_identity_rgb


class SRCNN(nn.Module):
    """LR RGB in [0, 1] to SR RGB around [0, 1]: bicubic enlargement, then three convolutions.

    The filters are 9, 5 and 5 wide, with `features` and half as many channels between them. Borders
    are padded by replication; the original leaves them out.
    """

    def __init__(self, *, scale: int = 4, features: int = 64) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(3, features, 9, padding=4, padding_mode="replicate")
        self.conv2 = nn.Conv2d(features, features // 2, 5, padding=2, padding_mode="replicate")
        self.conv3 = Float32Conv(features // 2, 5, padding_mode="replicate")
        for conv in (self.conv1, self.conv2, self.conv3):
            init_identity_rgb(conv)

    def forward(self, lr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 sh sw"]:
        # with antialias torch's cubic has a = -0.5, as PIL's and MATLAB's
        size = (lr.shape[2] * self.scale, lr.shape[3] * self.scale)
        x = F.interpolate(lr, size=size, mode="bicubic", align_corners=False, antialias=True)
        out: Tensor = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return out
