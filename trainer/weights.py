"""Weights on disk: safetensors with JSON metadata, checked on the way in. Never pickle.

A file holds a bare state dict with BasicSR's names, so every program that knows ESRGAN can load it;
what it is (architecture, scale, preset, patches seen, metrics, data) stands in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from shards import files
from shards.errors import DamagedData, UsageError
from trainer.config.schema import GeneratorConfig
from trainer.describe import describe
from trainer.models import build_generator, generator_settings
from trainer.networks.fold import fold_batch_norm
from trainer.networks.rrdb import to_pixelshuffle

LARGEST_HEADER = 100 * 2**20
DIGEST = "sha256"
"""Name in the metadata of the digest over everything else."""


@dataclass(frozen=True)
class Loaded:
    """A generator that is ready to upscale: evaluation mode, float32, [0, 1] RGB in and out."""

    module: nn.Module
    scale: int
    name: str
    metadata: dict[str, str]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with a digest of its content in the metadata."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, DIGEST: content_digest(stored, metadata)}
    files.write_file(path, _with_sorted_header(safetensors.torch.save(stored, metadata=described)))


def _with_sorted_header(content: bytes) -> bytes:
    """The same file with its JSON header in one order: the library's differs from call to call."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format pads with spaces, so that tensors lie aligned
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and check the digest, if it has one.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        DamagedData: its content is not what was written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no such file; train one with train-sr or check the path"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); name a .safetensors file"
        ) from None
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path}: is no .safetensors file; pickled weights are not loaded, convert it first"
        )
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > LARGEST_HEADER:
            raise DamagedData("its header is impossibly long")
        tensors = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        described = {name: value for name, value in metadata.items() if name != DIGEST}
        if DIGEST in metadata and metadata[DIGEST] != content_digest(tensors, described):
            raise DamagedData("its content does not have the digest that was written with it")
    except (DamagedData, safetensors.SafetensorError, struct.error, ValueError) as error:
        raise DamagedData(f"{path}: is damaged ({error}); use another file") from None
    return tensors, metadata


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over metadata, names, types, shapes and raw bytes, in the order of names."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_generator(path: Path, *, device: torch.device) -> Loaded:
    """Load a generator; what it looks like follows from the names and shapes of its weights.

    Batch normalisation is folded into the convolutions: the same function, in fewer passes over memory.

    Raises:
        UsageError: no such file, or none of the generators that are known here.
        DamagedData: the file is damaged.
    """
    tensors, metadata = load_tensors(path)
    config, scale = describe(tensors, path=path, scale=metadata.get("scale"))
    return _ready(fold_batch_norm(tensors), config, scale, path.stem, metadata, device)


def load_blend(first: Path, second: Path, *, alpha: float, device: torch.device) -> Loaded:
    """A generator between two others: `first` at alpha 0, `second` at 1.

    The weights are interpolated, not the pictures (ESRGAN §3.4): between a stage psnr and the stage gan
    that started from it lies a smooth way from faithful to sharp.

    Raises:
        UsageError: as `load_generator`, or the two are of different networks.
        DamagedData: a file is damaged.
    """
    read = [load_tensors(path) for path in (first, second)]
    kinds = [
        describe(tensors, path=path, scale=metadata.get("scale"))
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
    tensors = interpolate(read[0][0], read[1][0], alpha=alpha)
    metadata = read[1][1] | {"blend": f"{1 - alpha:g} {first.stem} + {alpha:g} {second.stem}"}
    name = f"{first.stem}-{second.stem}-{alpha:g}"
    return _ready(tensors, config, scale, name, metadata, device)


def interpolate(
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
) -> Loaded:
    module = build_generator(msgspec.structs.replace(config, norm="none"), scale=scale)
    module.load_state_dict(folded)
    module.eval().requires_grad_(False).to(device)
    return Loaded(module=module, scale=scale, name=name, metadata=metadata)


def load_matching(path: Path, config: GeneratorConfig, *, scale: int) -> dict[str, Tensor]:
    """Weights to start a stage from, rewritten for the configured upsampler where that is exact.

    Raises:
        UsageError: they are of another architecture or scale.
    """
    tensors, metadata = load_tensors(path)
    found, found_scale = describe(tensors, path=path, scale=metadata.get("scale"))
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
