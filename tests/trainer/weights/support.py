"""A small generator and its file."""

from __future__ import annotations

import torch

from trainer.config.schema import GeneratorConfig
from trainer.models import build_generator
from trainer.weights.safetensors_io import save_tensors

CPU = torch.device("cpu")
SMALL = GeneratorConfig(features=8, blocks=2, growth=4, norm="none")


def save_small(path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A small generator's file; `conv_hr__bias=None` takes a tensor away."""
    tensors = build_generator(SMALL, scale=4).state_dict()
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_tensors(path, tensors, {"preset": "test"})
    return tensors
