"""The convolutions of AlexNet and VGG-16, as perceptual distances look through them.

Plain modules of ours that load torchvision-format keys (`features.N.weight`), so that torchvision
itself is not needed. AlexNet: Krizhevsky 2014 (arXiv:1404.5997); VGG-16: arXiv:1409.1556.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

TrunkKind = Literal["alexnet", "vgg16"]
Pool = Literal["max", "l2"]

WIDTHS: dict[TrunkKind, tuple[int, ...]] = {
    "alexnet": (64, 192, 384, 256, 256),
    "vgg16": (64, 128, 256, 512, 512),
}
"""Channels of the five activations that are looked at."""
SMALLEST: dict[TrunkKind, int] = {"alexnet": 31, "vgg16": 16}
"""Pixels a side of which one value is left at the last activation."""
_VGG16_LEVELS = (2, 2, 3, 3, 3)


class L2Pool(nn.Module):
    """Halves the size by the root of a blurred square (Ding et al. 2020, §3.1): no aliasing."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.tensor([0.25, 0.5, 0.25])  # Hann, without its zero ends
        self.register_buffer("kernel", torch.outer(window, window)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        kernel = self.kernel.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class Trunk(nn.Module):
    """RGB in [0, 1] to five activations, each after a ReLU, normalised as ImageNet's classifiers are.

    The last convolution of each level of VGG-16 (`relu1_2` to `relu5_3`), and all five of AlexNet.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: TrunkKind, *, pool: Pool = "max") -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), False)
        layers, self.taps = _alexnet() if kind == "alexnet" else _vgg16(pool)
        self.features = nn.Sequential(*layers)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hl wl"]]:
        x = (image - self.mean) / self.std
        seen = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                seen.append(x)
        return seen

    def wanted(self) -> dict[str, torch.Size]:
        """Name and shape of every weight that a file must have."""
        return {name: value.shape for name, value in self.state_dict().items()}


def kind_of(weights: Mapping[str, Tensor]) -> TrunkKind | None:
    """Which of the two a state dict belongs to, by its names and shapes; None: another network."""
    kinds: tuple[TrunkKind, ...] = ("alexnet", "vgg16")
    for kind in kinds:
        with torch.device("meta"):
            wanted = Trunk(kind).wanted()
        convolutions = {name for name in weights if name.startswith("features.")}
        fits = all(name in weights and weights[name].shape == wanted[name] for name in wanted)
        if fits and convolutions == wanted.keys():
            return kind
    return None


def _alexnet() -> tuple[list[nn.Module], tuple[int, ...]]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    ], (1, 4, 7, 9, 11)  # fmt: skip


def _vgg16(pool: Pool) -> tuple[list[nn.Module], tuple[int, ...]]:
    layers = list(_vgg16_layers(pool))
    ends = [
        number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d | L2Pool)
    ]
    return layers, (*(number - 1 for number in ends), len(layers) - 1)


def _vgg16_layers(pool: Pool) -> Iterator[nn.Module]:
    inputs = 3
    for level, (count, width) in enumerate(zip(_VGG16_LEVELS, WIDTHS["vgg16"], strict=True)):
        if level:
            yield nn.MaxPool2d(2) if pool == "max" else L2Pool()
        for _ in range(count):
            yield nn.Conv2d(inputs, width, 3, padding=1)
            yield nn.ReLU()
            inputs = width
