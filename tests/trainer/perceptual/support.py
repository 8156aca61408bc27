"""Random weights of a feature network that several tests share."""

from __future__ import annotations

import numpy as np
import torch

from trainer.networks.feature_extractors import Backbone


def random_weights(kind: str) -> dict[str, torch.Tensor]:
    """A backbone that keeps the size of what it sees, as a trained one does."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, shape in Backbone(kind).expected_shapes().items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        spread = (2 / fan_in) ** 0.5 if len(shape) > 1 else 0.1
        weights[name] = torch.randn(shape, generator=generator) * spread
    return weights
