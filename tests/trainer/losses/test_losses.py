"""Pixel and content losses against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.losses.content import content_loss
from trainer.losses.pixel import pixel_loss


def test_pixel_loss_is_the_mean_absolute_difference():
    sr, hr = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    wanted = np.abs(sr.double().numpy() - hr.double().numpy()).mean()
    assert pixel_loss(sr, hr).item() == pytest.approx(wanted, rel=1e-6)
    assert pixel_loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item() == 1


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_content_loss_is_a_mean_and_so_knows_no_batch_channels_or_size(criterion):
    for shape in ((1, 2, 3, 4), (5, 64, 8, 2)):
        sr, hr = torch.randn(shape), torch.randn(shape)
        difference = sr.double().numpy() - hr.double().numpy()
        wanted = (difference**2).mean() if criterion == "l2" else np.abs(difference).mean()
        settings = {"weights": [1.0], "criterion": criterion}
        assert content_loss([sr], [hr], **settings).item() == pytest.approx(wanted, rel=1e-6)
        apart = content_loss([torch.zeros(shape)], [torch.full(shape, 3.0)], **settings)
        assert apart.item() == {"l1": 3, "l2": 9}[criterion]


def test_content_loss_is_the_weighted_sum_over_its_layers():
    shapes = ((2, 4, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2))
    sr, hr = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    weights = (0.1, 1.0, 2.0)
    wanted = sum(
        weight * np.abs(a.double().numpy() - b.double().numpy()).mean()
        for a, b, weight in zip(sr, hr, weights, strict=True)
    )
    found = content_loss(sr, hr, weights=weights, criterion="l1")
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_losses_of_bf16_predictions_are_computed_in_float32():
    half = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    features = half.view(1, 1, 64, 64)
    for loss in (
        pixel_loss(features, torch.zeros(1, 1, 64, 64)),
        content_loss([features], [features], weights=[1.0], criterion="l2"),
    ):
        assert loss.dtype == torch.float32
