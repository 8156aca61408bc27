"""Pixel loss, eq. 1 of the paper."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def pixel_loss(sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference of values in [0, 1] (eq. 1)."""
    return F.l1_loss(sr.float(), hr)
