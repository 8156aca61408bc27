"""Which networks a configuration asks for, and how they are built."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from torch import nn

from trainer.networks.discriminator import VGGDiscriminator
from trainer.networks.patch_discriminator import PatchDiscriminator
from trainer.networks.rrdb import Norm, RRDBNet, Upsampler
from trainer.networks.srcnn import SRCNN
from trainer.networks.srresnet import SRResNet
from trainer.networks.unet_discriminator import UNetDiscriminator

Architecture = Literal["rrdbnet", "srresnet", "srcnn"]
SETTINGS: dict[Architecture, tuple[str, ...]] = {
    "rrdbnet": ("features", "blocks", "growth", "upsampler", "norm"),
    "srresnet": ("features", "blocks", "norm"),
    "srcnn": ("features",),
}
"""What of `GeneratorConfig` each architecture has; the rest is without effect on it."""


SMALLEST_PATCH = {"vgg": 32, "unet": 8, "patch": 24}
"""Pixels a side of which each discriminator's convolutions of stride 2 leave something."""


class GeneratorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The generator (paper §3.2), or one of the networks that it is compared with."""

    architecture: Architecture = "rrdbnet"
    features: int = 64
    """Channels of the trunk; of SRCNN's first layer, whose second has half as many."""
    blocks: int = 23
    """Residual-in-residual dense blocks; of SRResNet residual blocks."""
    growth: int = 32
    """Channels that each dense convolution adds (rrdbnet)."""
    upsampler: Upsampler = "pixelshuffle"
    """rrdbnet."""
    norm: Norm = "batch"
    """rrdbnet and srresnet."""


class DiscriminatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The discriminator (paper §3.2): 64 → 128 → 256 → 512 channels when `features` is 64."""

    architecture: Literal["vgg", "unet", "patch"] = "vgg"
    features: int = 64
    dense: int = 100
    """Width of the hidden dense layer (vgg)."""


def build_generator(config: GeneratorConfig, *, scale: int) -> nn.Module:
    """A generator with fresh weights from torch's global random state."""
    match config.architecture:
        case "rrdbnet":
            return RRDBNet(
                scale=scale,
                features=config.features,
                blocks=config.blocks,
                growth=config.growth,
                upsampler=config.upsampler,
                norm=config.norm,
            )
        case "srresnet":
            return SRResNet(
                scale=scale, features=config.features, blocks=config.blocks, norm=config.norm
            )
        case "srcnn":
            return SRCNN(scale=scale, features=config.features)


def build_discriminator(config: DiscriminatorConfig) -> nn.Module:
    """A discriminator with fresh weights from torch's global random state."""
    match config.architecture:
        case "vgg":
            return VGGDiscriminator(features=config.features, dense=config.dense)
        case "unet":
            return UNetDiscriminator(features=config.features)
        case "patch":
            return PatchDiscriminator(features=config.features)


def generator_settings(config: GeneratorConfig) -> dict[str, Any]:
    """The settings that decide what a generator computes, its architecture first."""
    names = ("architecture", *SETTINGS[config.architecture])
    return {name: getattr(config, name) for name in names}
