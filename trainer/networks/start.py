"""How layers start: near the answer, not at random (docs/internals/decisions/0005)."""

from __future__ import annotations

import torch
from torch import nn

COLOURS = 3


def pass_colours(conv: nn.Conv2d, *, phases: int = 1) -> None:
    """Let the first three channels carry the picture's colours through at the start.

    A chain of such layers makes a fresh network an enlargement with a little noise, so training
    begins near the answer and not with learning to copy. The phases of a pixel shuffle start alike,
    without a checkerboard (Aitken et al. 2017, arXiv:1707.02937).
    """
    assert conv.bias is not None
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        conv.weight.copy_(conv.weight[::phases].repeat_interleave(phases, 0))
        conv.weight[: COLOURS * phases].mul_(0.1)
        for colour in range(COLOURS):
            conv.weight[colour * phases : (colour + 1) * phases, colour, middle, middle] += 1
        nn.init.zeros_(conv.bias)
