"""Convolutions of bf16 pictures on a CPU with fewer products: 2.25 times where they are 3x3, and 1.78 times
where they are 4x4 of stride 2 (`tiles_3x3.c` has the algorithm, `chains` its gradients).

Tiles are rounded to bf16 before the products, where the direct way rounds only the sum, so the result is off by
nearly twice as much: 0.44 % of its spread instead of 0.23 % (`tests/trainer/test_winograd.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.networks.chains import Chain
from trainer.networks.halving import Halved
from trainer.networks.planes import KEEPING, Tiling

Maps = Float[Tensor, "b c h w"]
_LEAST_WORK = 32 * 32
"""Inputs times outputs from which on the products saved are more than what the tiles cost."""


def fits(x: Maps, weights: Sequence[Tensor], tiling: Tiling = KEEPING) -> bool:
    """Whether a chain can be Winograd's, and gains by it: bf16 on a CPU, whole tiles, channels enough."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not x.numel():
        return False
    side = 2 * tiling.stride
    if torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.shape[2] % side or x.shape[3] % side:
        return False
    if any(weight.shape[0] % 16 or weight.shape[1] % 16 for weight in weights):
        return False
    return max(weight.shape[0] * weight.shape[1] for weight in weights) >= _LEAST_WORK


def chain(
    x: Maps,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    slope: float = 1.0,
    last_slope: float = 1.0,
) -> Maps:
    """What the last convolution makes, through a LeakyReLU of `last_slope`; the others have one of `slope`."""
    slopes = [slope] * (len(weights) - 1) + [last_slope]
    with torch.autocast("cpu", enabled=False):
        out: Tensor = Chain.apply(x.to(torch.bfloat16), slopes, *weights, *biases)  # type: ignore[no-untyped-call]  # as torch has it
    return out


def halved(x: Maps, weight: Tensor, bias: Tensor | None, slope: float) -> Maps:
    """The 4x4 convolution of stride 2, through a LeakyReLU."""
    with torch.autocast("cpu", enabled=False):
        out: Tensor = Halved.apply(x.to(torch.bfloat16), slope, weight, bias)  # type: ignore[no-untyped-call]  # as torch has it
    return out
