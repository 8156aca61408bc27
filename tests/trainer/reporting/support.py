"""Metrics of a run, for the tests of reports and figures."""

from __future__ import annotations

import math

import numpy as np


def make_metrics(stage: str, epochs: int, every: int = 1) -> list[dict]:
    """Rows of `metrics.jsonl` of one stage, validated each `every` epochs."""
    rng = np.random.default_rng(epochs)
    rows = []
    for epoch in range(1, epochs + 1):
        row = {
            "stage": stage, "epoch": epoch, "patches_seen": 64 * epoch, "lr": 1e-4,
            "patches_per_s": 800 + rng.normal(), "data_wait": 0.01, "loss_pixel": 0.05 + 0.4 / epoch,
        }  # fmt: skip
        if stage == "gan":
            row |= {
                "loss_content": 7 + 1 / epoch, "loss_adversarial": 0.7, "loss_generator": 8 - epoch / 99,
                "loss_discriminator": 1.4 / epoch, "loss_d_real": 0.6, "loss_d_fake": 0.4,
                "share_pixel": 0.02, "share_content": 0.97, "share_adversarial": 0.01,
                "grad_norm_generator": 3.0 + epoch, "grad_norm_discriminator": 0.5, "sigma_max": 1 + 0.1 / epoch,
            }  # fmt: skip
        if epoch % every == 0:
            row |= {"val_psnr_y": 28 - 4 / epoch, "val_ssim_y": 0.8 - 0.1 * math.exp(-epoch / 9)}
        rows.append(row)
    return rows
