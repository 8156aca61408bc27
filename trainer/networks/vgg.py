"""VGG-19 as a feature extractor for the content loss (paper §7.1.2; arXiv:1409.1556).

Sixteen convolutions of ours that load torchvision-format keys (`features.N.weight`), so that
torchvision itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.networks.convolution import Conv3x3

InputRange = Literal["imagenet", "unit"]
Activation = Literal["before", "after"]

_CONVOLUTIONS = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}
"""How many convolutions each level of VGG-19 has."""


def layer_names() -> list[str]:
    """`conv1_1` … `conv5_4`."""
    return [f"conv{level}_{i}" for level, n in _CONVOLUTIONS.items() for i in range(1, n + 1)]


class VGGFeatures(nn.Module):
    """RGB in [0, 1] to the feature maps of some layers, taken before or after their ReLU.

    `input_range` says what the first convolution sees: "imagenet" is (x - mean) / std with the
    constants that the published torchvision weights were trained with, "unit" is x itself. The
    network ends at the deepest of `layers`; the maps come in the order in which `layers` names them.
    """

    mean: Tensor
    std: Tensor
    digest: str = ""
    """SHA-256 of the file that the weights are from."""

    def __init__(
        self, *, layers: Sequence[str], activation: Activation, input_range: InputRange
    ) -> None:
        super().__init__()
        self.input_range = input_range
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), False)
        built: list[nn.Module] = []
        taps: dict[str, int] = {}
        inputs = 3
        for name in layer_names():
            level, number = int(name[4]), int(name[6])
            if level > 1 and number == 1:
                built.append(nn.MaxPool2d(2))
            width = min(64 * 2 ** (level - 1), 512)
            built += [Conv3x3(inputs, width), nn.ReLU()]
            inputs = width
            if name in layers:
                taps[name] = len(built) - (2 if activation == "before" else 1)
            if len(taps) == len(layers):
                break
        self.taps = [taps[name] for name in layers]
        self.features = nn.Sequential(*built[: max(self.taps) + 1])

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hl wl"]]:
        if self.input_range == "imagenet":
            image = (image - self.mean) / self.std
        found: dict[int, Tensor] = {}
        for number, layer in enumerate(self.features):
            if isinstance(layer, Conv3x3) and number not in self.taps:
                image = layer(image, 0.0)  # with the ReLU that follows
            elif not (isinstance(layer, nn.ReLU) and number - 1 not in self.taps):
                image = layer(image)
            if number in self.taps:
                found[number] = image
        return [found[tap] for tap in self.taps]
