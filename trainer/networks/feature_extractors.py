"""Convolutions of ImageNet classifiers: VGG-19 for the content loss, AlexNet and VGG-16 for perceptual metrics.

They load torchvision's keys (`features.N.weight`), so torchvision itself is not needed. AlexNet: Krizhevsky
2014 (arXiv:1404.5997); VGG: arXiv:1409.1556.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

InputRange = Literal["imagenet", "unit"]
Activation = Literal["before", "after"]
BackboneKind = Literal["alexnet", "vgg16"]
Pool = Literal["max", "l2"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""RGB statistics that torchvision's published weights were trained with."""
WIDTHS: dict[BackboneKind, tuple[int, ...]] = {
    "alexnet": (64, 192, 384, 256, 256),
    "vgg16": (64, 128, 256, 512, 512),
}
"""Channels of the five activations that a perceptual metric compares."""
SMALLEST: dict[BackboneKind, int] = {"alexnet": 31, "vgg16": 16}
"""Least side of an image in pixels: one value is left in the last activation."""
_VGG16_LEVELS = (2, 2, 3, 3, 3)
_VGG19_LEVELS = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}
"""Number of convolutions in each level of VGG-19."""


class ImageNetNormalised(nn.Module):
    """Base of the extractors: RGB in [0, 1] to (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), False)

    def normalise(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return (image - self.mean) / self.std


def layer_names() -> list[str]:
    """Names of VGG-19's convolutions, `conv1_1` … `conv5_4`."""
    return [f"conv{level}_{i}" for level, n in _VGG19_LEVELS.items() for i in range(1, n + 1)]


class VGGFeatures(ImageNetNormalised):
    """VGG-19: RGB in [0, 1] to the feature maps of some layers, before or after their ReLU (paper §7.1.2).

    `input_range` is what the first convolution sees: "imagenet" is (x - mean) / std, "unit" is x itself. The
    network ends at the deepest of `layers`; the maps come in the order in which `layers` names them.
    """

    digest: str = ""
    """SHA-256 of the weights file."""

    def __init__(
        self, *, layers: Sequence[str], activation: Activation, input_range: InputRange
    ) -> None:
        super().__init__()
        self.input_range = input_range
        built: list[nn.Module] = []
        taps: dict[str, int] = {}
        inputs = 3
        for name in layer_names():
            level, number = int(name[4]), int(name[6])
            if level > 1 and number == 1:
                built.append(nn.MaxPool2d(2))
            width = min(64 * 2 ** (level - 1), 512)
            built += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
            if name in layers:
                taps[name] = len(built) - (2 if activation == "before" else 1)
            if len(taps) == len(layers):
                break
        self.taps = [taps[name] for name in layers]
        self.features = nn.Sequential(*built[: max(self.taps) + 1])

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hl wl"]]:
        x = self.normalise(image) if self.input_range == "imagenet" else image
        maps: dict[int, Tensor] = {}
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps[number] = x
        return [maps[tap] for tap in self.taps]


class L2Pool(nn.Module):
    """Halves the sides by the root of a blurred square (Ding et al. 2020, §3.1), without aliasing."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        window = torch.tensor([0.25, 0.5, 0.25])  # Hann, without its zero ends
        self.register_buffer("kernel", torch.outer(window, window)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        kernel = self.kernel.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class Backbone(ImageNetNormalised):
    """AlexNet or VGG-16: RGB in [0, 1] to five activations, each after a ReLU.

    The last convolution of each level of VGG-16 (`relu1_2` to `relu5_3`), and all five of AlexNet.
    """

    def __init__(self, kind: BackboneKind, *, pool: Pool = "max") -> None:
        super().__init__()
        self.kind = kind
        layers, self.taps = _alexnet() if kind == "alexnet" else _vgg16(pool)
        self.features = nn.Sequential(*layers)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hl wl"]]:
        x = self.normalise(image)
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps.append(x)
        return maps

    def expected_shapes(self) -> dict[str, torch.Size]:
        """Name and shape of every weight that a file must hold."""
        return {name: value.shape for name, value in self.state_dict().items()}


def detect_backbone(weights: Mapping[str, Tensor]) -> BackboneKind | None:
    """The backbone that a state dict belongs to, by its names and shapes; None for another network."""
    kinds: tuple[BackboneKind, ...] = ("alexnet", "vgg16")
    for kind in kinds:
        with torch.device("meta"):
            expected = Backbone(kind).expected_shapes()
        convolutions = {name for name in weights if name.startswith("features.")}
        fits = all(name in weights and weights[name].shape == expected[name] for name in expected)
        if fits and convolutions == expected.keys():
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
