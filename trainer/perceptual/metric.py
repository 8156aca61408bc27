"""Common part of LPIPS and DISTS: the metric of an image pair and the weights of its feature network.

The learnt weights of LPIPS and DISTS have a few kilobytes and are part of usrgan
(`learnt.safetensors`, with their licences in the metadata). The feature networks are too large for
that: the user gives torchvision's files, `.pth` or `.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from shards.errors import UsageError, UsrganError
from shards.format.png import RGB8
from trainer.device import explain_out_of_memory, full_float32
from trainer.networks.feature_extractors import (
    SMALLEST,
    Backbone,
    BackboneKind,
    Pool,
    detect_backbone,
)
from trainer.weights.pth_import import read_state_dict
from trainer.weights.safetensors_io import load_tensors

PUBLISHED_FILES: dict[BackboneKind, tuple[str, str]] = {
    "alexnet": (
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg16": (
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
}
"""Name and SHA-256 of torchvision's files, below https://download.pytorch.org/models/."""
LEARNT_WEIGHTS = Path(__file__).with_name("learnt.safetensors")
"""File of the learnt weights of LPIPS and DISTS."""


FeatureMaps = list[Float[Tensor, "b c h w"]]
"""Feature maps of a batch of images."""


class FeatureDistance(Protocol):
    """LPIPS or DISTS in two halves: features of one batch, and their comparison."""

    def features(self, image: Float[Tensor, "b 3 h w"]) -> FeatureMaps:
        """Return the feature maps of RGB in [0, 1]."""

    def compare(self, sr: FeatureMaps, hr: FeatureMaps) -> Float[Tensor, " b"]:
        """Return the distances of the pairs; 0 for equal images."""


class PerceptualMetric(NamedTuple):
    """Perceptual distance of image pairs, with a loaded feature network."""

    name: str
    """`lpips` or `dists`."""
    protocol: str
    """Definition of the scores, printed with every table."""
    warning: str
    """Warning if the weights of the network are not the published ones; otherwise empty."""
    smallest: int
    """Smallest side of an image, in pixels."""
    module: FeatureDistance
    device: torch.device

    def metric_for(self, hr: RGB8) -> Callable[[RGB8], float]:
        """Return a function from SR [h w 3] to its distance from HR [h w 3], both RGB.

        The features of HR are computed once.

        Raises:
            UsrganError: the image is too small, or its feature maps do not fit into the device's memory.
        """
        height, width = hr.shape[:2]
        if min(height, width) < self.smallest:
            raise UsrganError(
                f"an image of {width}x{height} is too small for {self.name.upper()};"
                f" use one of at least {self.smallest} pixels a side"
            )
        subject = f"{self.name.upper()} of {width}x{height} pixels"
        hr_features = self._compute_features(hr, subject)

        def distance(sr: RGB8) -> float:
            assert sr.shape == hr.shape, (sr.shape, hr.shape)
            return float(self.module.compare(self._compute_features(sr, subject), hr_features))

        return distance

    @torch.inference_mode()
    def _compute_features(self, image: RGB8, subject: str) -> FeatureMaps:
        # HWC => NCHW
        pixels = torch.from_numpy(image.copy()).to(self.device)
        batch = pixels.permute(2, 0, 1)[None].float().div(255)
        with (
            explain_out_of_memory(subject, fix="use --device cpu, or omit this metric"),
            full_float32(),
        ):
            return self.module.features(batch)


def build_metric(
    path: Path,
    *,
    name: str,
    option: str,
    kinds: Sequence[BackboneKind],
    pool: Pool,
    build: Callable[[Backbone], FeatureDistance],
    title: Callable[[BackboneKind], str],
    device: torch.device,
) -> PerceptualMetric:
    """Return a metric with the feature network of a weights file.

    Args:
        path: weights file, `.pth` or `.safetensors`.
        name: name of the metric in tables.
        option: option that names the file, for messages.
        kinds: accepted networks.
        pool: pooling of the network.
        build: function from the network to the distance.
        title: function from the network's kind to the title in the protocol.
        device: device of the metric.

    Raises:
        UsageError: the file cannot be used; names `option` and a suitable file.
    """
    fix = "use torchvision's " + " or ".join(PUBLISHED_FILES[kind][0] for kind in kinds)
    weights, digest = read_state_dict(path, option=option, fix=fix)
    kind = detect_backbone(weights)
    if kind is None or kind not in kinds:
        raise UsageError(f"{option} {path}: {_describe_content(weights, kind)}; {fix}")
    backbone = Backbone(kind, pool=pool)
    backbone.load_state_dict({key: weights[key].float() for key in backbone.expected_shapes()})
    protocol, warning = f"{title(kind)}: whole images, lower is better", ""
    if digest != PUBLISHED_FILES[kind][1]:
        protocol += f" (weights of SHA-256 {digest[:8]}, not torchvision's)"
        warning = (
            f"{option} {path}: is not torchvision's {PUBLISHED_FILES[kind][0]} (its SHA-256 is {digest[:8]}…);"
            " scores are not comparable with those of other programs"
        )
    module = build(backbone.eval().requires_grad_(False).to(device))
    return PerceptualMetric(name, protocol, warning, SMALLEST[kind], module, device)


def load_learnt_weights(name: str) -> Tensor:
    """Return one of the vectors of `learnt.safetensors`, float32."""
    return _load_all_learnt()[name]


@cache
def _load_all_learnt() -> dict[str, Tensor]:
    return load_tensors(LEARNT_WEIGHTS)[0]


def _describe_content(weights: dict[str, Tensor], kind: BackboneKind | None) -> str:
    """Return the content of an unsuitable file in words, for a message."""
    if kind is not None:
        return f"contains {kind}"
    if any(re.fullmatch(r"lin\d\.model\.1\.weight", name) for name in weights):
        return "contains LPIPS' heads, which are part of usrgan, and not the network"
    if {"alpha", "beta"} <= weights.keys():
        return "contains DISTS' learnt weights, which are part of usrgan, and not the network"
    return "contains another network"
