"""Small states of stage gan, a batch and gradients that several tests share."""

from __future__ import annotations

import msgspec
import torch

from trainer.config.load import load_config
from trainer.config.schema import Config, LossConfig
from trainer.training.state import TrainState, build_state

SETTINGS = [
    "batch_size=2", "epoch_patches=4", "generator.features=6", "generator.blocks=1",
    "generator.growth=4", "discriminator.features=4", "discriminator.dense=8",
    "content.layer=conv1_2", "precision=fp32",
]  # fmt: skip


def build_gan_state(*overrides: str, **weights: float) -> tuple[TrainState, Config]:
    """A small state of stage gan whose generator's loss is made of the given terms alone."""
    config = load_config("tiny", stage="gan", overrides=[*SETTINGS, *overrides])
    loss = LossConfig(**({"pixel": 0.0, "content": 0.0, "adversarial": 0.0} | weights))
    config = msgspec.structs.replace(config, loss=loss)
    device = torch.device("cpu")
    state = build_state(config, stage="gan", scale=4, device=device, content_weights=None)
    return state, config


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(7)
    return torch.rand(2, 3, 8, 8, generator=random), torch.rand(2, 3, 32, 32, generator=random)


def collect_gradients(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in module.named_parameters()
    }
