"""Content loss, eq. 2 of the paper: distance of features of a frozen VGG-19, and its weights."""

from __future__ import annotations

import http.client
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shards.errors import UsageError
from trainer.config.schema import ContentConfig
from trainer.networks.feature_extractors import VGGFeatures, layer_names
from trainer.weights.pth_import import read_state_dict

PUBLISHED_FILE, _DIGEST = "vgg19-dcbb9e9d.pth", "dcbb9e9d"
"""Name of torchvision's ImageNet weights, and the first digits of the file's SHA-256."""
VGG19_URL = f"https://download.pytorch.org/models/{PUBLISHED_FILE}"
RANDOM_SEED = 19
"""Seed of the features with `content.features = random`."""
Criterion = Literal["l1", "l2"]


def parse_layers(text: str) -> dict[str, float]:
    """Return the layers of `content.layer` with their weights, in its order.

    Raises:
        UsageError: the text is not a sum of layers, or names a layer that is unknown or repeated.
    """
    layers: dict[str, float] = {}
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:([0-9.eE-]+)\s*\*\s*)?(\w+)\s*", term)
        name = match[2] if match else term.strip()
        if not match or name not in layer_names():
            raise UsageError(
                f"content.layer: VGG-19 has no {name!r}; use one of {', '.join(layer_names())},"
                " or a sum such as 0.1*conv1_2 + conv5_4"
            )
        try:
            weight = float(match[1] or 1)
        except ValueError:
            weight = math.nan
        if not weight > 0 or name in layers:
            fault = "is named twice" if name in layers else f"has no weight above 0 ({match[1]})"
            raise UsageError(f"content.layer: {name} {fault}; correct the sum {text!r}")
        layers[name] = weight
    return layers


def smallest_content_patch(layer: str) -> int:
    """Return the smallest side of a patch for `content.layer`, in pixels; each level after the first halves it."""
    return int(max(2 ** (int(name[4]) - 1) for name in parse_layers(layer)))


def content_loss(
    sr: Sequence[Float[Tensor, "b c h w"]],
    hr: Sequence[Float[Tensor, "b c h w"]],
    *,
    weights: Sequence[float],
    criterion: Criterion,
) -> Float[Tensor, ""]:
    """Return the mean difference of feature maps, squared (eq. 2) or absolute, as a weighted sum of the layers."""
    total = sr[0].new_zeros((), dtype=torch.float32)
    for sr_map, hr_map, weight in zip(sr, hr, weights, strict=True):
        difference = sr_map.float() - hr_map.float()
        distance = difference.square() if criterion == "l2" else difference.abs()
        total = total + weight * distance.mean()
    return total


def build_content_features(config: ContentConfig, *, weights: Path | None) -> VGGFeatures:
    """Return the frozen feature network of the content loss.

    Args:
        config: settings of the content loss.
        weights: file of VGG-19 weights; None takes the downloaded file of torch.hub.

    Raises:
        UsageError: the layer is unknown, or the weights cannot be used or downloaded.
    """
    layers = tuple(parse_layers(config.layer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = VGGFeatures(
            layers=layers, activation=config.activation, input_range=config.input_range
        )
        if config.features == "random":
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
    if config.features == "vgg19":
        if weights:
            option, path, fix = "--vgg", weights, f"use torchvision's {PUBLISHED_FILE}"
        else:
            option, path = "content.features", _download_weights()
            fix = "remove it to download it again, or use another file with --vgg FILE"
        stored, network.digest = read_state_dict(path, option=option, fix=fix)
        expected = network.state_dict()
        for name, value in expected.items():
            tensor = stored.get(name)
            if not isinstance(tensor, Tensor) or tensor.shape != value.shape:
                raise UsageError(
                    f"{option} {path}: has no {name} of shape {tuple(value.shape)}; {fix}"
                )
        network.load_state_dict({name: stored[name] for name in expected})
    return network.eval().requires_grad_(False)


def unverified_weights_warning(network: VGGFeatures) -> str:
    """Return a warning if the weights are not torchvision's file; empty for torchvision's and random weights."""
    if not network.digest or network.digest.startswith(_DIGEST):
        return ""
    return (
        f"--vgg: is not torchvision's {PUBLISHED_FILE} (its SHA-256 is {network.digest[:8]}…);"
        " unless it has the same weights, the content loss is a different one"
    )


def _download_weights() -> Path:
    """Return torchvision's file in the folder of torch.hub; download it if it is missing."""
    path = Path(torch.hub.get_dir(), "checkpoints", PUBLISHED_FILE)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(VGG19_URL, str(path), hash_prefix=_DIGEST)
    except (
        OSError,
        RuntimeError,
        http.client.HTTPException,
    ) as error:  # RuntimeError: wrong digest
        raise UsageError(
            f"content.features: VGG-19 cannot be downloaded ({getattr(error, 'reason', error)});"
            " use a file with --vgg FILE or $USRGAN_VGG19,"
            " or train with --set content.features=random (no learnt features)"
        ) from None
    return path
