"""What the perceptual distances share: the network's weights from the user, and a way to judge a pair.

The learnt weights of LPIPS and DISTS are a few kilobytes and come with usrgan
(`learnt.safetensors`, whose metadata holds their licences). The networks are too large for that:
the user gives torchvision's files, `.pth` or `.safetensors`.
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

PUBLISHED: dict[BackboneKind, tuple[str, str]] = {
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
LEARNT = Path(__file__).with_name("learnt.safetensors")


FeatureMaps = list[Float[Tensor, "b c h w"]]
"""What a distance compares: activations of a batch of pictures."""


class FeatureDistance(Protocol):
    """LPIPS or DISTS, in two halves: what depends on one picture, and the comparison."""

    def features(self, image: Float[Tensor, "b 3 h w"]) -> FeatureMaps:
        """The activations of RGB in [0, 1]."""

    def compare(self, sr: FeatureMaps, hr: FeatureMaps) -> Float[Tensor, " b"]:
        """Distances of the pairs: 0 is alike, more is worse."""


class PerceptualMetric(NamedTuple):
    """One perceptual distance, ready to be asked."""

    name: str
    """`lpips` or `dists`."""
    protocol: str
    """What the numbers are, for every table that shows them."""
    warning: str
    """Not empty where the network's weights are not the published ones."""
    smallest: int
    """Pixels a side that a picture needs."""
    module: FeatureDistance
    device: torch.device

    def metric_for(self, hr: RGB8) -> Callable[[RGB8], float]:
        """The distance of any picture [h w 3] from this one, which is looked at once.

        Raises:
            UsrganError: it is too small, or the device's memory does not hold the activations.
        """
        height, width = hr.shape[:2]
        if min(height, width) < self.smallest:
            raise UsrganError(
                f"an image of {width}x{height} is too small for {self.name.upper()}:"
                f" {self.smallest} pixels a side are needed"
            )
        what = f"{self.name.upper()} of {width}x{height} pixels"
        wanted = self._features(hr, what)

        def distance(sr: RGB8) -> float:
            assert sr.shape == hr.shape, (sr.shape, hr.shape)
            return float(self.module.compare(self._features(sr, what), wanted))

        return distance

    @torch.inference_mode()
    def _features(self, image: RGB8, what: str) -> FeatureMaps:
        # HWC => NCHW
        pixels = torch.from_numpy(image.copy()).to(self.device)
        batch = pixels.permute(2, 0, 1)[None].float().div(255)
        with explain_out_of_memory(what, fix="use --device cpu, or leave it out"), full_float32():
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
    """A distance through the network that lies in a weights file.

    Raises:
        UsageError: the file cannot be used; names `option` and which file would do.
    """
    fix = "name torchvision's " + " or ".join(PUBLISHED[kind][0] for kind in kinds)
    weights, digest = read_state_dict(path, option=option, fix=fix)
    kind = detect_backbone(weights)
    if kind is None or kind not in kinds:
        raise UsageError(f"{option} {path}: {_describe_content(weights, kind)}; {fix}")
    backbone = Backbone(kind, pool=pool)
    backbone.load_state_dict({key: weights[key].float() for key in backbone.expected_shapes()})
    told, warning = f"{title(kind)}: whole images, lower is better", ""
    if digest != PUBLISHED[kind][1]:
        told += f" (weights of SHA-256 {digest[:8]}, not torchvision's)"
        warning = (
            f"{option} {path}: is not torchvision's {PUBLISHED[kind][0]} (its SHA-256 is {digest[:8]}…);"
            " numbers of other programs do not compare"
        )
    module = build(backbone.eval().requires_grad_(False).to(device))
    return PerceptualMetric(name, told, warning, SMALLEST[kind], module, device)


def load_learnt_weights(name: str) -> Tensor:
    """One of the vectors that come with usrgan, float32."""
    return _load_all_learnt()[name]


@cache
def _load_all_learnt() -> dict[str, Tensor]:
    return load_tensors(LEARNT)[0]


def _describe_content(weights: dict[str, Tensor], kind: BackboneKind | None) -> str:
    """What a file is that is not what was asked for."""
    if kind is not None:
        return f"holds {kind}"
    if any(re.fullmatch(r"lin\d\.model\.1\.weight", name) for name in weights):
        return "holds LPIPS' heads, which come with usrgan; the network is what is missing"
    if {"alpha", "beta"} <= weights.keys():
        return "holds DISTS' learnt weights, which come with usrgan; the network is what is missing"
    return "holds another network"
