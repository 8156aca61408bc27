"""Helpers of several test modules."""

from __future__ import annotations

import torch

from trainer.config.load import load_config
from trainer.config.schema import Config
from trainer.training.state import TrainState, build_state
from trainer.training.step import train_step

SETTINGS = [
    "generator.features=8", "generator.blocks=1", "generator.growth=4", "discriminator.features=4",
    "discriminator.dense=8", "content.layer=conv1_2", "ema.halflife_patches=100", "generator.norm=batch",
]  # fmt: skip


def config() -> Config:
    return load_config("tiny", stage="gan", overrides=SETTINGS)


def fresh() -> TrainState:
    return build_state(
        config(), stage="gan", scale=4, device=torch.device("cpu"), content_weights=None
    )


def trained(steps: int = 2) -> TrainState:
    state = fresh()
    for _ in range(steps):
        train_step(state, config(), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32), False)
    state.progress.patches_seen = 4
    state.progress.best = {"psnr_y": 30.5}
    return state
