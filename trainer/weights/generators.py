"""Generators from weights files: for inference, blended, or as initial weights of a stage.

A file is a safetensors file, never a pickle. It has a plain state dict with BasicSR's names, so that
every program that supports ESRGAN can load it; architecture, scale, preset, patches seen, metrics and
data set are in the metadata.
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
    """Generator for inference: evaluation mode, float32, from RGB [b 3 h w] in [0, 1] to the same."""

    module: nn.Module
    scale: int
    name: str
    """Name of the file without its suffix."""
    metadata: dict[str, str]
    """Metadata of the file, such as preset, stage and scale."""


def load_generator(path: Path, *, device: torch.device) -> LoadedGenerator:
    """Return the generator of a weights file; the architecture is detected from names and shapes.

    Batch normalisation is folded into the convolutions, which saves passes over memory.

    Raises:
        UsageError: the file does not exist or has no supported generator.
        DamagedData: the file is damaged.
    """
    tensors, metadata = load_tensors(path)
    config, scale = detect_architecture(tensors, path=path, scale=metadata.get("scale"))
    return _build_loaded(fold_batch_norm(tensors), config, scale, path.stem, metadata, device)


def load_blend(first: Path, second: Path, *, alpha: float, device: torch.device) -> LoadedGenerator:
    """Return a generator with interpolated weights: `first` at alpha 0, `second` at alpha 1.

    Network interpolation (ESRGAN §3.4): a blend of stage psnr and the stage gan that started from it
    trades fidelity for sharpness continuously.

    Raises:
        UsageError: a file does not exist or has no supported generator, or the architectures differ.
        DamagedData: a file is damaged.
    """
    files = [load_tensors(path) for path in (first, second)]
    detected = [
        detect_architecture(tensors, path=path, scale=metadata.get("scale"))
        for path, (tensors, metadata) in zip((first, second), files, strict=True)
    ]
    (config, scale), (other, other_scale) = detected
    for name, value in (generator_settings(config) | {"scale": scale}).items():
        other_value = (generator_settings(other) | {"scale": other_scale}).get(name)
        if other_value != value and name != "norm":  # norms are folded
            raise UsageError(
                f"{second}: its generator has {name} {other_value}, that of {first} has {value};"
                " blend two stages of one network"
            )
    tensors = interpolate_weights(files[0][0], files[1][0], alpha=alpha)
    metadata = files[1][1] | {"blend": f"{1 - alpha:g} {first.stem} + {alpha:g} {second.stem}"}
    name = f"{first.stem}-{second.stem}-{alpha:g}"
    return _build_loaded(tensors, config, scale, name, metadata, device)


def interpolate_weights(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, alpha: float
) -> dict[str, Tensor]:
    """Return (1 - alpha) first + alpha second of two state dicts of one network.

    Batch normalisation is folded first: a mean of two running variances is not the variance of either
    network, but the features are linear in folded weights.
    """
    start, end = fold_batch_norm(first), fold_batch_norm(second)
    return {name: torch.lerp(value, end[name], alpha) for name, value in start.items()}


def _build_loaded(
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
    """Return initial weights of a stage, converted to the configured upsampler where that is exact.

    Raises:
        UsageError: the architecture or scale differs from the configuration.
    """
    tensors, metadata = load_tensors(path)
    detected, detected_scale = detect_architecture(tensors, path=path, scale=metadata.get("scale"))
    if (
        detected_scale == scale
        and detected.architecture == config.architecture == "rrdbnet"
        and detected.upsampler == "nearest_conv"
        and config.upsampler == "pixelshuffle"
    ):
        tensors = to_pixelshuffle(tensors, scale=scale)
        detected = msgspec.structs.replace(detected, upsampler="pixelshuffle")
    expected = generator_settings(config) | {"scale": scale}
    actual = generator_settings(detected) | {"scale": detected_scale}
    for name, value in expected.items():
        if actual[name] != value:
            raise UsageError(
                f"{path}: its generator has {name} {actual[name]}, the configuration has {value};"
                " use matching weights or settings"
            )
    return tensors
