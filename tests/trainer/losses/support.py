"""VGG-19 weights in torchvision's layout and refused ones, which several tests share."""

from __future__ import annotations

import pytest
import torch

from shards.errors import UsageError, UsrganError
from trainer.config.schema import ContentConfig
from trainer.losses.content import (
    build_content_features,
)

# torchvision's `cfgs["E"]`: output channels of convolutions, each followed by a ReLU; M is a pooling
CFG_E = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]


def torchvision_layout() -> dict[str, tuple[int, int, int]]:
    """Name of each convolution => (number in `features`, inputs, outputs)."""
    found, number, inputs, level, place = {}, 0, 3, 1, 1
    for entry in CFG_E:
        if entry == "M":
            number, level, place = number + 1, level + 1, 1
        else:
            found[f"conv{level}_{place}"] = (number, inputs, entry)
            number, place, inputs = number + 2, place + 1, entry
    return found


LAYOUT = torchvision_layout()


def torchvision_weights(upto: str) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, with the classifier's that nobody asked for."""
    stored = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    for number, inputs, outputs in list(LAYOUT.values())[: list(LAYOUT).index(upto) + 1]:
        scale = (2 / (9 * inputs)) ** 0.5
        stored[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3) * scale
        stored[f"features.{number}.bias"] = torch.randn(outputs) * 0.1
    return stored


def refusal(config: ContentConfig, weights) -> str:
    with pytest.raises(UsrganError) as refused:
        build_content_features(config, weights=weights)
    assert isinstance(refused.value, UsageError)
    message = str(refused.value)
    assert "\n" not in message
    return message
