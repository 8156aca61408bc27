"""Everything of a training stage that must survive a restart, in one place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainer.config import Config, Stage
from trainer.content import build_content_features
from trainer.flat import Gradients, gather_gradients, pack
from trainer.models import build_discriminator, build_generator
from trainer.networks.synced import synchronise
from trainer.networks.vgg import VGGFeatures
from trainer.optim import build_adam

M = TypeVar("M", bound=nn.Module)
COUNTED = "steps"
_SCALER = ("scale", "_growth_tracker")
"""What of a GradScaler moves."""


@dataclass
class Adversary:
    """What stage `gan` has beside the generator."""

    discriminator: nn.Module
    optimizer: torch.optim.Adam
    content: VGGFeatures
    """Frozen; rebuilt from the configuration and never saved."""
    gradients: Gradients
    """Of the discriminator; nothing of them survives a step."""


@dataclass
class TrainState:
    """Networks, average, optimisers and position of one stage."""

    stage: Stage
    generator: nn.Module
    optimizer: torch.optim.Adam
    average: nn.Module | None
    adversary: Adversary | None
    gradients: Gradients
    """Of the generator; nothing of them survives a step."""
    buffers: list[Tensor]
    """Statistics and singular vectors of both networks, flat: a step that is left out puts them back."""
    scaler: torch.amp.GradScaler | None = None
    """Keeps fp16 gradients in range; bf16 has float32's range and needs none."""
    patches_seen: int = 0
    passed_over: int = 0
    """Patches that the order has run ahead: those before which the run rolled back."""
    bad_in_a_row: int = 0
    """Steps that were left out since the last good one."""
    rollbacks: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """The best validation value so far of each metric that a checkpoint is kept for."""
    start_psnr_y: float = 0.0
    """PSNR-Y of the weights that the stage began with, on these held-out patches; 0: not known."""
    speed: dict[str, str] = field(default_factory=dict)
    """The ways of its steps (`SpeedConfig`), which stay what they were when the stage began."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the losses of the good steps since the epoch began, on the device, and their number
    under `COUNTED`; logged and cleared at its end."""
    telemetry: dict[str, Tensor] = field(default_factory=dict)
    """Sums of what `telemetry` saw since the epoch began, likewise."""

    @property
    def output(self) -> nn.Module:
        """The generator that is validated and handed on: the average where there is one."""
        return self.generator if self.average is None else self.average


def build_state(
    config: Config,
    *,
    stage: Stage,
    scale: int,
    device: torch.device,
    content_weights: Path | None,
    synced: bool = False,
) -> TrainState:
    """A fresh state; the same seed gives the same weights. `synced`: one of several ranks."""
    torch.manual_seed(config.seed)
    generator = place(build_generator(config.generator, scale=scale), device)
    average = None
    if config.ema.halflife_patches > 0:
        average = copy.deepcopy(generator).eval().requires_grad_(False)
    adversary = None
    if stage == "gan":
        discriminator = place(build_discriminator(config.discriminator), device)
        adversary = Adversary(
            discriminator=discriminator,
            optimizer=build_adam(config.optim, discriminator.parameters()),
            content=place(build_content_features(config.content, weights=content_weights), device),
            gradients=gather_gradients(discriminator.parameters()),
        )
    trained = [generator] if adversary is None else [generator, adversary.discriminator]
    if synced:
        for network in trained:
            synchronise(network)
    return TrainState(
        stage=stage,
        generator=generator,
        optimizer=build_adam(config.optim, generator.parameters()),
        average=average,
        adversary=adversary,
        gradients=gather_gradients(generator.parameters()),
        buffers=pack(buffer for network in trained for buffer in network.buffers()),
        scaler=torch.amp.GradScaler(device.type) if config.precision == "fp16" else None,
    )


def place(module: M, device: torch.device) -> M:
    """Move a network to the device; weights channels last on a GPU, where convolutions want them so."""
    module.to(device)
    if device.type != "cpu":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    return module


def start_from(state: TrainState, weights: Mapping[str, Tensor]) -> None:
    """Give the generator and its average the weights of an earlier stage."""
    state.generator.load_state_dict(weights)
    if state.average is not None:
        state.average.load_state_dict(weights)


def networks(state: TrainState) -> dict[str, Tensor]:
    """Weights and buffers of everything that is trained, by name."""
    tensors = {f"generator.{name}": value for name, value in state.generator.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    if state.adversary is not None:
        stored = state.adversary.discriminator.state_dict()
        tensors |= {f"discriminator.{name}": value for name, value in stored.items()}
    return tensors


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """All tensors that must survive, by name."""
    tensors = networks(state)
    for prefix, optimizer in optimizers(state).items():
        for number, parameter in enumerate(_parameters(optimizer)):
            for name, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{prefix}.{number}.{name}"] = value
    tensors |= {f"losses.{name}": value for name, value in state.losses.items()}
    tensors |= {f"telemetry.{name}": value for name, value in state.telemetry.items()}
    if state.scaler is not None:
        held = state.scaler.state_dict()
        tensors |= {f"scaler.{name}": torch.tensor(held[name]) for name in _SCALER}
    tensors["random.cpu"] = torch.get_rng_state()
    device = _device_of(state)
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors back into a freshly built state, bit for bit."""
    state.generator.load_state_dict(_below(tensors, "generator."))
    if state.average is not None:
        state.average.load_state_dict(_below(tensors, "average."))
    if state.adversary is not None:
        state.adversary.discriminator.load_state_dict(_below(tensors, "discriminator."))
    for prefix, optimizer in optimizers(state).items():
        for number, parameter in enumerate(_parameters(optimizer)):
            saved = _below(tensors, f"{prefix}.{number}.")
            for name, value in saved.items():
                # Adam's moments lie in memory as their parameter does; its step count is a scalar
                moment = value.ndim > 0
                kept = torch.empty_like(parameter if moment else value, device=parameter.device)
                optimizer.state[parameter][name] = kept.copy_(value)
    device = _device_of(state)
    state.losses = {name: value.to(device) for name, value in _below(tensors, "losses.").items()}
    state.telemetry = {n: value.to(device) for n, value in _below(tensors, "telemetry.").items()}
    if state.scaler is not None:
        held = {name: value.item() for name, value in _below(tensors, "scaler.").items()}
        state.scaler.load_state_dict(state.scaler.state_dict() | held)
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def optimizers(state: TrainState) -> dict[str, torch.optim.Adam]:
    """Of all networks, under the names that checkpoints have for them."""
    found = {"optimizer": state.optimizer}
    if state.adversary is not None:
        found["discriminator_optimizer"] = state.adversary.optimizer
    return found


def _device_of(state: TrainState) -> torch.device:
    return next(state.generator.parameters()).device


def _parameters(optimizer: torch.optim.Adam) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
