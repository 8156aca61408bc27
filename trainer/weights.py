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
from trainer.models import GeneratorConfig, build_generator
from trainer.networks.rrdb import STAGES, to_pixelshuffle

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

    Raises:
        UsageError: no such file, or not an RRDBNet with BasicSR's names.
        DamagedData: the file is damaged.
    """
    tensors, metadata = load_tensors(path)
    config, scale = describe(tensors, path=path, scale=metadata.get("scale"))
    module = build_generator(config, scale=scale)
    module.load_state_dict(tensors)
    module.eval().requires_grad_(False).to(device)
    return Loaded(module=module, scale=scale, name=path.stem, metadata=metadata)


def load_matching(path: Path, config: GeneratorConfig, *, scale: int) -> dict[str, Tensor]:
    """Weights to start a stage from, rewritten for the configured upsampler where that is exact.

    Raises:
        UsageError: they are of another architecture or scale.
    """
    tensors, metadata = load_tensors(path)
    found, found_scale = describe(tensors, path=path, scale=metadata.get("scale"))
    if (
        found_scale == scale
        and found.upsampler == "nearest_conv"
        and config.upsampler == "pixelshuffle"
    ):
        tensors = to_pixelshuffle(tensors, scale=scale)
        found = msgspec.structs.replace(found, upsampler="pixelshuffle")
    wanted = msgspec.to_builtins(config) | {"scale": scale}
    has = msgspec.to_builtins(found) | {"scale": found_scale}
    for name, value in wanted.items():
        if has[name] != value:
            raise UsageError(
                f"{path}: its generator has {name} {has[name]}, the configuration says {value};"
                " choose weights or settings that agree"
            )
    return tensors


def describe(
    tensors: Mapping[str, Tensor], *, path: Path, scale: str | None
) -> tuple[GeneratorConfig, int]:
    """The architecture and scale that a state dict belongs to.

    One enlargement by a nearest-neighbour layer can be x2 or x3: the metadata's `scale` says which,
    and without it x2 is taken.
    """
    try:
        features = tensors["conv_first.weight"].shape[0]
        blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
        growth = tensors["body.0.rdb1.conv1.weight"].shape[0]
        ups = [
            tensors[f"conv_up{n}.weight"].shape[0]
            for n in (1, 2, 3)
            if f"conv_up{n}.weight" in tensors
        ]
        config = GeneratorConfig(
            features=features,
            blocks=blocks,
            growth=growth,
            upsampler="nearest_conv" if ups[0] == features else "pixelshuffle",
            norm="batch" if "body.0.rdb1.norm1.weight" in tensors else "none",
        )
        triple = ups[0] == 9 * features or (len(ups) == 1 and scale == "3")
        factor = (
            3 if triple else next(s for s, n in STAGES.items() if len(n) == len(ups) and s != 3)
        )
        expected = {name: value.shape for name, value in _skeleton(config, factor).items()}
    except (KeyError, ValueError, IndexError, StopIteration):
        raise UsageError(
            f"{path}: holds no RRDBNet weights with BasicSR's names; use another file"
        ) from None
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected:
        odd = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        raise UsageError(
            f"{path}: does not fit an RRDBNet at {', '.join(odd[:5])}; use another file"
        )
    return config, factor


def _skeleton(config: GeneratorConfig, scale: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_generator(config, scale=scale).state_dict()
