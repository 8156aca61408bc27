"""Safetensors files with a digest of their content, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from shards.errors import DamagedData, UsageError
from shards.io import atomic

LARGEST_HEADER = 100 * 2**20
DIGEST = "sha256"
"""Name in the metadata of the digest over everything else."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with a digest of its content in the metadata."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, DIGEST: content_digest(stored, metadata)}
    atomic.write_file(path, _with_sorted_header(safetensors.torch.save(stored, metadata=described)))


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
