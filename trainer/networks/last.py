"""The last convolution of a generator, computed in the precision of its weights whatever autocast says.

bf16 has eight bits of mantissa: an image that leaves a network in bf16 has steps of 1/256 near white,
as coarse as 8 bits, and a smaller difference from HR is lost.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LastConv(nn.Conv2d):
    """A convolution to RGB that runs outside autocast."""

    def __init__(
        self, inputs: int, side: int, *, padding_mode: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__(inputs, 3, side, padding=side // 2, padding_mode=padding_mode)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:  # noqa: A002  the name of nn.Conv2d
        """RGB in the precision of the weights, float32 in training."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
