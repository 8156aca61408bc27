"""Weights that other programs wrote, read without running a line of what they hold."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

from shards.errors import DamagedData, UsageError
from trainer.weights.safetensors_io import load_tensors


def read_state_dict(path: Path, *, option: str, fix: str) -> tuple[dict[str, Tensor], str]:
    """The state dict of a .pth or .safetensors file, and the SHA-256 of the file.

    Args:
        path: where PyTorch's hub named it (`vgg19-dcbb9e9d.pth`), its digest must begin so.
        option: how the user named it, for errors.
        fix: what to do about a file that is none, for errors.

    Raises:
        UsageError: there is no such file, it is damaged, or holds no state dict.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise UsageError(f"{option} {path}: there is no such file; {fix}") from None
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror}); {fix}") from None
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named and not digest.startswith(named[1]):
        raise UsageError(
            f"{option} {path}: is damaged (its SHA-256 begins with {digest[:8]}, not {named[1]});"
            f" download it again, or {fix}"
        )
    if path.suffix == ".safetensors":
        try:
            return load_tensors(path)[0], digest
        except DamagedData as error:
            raise UsageError(f"{option} {str(error).partition(';')[0]}; {fix}") from None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling a foreign file raises
        raise UsageError(
            f"{option} {path}: is no PyTorch file that can be read ({type(error).__name__}); {fix}"
        ) from error
    if not isinstance(stored, dict):
        raise UsageError(f"{option} {path}: holds no state dict; {fix}")
    return {key: value for key, value in stored.items() if isinstance(value, Tensor)}, digest
