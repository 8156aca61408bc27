"""The generator's loss (eq. 5 of the paper) and its first term; `content` and `adversarial` have the others."""

from __future__ import annotations

import msgspec
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class LossConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the generator's loss in stage `gan` (eq. 5); stage `psnr` is the pixel loss alone."""

    pixel: float = 1.0
    content: float = 1.0
    adversarial: float = 0.005


def pixel_loss(sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of values in [0, 1] (eq. 1)."""
    return F.l1_loss(sr.float(), hr)
