"""LPIPS, version 0.1: perceptual distance by AlexNet or VGG-16 (Zhang et al. 2018, arXiv:1801.03924).

Feature vectors are normalised to length 1 over the channels. Their squared differences are weighted by
channel with learnt weights, averaged over all positions and summed over five feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.networks.feature_extractors import WIDTHS, Backbone, BackboneKind
from trainer.perceptual.metric import (
    FeatureMaps,
    PerceptualMetric,
    build_metric,
    load_learnt_weights,
)

_EPSILON = 1e-10
_SHORT: dict[BackboneKind, str] = {"alexnet": "alex", "vgg16": "vgg"}
TITLES: dict[BackboneKind, str] = {"alexnet": "AlexNet", "vgg16": "VGG-16"}


class LPIPS:
    """Distance of each pair of two batches of RGB in [0, 1]: 0 for equal images, lower is better.

    Args:
        backbone: feature network with its weights.
        heads: five vectors on the device of the backbone, one weight for each channel of a feature map.
    """

    def __init__(self, backbone: Backbone, heads: Sequence[Tensor]) -> None:
        assert [len(head) for head in heads] == list(WIDTHS[backbone.kind])
        self.backbone = backbone
        self.heads = heads

    def __call__(
        self, sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Return the distances of the pairs, differentiable."""
        return self.compare(self.features(sr), self.features(hr))

    def features(self, image: Float[Tensor, "b 3 h w"]) -> FeatureMaps:
        """Return the five feature maps, normalised to length 1 over the channels."""
        return [_normalise_channels(layer) for layer in self.backbone(image)]

    def compare(self, sr: FeatureMaps, hr: FeatureMaps) -> Float[Tensor, " b"]:
        """Return the distances of the pairs from their features."""
        total = sr[0].new_zeros(len(sr[0]))
        for a, b, head in zip(sr, hr, self.heads, strict=True):
            total = total + torch.einsum("bchw,c->bhw", (a - b).square(), head).mean((1, 2))
        return total


def build_lpips(path: Path, *, device: torch.device) -> PerceptualMetric:
    """Return LPIPS with the network of a weights file; the learnt weights are part of usrgan.

    Raises:
        UsageError: the file is missing, damaged, or neither AlexNet nor VGG-16; names `--lpips`.
    """

    def build(backbone: Backbone) -> LPIPS:
        name = _SHORT[backbone.kind]
        return LPIPS(
            backbone,
            [load_learnt_weights(f"lpips.{name}.{level}").to(device) for level in range(5)],
        )

    return build_metric(
        path,
        name="lpips",
        option="--lpips",
        kinds=("alexnet", "vgg16"),
        pool="max",
        build=build,
        title=lambda kind: f"LPIPS v0.1 {TITLES[kind]}",
        device=device,
    )


def _normalise_channels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return feature vectors of length 1 over the channels."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)
