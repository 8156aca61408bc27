"""Which networks a configuration asks for, and how they are built."""

from __future__ import annotations

from typing import Literal

import msgspec

from trainer.networks.discriminator import VGGDiscriminator
from trainer.networks.rrdb import Norm, RRDBNet, Upsampler


class GeneratorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The generator (paper §3.2)."""

    architecture: Literal["rrdbnet"] = "rrdbnet"
    features: int = 64
    """Channels of the trunk."""
    blocks: int = 23
    """Residual-in-residual dense blocks."""
    growth: int = 32
    """Channels that each dense convolution adds."""
    upsampler: Upsampler = "pixelshuffle"
    norm: Norm = "batch"


class DiscriminatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The discriminator (paper §3.2): 64 → 128 → 256 → 512 channels when `features` is 64."""

    features: int = 64
    dense: int = 100
    """Width of the hidden dense layer."""


def build_generator(config: GeneratorConfig, *, scale: int) -> RRDBNet:
    """A generator with fresh weights from torch's global random state."""
    return RRDBNet(
        scale=scale,
        features=config.features,
        blocks=config.blocks,
        growth=config.growth,
        upsampler=config.upsampler,
        norm=config.norm,
    )


def build_discriminator(config: DiscriminatorConfig) -> VGGDiscriminator:
    """A discriminator with fresh weights from torch's global random state."""
    return VGGDiscriminator(features=config.features, dense=config.dense)
