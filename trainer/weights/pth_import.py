"""State dicts of other programs, read without executing pickled code."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

from shards.errors import DamagedData, UsageError
from trainer.weights.safetensors_io import load_tensors


def read_state_dict(path: Path, *, option: str, fix: str) -> tuple[dict[str, Tensor], str]:
    """Return the state dict of a .pth or .safetensors file and the SHA-256 of the file.

    Args:
        path: file to read; a digest in its name, as in torch.hub's `vgg19-dcbb9e9d.pth`, is verified.
        option: option that names the file, for messages.
        fix: advice about an unsuitable file, for messages.

    Raises:
        UsageError: the file does not exist, is damaged, or is not a state dict.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise UsageError(f"{option} {path}: no such file; {fix}") from None
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
    except Exception as error:  # unpickling a foreign file can raise anything
        raise UsageError(
            f"{option} {path}: is not a readable PyTorch file ({type(error).__name__}); {fix}"
        ) from error
    if not isinstance(stored, dict):
        raise UsageError(f"{option} {path}: has no state dict; {fix}")
    return {key: value for key, value in stored.items() if isinstance(value, Tensor)}, digest
