"""The content loss, eq. 2 of the paper: features of a frozen VGG-19, and where its weights come from."""

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

PUBLISHED, _DIGEST = "vgg19-dcbb9e9d.pth", "dcbb9e9d"
"""torchvision's ImageNet weights, and how the SHA-256 of the file begins."""
VGG19_URL = f"https://download.pytorch.org/models/{PUBLISHED}"
RANDOM_SEED = 19
Criterion = Literal["l1", "l2"]


def parse_layers(text: str) -> dict[str, float]:
    """`content.layer` as layers with their weights, in its order.

    Raises:
        UsageError: it is no such sum, or names no layer, or one twice.
    """
    found: dict[str, float] = {}
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:([0-9.eE-]+)\s*\*\s*)?(\w+)\s*", term)
        name = match[2] if match else term.strip()
        if not match or name not in layer_names():
            raise UsageError(
                f"content.layer: VGG-19 has no {name!r}; write one of {', '.join(layer_names())},"
                " or a sum such as 0.1*conv1_2 + conv5_4"
            )
        try:
            weight = float(match[1] or 1)
        except ValueError:
            weight = math.nan
        if not weight > 0 or name in found:
            matter = "is named twice" if name in found else f"has no weight above 0 ({match[1]})"
            raise UsageError(f"content.layer: {name} {matter}; correct the sum {text!r}")
        found[name] = weight
    return found


def smallest_content_patch(layer: str) -> int:
    """Pixels a side that `content.layer` needs: each level of VGG-19 but the first halves the picture."""
    return int(max(2 ** (int(name[4]) - 1) for name in parse_layers(layer)))


def content_loss(
    sr: Sequence[Float[Tensor, "b c h w"]],
    hr: Sequence[Float[Tensor, "b c h w"]],
    *,
    weights: Sequence[float],
    criterion: Criterion,
) -> Float[Tensor, ""]:
    """Mean difference of feature maps, squared (eq. 2) or absolute; a weighted sum over the layers."""
    total = sr[0].new_zeros((), dtype=torch.float32)
    for ours, theirs, weight in zip(sr, hr, weights, strict=True):
        difference = ours.float() - theirs.float()
        each = difference.square() if criterion == "l2" else difference.abs()
        total = total + weight * each.mean()
    return total


def build_content_features(config: ContentConfig, *, weights: Path | None) -> VGGFeatures:
    """The frozen feature network of the content loss.

    Raises:
        UsageError: the layer is unknown, or there are no weights and no network to fetch them.
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
            option, path, fix = "--vgg", weights, f"name torchvision's {PUBLISHED}"
        else:
            option, path = "content.features", _fetch_weights()
            fix = "remove it to have it fetched anew, or name another with --vgg FILE"
        stored, network.digest = read_state_dict(path, option=option, fix=fix)
        wanted = network.state_dict()
        for name, value in wanted.items():
            found = stored.get(name)
            if not isinstance(found, Tensor) or found.shape != value.shape:
                raise UsageError(
                    f"{option} {path}: has no {name} of shape {tuple(value.shape)}; {fix}"
                )
        network.load_state_dict({name: stored[name] for name in wanted})
    return network.eval().requires_grad_(False)


def unverified_weights_warning(network: VGGFeatures) -> str:
    """A line about features that are not those of torchvision's file; empty if they are, or random."""
    if not network.digest or network.digest.startswith(_DIGEST):
        return ""
    return (
        f"--vgg: is not torchvision's {PUBLISHED} (its SHA-256 is {network.digest[:8]}…);"
        " if it does not hold the same weights, the content loss is another one"
    )


def _fetch_weights() -> Path:
    """torchvision's file in the folder of torch.hub, downloaded if it is not there."""
    path = Path(torch.hub.get_dir(), "checkpoints", PUBLISHED)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(VGG19_URL, str(path), hash_prefix=_DIGEST)
    except (
        OSError,
        RuntimeError,
        http.client.HTTPException,
    ) as error:  # RuntimeError: another digest
        raise UsageError(
            f"content.features: VGG-19 cannot be fetched ({getattr(error, 'reason', error)});"
            " give the file with --vgg FILE or $USRGAN_VGG19,"
            " or train with --set content.features=random (no learnt features)"
        ) from None
    return path
