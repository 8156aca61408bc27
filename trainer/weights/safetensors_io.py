"""Safetensors files with a digest of their content, written atomically."""

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

MAX_HEADER_BYTES = 100 * 2**20
DIGEST = "sha256"
"""Metadata key of the digest over all other content."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with a digest of its content in the metadata.

    The same tensors and metadata give the same bytes.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, DIGEST: content_digest(stored, metadata)}
    atomic.write_file(path, _sort_header(safetensors.torch.save(stored, metadata=described)))


def _sort_header(content: bytes) -> bytes:
    """Return the file with sorted metadata: their order in the library's header differs between calls."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # padding with spaces aligns the tensors
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file; a digest in the metadata is verified.

    Raises:
        UsageError: the file does not exist or is not a safetensors file.
        DamagedData: the content is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file; correct the path or train a model with train-sr"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); use a .safetensors file"
        ) from None
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path}: is not a .safetensors file; convert it (pickled weights are not loaded)"
        )
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > MAX_HEADER_BYTES:
            raise DamagedData("its header is impossibly long")
        tensors = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        described = {name: value for name, value in metadata.items() if name != DIGEST}
        if DIGEST in metadata and metadata[DIGEST] != content_digest(tensors, described):
            raise DamagedData("its content does not match its digest")
    except (DamagedData, safetensors.SafetensorError, struct.error, ValueError) as error:
        raise DamagedData(f"{path}: is damaged ({error}); use another file") from None
    return tensors, metadata


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 over metadata, names, types, shapes and raw bytes, in the order of names."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
