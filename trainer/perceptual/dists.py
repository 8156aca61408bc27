"""DISTS: distance of texture and structure by VGG-16 (Ding et al. 2020, arXiv:2004.07728).

Each channel of the image and of five feature maps gives two SSIM-like terms: one of the means
(texture) and one of the covariance (structure). Learnt weights, which add up to 1, average them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.networks.feature_extractors import WIDTHS, Backbone
from trainer.perceptual.metric import (
    FeatureMaps,
    PerceptualMetric,
    build_metric,
    load_learnt_weights,
)

_C1 = _C2 = 1e-6
CHANNELS = 3 + sum(WIDTHS["vgg16"])
"""Channels of the image and of the five feature maps."""


class DISTS:
    """Distance of each pair of two batches of RGB in [0, 1]: 0 for equal images, at most about 1.

    Args:
        backbone: VGG-16 with L2 pooling and its weights.
        texture: weight of each channel's mean (the authors' alpha), on the device of the backbone.
        structure: weight of each channel's covariance (the authors' beta), on the same device.
    """

    def __init__(self, backbone: Backbone, texture: Tensor, structure: Tensor) -> None:
        assert len(texture) == len(structure) == CHANNELS
        total = texture.sum() + structure.sum()
        self.backbone = backbone
        self.texture, self.structure = texture / total, structure / total

    def __call__(
        self, sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Return the distances of the pairs, differentiable."""
        return self.compare(self.features(sr), self.features(hr))

    def features(self, image: Float[Tensor, "b 3 h w"]) -> FeatureMaps:
        """Return the image and its five feature maps."""
        return [image, *self.backbone(image)]

    def compare(self, sr: FeatureMaps, hr: FeatureMaps) -> Float[Tensor, " b"]:
        """Return the distances of the pairs from their features."""
        textures, structures = [], []
        for a, b in zip(sr, hr, strict=True):
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            # subtract the means first: E[ab] - E[a]E[b] loses digits in float32
            off_a, off_b = a - mean_a[..., None, None], b - mean_b[..., None, None]
            covariance = (off_a * off_b).mean((2, 3))
            variances = off_a.square().mean((2, 3)) + off_b.square().mean((2, 3))
            textures.append((2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1))
            structures.append((2 * covariance + _C2) / (variances + _C2))
        similarity = (
            torch.cat(textures, 1) @ self.texture + torch.cat(structures, 1) @ self.structure
        )
        return 1 - similarity


def build_dists(path: Path, *, device: torch.device) -> PerceptualMetric:
    """Return DISTS with the VGG-16 of a weights file; the learnt weights are part of usrgan.

    Raises:
        UsageError: the file is missing, damaged or not a VGG-16; names `--dists`.
    """
    return build_metric(
        path,
        name="dists",
        option="--dists",
        kinds=("vgg16",),
        pool="l2",
        build=lambda backbone: DISTS(
            backbone,
            load_learnt_weights("dists.alpha").to(device),
            load_learnt_weights("dists.beta").to(device),
        ),
        title=lambda _: "DISTS VGG-16",
        device=device,
    )
