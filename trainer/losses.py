"""The losses of both stages, eq. 1 to 5 of the paper, as plain functions in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import UsageError
from trainer.networks.vgg import Activation, InputRange, VGGFeatures, layer_names

VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
"""torchvision's ImageNet weights; the eight digits are the start of the file's SHA-256."""
RANDOM_SEED = 19


class LossConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the generator's loss in stage `gan` (eq. 5); stage `psnr` is the pixel loss alone."""

    pixel: float = 1.0
    content: float = 1.0
    adversarial: float = 0.005


class ContentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the content loss compares (eq. 2); the paper names VGG-19 and "a high-level layer"."""

    features: Literal["vgg19", "random"] = "vgg19"
    """"random": the same network with seeded random weights, for machines without the file."""
    layer: str = "conv5_4"
    activation: Activation = "before"
    """Before or after the layer's ReLU."""
    criterion: Literal["l1", "l2"] = "l2"
    """Mean absolute or mean squared difference of the feature maps; eq. 2 is "l2"."""
    input_range: InputRange = "imagenet"


def pixel_loss(sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of values in [0, 1] (eq. 1)."""
    return F.l1_loss(sr.float(), hr)


def content_loss(
    sr: Float[Tensor, "b c h w"], hr: Float[Tensor, "b c h w"], *, criterion: Literal["l1", "l2"]
) -> Float[Tensor, ""]:
    """Mean difference of two feature maps: squared (eq. 2) or absolute."""
    difference = sr.float() - hr.float()
    return difference.square().mean() if criterion == "l2" else difference.abs().mean()


def generator_adversarial_loss(fake_logits: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """-log D(G(lr)), the non-saturating form that the paper's text names.

    Its eq. 3 prints the saturating log(1 - D(G(lr))), which has the same fixed point but hardly any
    gradient while the discriminator wins.
    """
    return F.softplus(-fake_logits.float()).mean()


def discriminator_loss(
    real_logits: Float[Tensor, " b"], fake_logits: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """-log D(hr) - log(1 - D(G(lr))) (eq. 4 with the sign of a loss)."""
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def build_content_features(config: ContentConfig, *, weights: Path | None) -> VGGFeatures:
    """The frozen feature network of the content loss.

    Raises:
        UsageError: the layer is unknown, or there are no weights and no network to fetch them.
    """
    if config.layer not in layer_names():
        raise UsageError(
            f"content.layer: VGG-19 has no {config.layer!r}; it has {', '.join(layer_names())}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = VGGFeatures(
            layer=config.layer, activation=config.activation, input_range=config.input_range
        )
        if config.features == "random":
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
    if config.features == "vgg19":
        stored = _read_vgg19(weights) if weights else _fetch_vgg19()
        wanted = network.state_dict()
        for name, value in wanted.items():
            found = stored.get(name)
            if not isinstance(found, Tensor) or found.shape != value.shape:
                raise UsageError(
                    f"{weights or VGG19_URL}: has no {name} of shape {tuple(value.shape)};"
                    " name torchvision's VGG-19 with --vgg FILE"
                )
        network.load_state_dict({name: stored[name] for name in wanted})
    return network.eval().requires_grad_(False)


def _read_vgg19(path: Path) -> dict[str, Tensor]:
    from trainer.weights import load_tensors  # weights knows generators, which know no losses

    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"--vgg {path}: there is no such file; check the path") from None
    except Exception as error:  # whatever unpickling a foreign file raises
        raise UsageError(
            f"--vgg {path}: is no PyTorch file that can be read ({type(error).__name__});"
            " name torchvision's VGG-19 weights, or download them again"
        ) from error
    if not isinstance(stored, dict):
        raise UsageError(f"--vgg {path}: holds no state dict; name torchvision's VGG-19 file")
    return stored


def _fetch_vgg19() -> dict[str, Tensor]:
    try:
        fetched: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            VGG19_URL, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: the download has another digest
        raise UsageError(
            f"content.features: VGG-19 cannot be fetched ({getattr(error, 'reason', error)});"
            " give the file with --vgg FILE or $USRGAN_VGG19,"
            " or train with --set content.features=random (no learnt features)"
        ) from None
    return fetched
