"""Measured and saved results use full float32 convolutions; training does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.support import make_patch
from trainer.evaluation.validation import upscale_patches
from trainer.perceptual.metric import PerceptualMetric
from trainer.upscaling.tiling import upscale_tiled

CPU = torch.device("cpu")
PIXELS = np.ascontiguousarray(make_patch(1)[:16, :16])


class Asking(nn.Module):
    """Remembers whether a GPU would have rounded to TF32."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rounded.append(torch.backends.cudnn.allow_tf32)
        return x


def upscale(asking: Asking) -> None:
    upscale_tiled(asking, PIXELS, scale=1, tile=16, overlap=4, device=CPU)


def validate(asking: Asking) -> None:
    upscale_patches(asking, [PIXELS], device=CPU)


def measure_distance(asking: Asking) -> None:
    module = SimpleNamespace(features=asking, compare=lambda sr, hr: torch.zeros(1))
    PerceptualMetric("lpips", "", "", 1, module, CPU).metric_for(PIXELS)(PIXELS)


@pytest.mark.parametrize("use", [upscale, validate, measure_distance])
@pytest.mark.parametrize("before", [True, False])
def test_nothing_is_rounded_to_tf32_and_the_setting_comes_back(use, before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    asking = Asking()
    use(asking)
    assert asking.rounded
    assert not any(asking.rounded)
    assert torch.backends.cudnn.allow_tf32 == before
