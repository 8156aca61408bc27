"""Which networks a configuration asks for, and how they are built."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainer.config.schema import USED_SETTINGS, DiscriminatorConfig, GeneratorConfig
from trainer.networks.discriminators import (
    PatchDiscriminator,
    UNetDiscriminator,
    VGGDiscriminator,
)
from trainer.networks.rrdb import RRDBNet
from trainer.networks.srcnn import SRCNN
from trainer.networks.srresnet import SRResNet


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
    names = ("architecture", *USED_SETTINGS[config.architecture])
    return {name: getattr(config, name) for name in names}
