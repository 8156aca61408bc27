"""The last convolution of a generator: in the precision of its weights, whatever autocast says.

bf16 has eight bits of mantissa, so a picture that leaves a network in it has steps of 1/256 near
white: as coarse as 8 bits, and a difference from HR that is smaller is gone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def unrounded(conv: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """`conv(x)` outside autocast."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = conv(x.to(conv.weight.dtype))
    return out
