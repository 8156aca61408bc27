"""Weights on disk: safetensors with JSON metadata, checked on the way in. Never pickle.

A file holds a bare state dict with BasicSR's names, so every program that knows ESRGAN can load it;
what it is (architecture, scale, preset, patches seen, metrics, data) stands in the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from shards.errors import UsageError
from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator, generator_settings
from trainer.networks.fold_batch_norm import fold_batch_norm
from trainer.networks.rrdb import to_pixelshuffle
from trainer.weights.detect import detect_architecture
from trainer.weights.safetensors_io import load_tensors


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator that is ready to upscale: evaluation mode, float32, [0, 1] RGB in and out."""

    module: nn.Module
    scale: int
    name: str
    metadata: dict[str, str]


def load_generator(path: Path, *, device: torch.device) -> LoadedGenerator:
    """Load a generator; what it looks like follows from the names and shapes of its weights.

    Batch normalisation is folded into the convolutions: the same function, in fewer passes over memory.

    Raises:
        UsageError: no such file, or none of the generators that are known here.
        DamagedData: the file is damaged.
    """
    tensors, metadata = load_tensors(path)
    config, scale = detect_architecture(tensors, path=path, scale=metadata.get("scale"))
    return _ready(fold_batch_norm(tensors), config, scale, path.stem, metadata, device)


def load_blend(first: Path, second: Path, *, alpha: float, device: torch.device) -> LoadedGenerator:
    """A generator between two others: `first` at alpha 0, `second` at 1.

    The weights are interpolated, not the pictures (ESRGAN §3.4): between a stage psnr and the stage gan
    that started from it lies a smooth way from faithful to sharp.

    Raises:
        UsageError: as `load_generator`, or the two are of different networks.
        DamagedData: a file is damaged.
    """
    read = [load_tensors(path) for path in (first, second)]
    kinds = [
        detect_architecture(tensors, path=path, scale=metadata.get("scale"))
        for path, (tensors, metadata) in zip((first, second), read, strict=True)
    ]
    (config, scale), (other, other_scale) = kinds
    for name, value in (generator_settings(config) | {"scale": scale}).items():
        has = (generator_settings(other) | {"scale": other_scale}).get(name)
        if has != value and name != "norm":  # which is folded
            raise UsageError(
                f"{second}: its generator has {name} {has}, that of {first} has {value};"
                " blend two stages of one network"
            )
    tensors = interpolate_weights(read[0][0], read[1][0], alpha=alpha)
    metadata = read[1][1] | {"blend": f"{1 - alpha:g} {first.stem} + {alpha:g} {second.stem}"}
    name = f"{first.stem}-{second.stem}-{alpha:g}"
    return _ready(tensors, config, scale, name, metadata, device)


def interpolate_weights(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, alpha: float
) -> dict[str, Tensor]:
    """(1 - alpha) first + alpha second of two state dicts of one network.

    Batch normalisation is folded first: the mean of two variances is nobody's variance, but folded
    weights are linear in what they do to a picture's features.
    """
    ours, theirs = fold_batch_norm(first), fold_batch_norm(second)
    return {name: torch.lerp(value, theirs[name], alpha) for name, value in ours.items()}


def _ready(
    folded: dict[str, Tensor],
    config: GeneratorConfig,
    scale: int,
    name: str,
    metadata: dict[str, str],
    device: torch.device,
) -> LoadedGenerator:
    module = build_generator(msgspec.structs.replace(config, norm="none"), scale=scale)
    module.load_state_dict(folded)
    module.eval().requires_grad_(False).to(device)
    return LoadedGenerator(module=module, scale=scale, name=name, metadata=metadata)


def load_initial_weights(path: Path, config: GeneratorConfig, *, scale: int) -> dict[str, Tensor]:
    """Weights to start a stage from, rewritten for the configured upsampler where that is exact.

    Raises:
        UsageError: they are of another architecture or scale.
    """
    tensors, metadata = load_tensors(path)
    found, found_scale = detect_architecture(tensors, path=path, scale=metadata.get("scale"))
    if (
        found_scale == scale
        and found.architecture == config.architecture == "rrdbnet"
        and found.upsampler == "nearest_conv"
        and config.upsampler == "pixelshuffle"
    ):
        tensors = to_pixelshuffle(tensors, scale=scale)
        found = msgspec.structs.replace(found, upsampler="pixelshuffle")
    wanted = generator_settings(config) | {"scale": scale}
    has = generator_settings(found) | {"scale": found_scale}
    for name, value in wanted.items():
        if has[name] != value:
            raise UsageError(
                f"{path}: its generator has {name} {has[name]}, the configuration says {value};"
                " choose weights or settings that agree"
            )
    return tensors
