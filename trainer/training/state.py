"""Everything of a training stage that must survive a restart, in one place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainer.config.schema import Config, Stage
from trainer.losses.content import build_content_features
from trainer.models import build_discriminator, build_generator
from trainer.networks.synced import synchronise
from trainer.networks.vgg import VGGFeatures
from trainer.training.flat_buffers import Gradients, as_one, gather_gradients, pack, views
from trainer.training.optim import build_adam

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
    weights: Tensor
    """Of the generator, flat; the optimiser knows nothing else of it."""
    averaged: Tensor | None
    """Those of the average."""
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
    generator = place_on_device(build_generator(config.generator, scale=scale), device)
    average = None
    if config.ema.halflife_patches > 0:
        average = copy.deepcopy(generator).eval().requires_grad_(False)
    adversary = None
    if stage == "gan":
        discriminator = place_on_device(build_discriminator(config.discriminator), device)
        judged = gather_gradients(discriminator.parameters())
        adversary = Adversary(
            discriminator=discriminator,
            optimizer=build_adam(config.optim, [as_one(_flat(discriminator), judged)]),
            content=place_on_device(
                build_content_features(config.content, weights=content_weights), device
            ),
            gradients=judged,
        )
    trained = [generator] if adversary is None else [generator, adversary.discriminator]
    if synced:
        for network in trained:
            synchronise(network)
    gradients, weights = gather_gradients(generator.parameters()), _flat(generator)
    return TrainState(
        stage=stage,
        generator=generator,
        optimizer=build_adam(config.optim, [as_one(weights, gradients)]),
        average=average,
        adversary=adversary,
        gradients=gradients,
        weights=weights,
        averaged=None if average is None else _flat(average),
        buffers=pack(buffer for network in trained for buffer in network.buffers()),
        scaler=torch.amp.GradScaler(device.type) if config.precision == "fp16" else None,
    )


def place_on_device(module: M, device: torch.device) -> M:
    """Move a network to the device; weights channels last on a GPU, where convolutions want them so."""
    module.to(device)
    if device.type != "cpu":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    return module


def load_initial(state: TrainState, weights: Mapping[str, Tensor]) -> None:
    """Give the generator and its average the weights of an earlier stage."""
    state.generator.load_state_dict(weights)
    if state.average is not None:
        state.average.load_state_dict(weights)


def network_tensors(state: TrainState) -> dict[str, Tensor]:
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
    tensors = network_tensors(state)
    for prefix, optimizer in optimizers(state).items():
        parameters = list(trained(state)[prefix].parameters())
        for name, value in optimizer.state.get(_only(optimizer), {}).items():
            # Adam's moments lie in memory as the weights do; its step count is a scalar
            each = views(parameters, value) if value.ndim else [value.clone() for _ in parameters]
            tensors |= {f"{prefix}.{number}.{name}": part for number, part in enumerate(each)}
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
        parameters, one = list(trained(state)[prefix].parameters()), _only(optimizer)
        for name, first in _below(tensors, f"{prefix}.0.").items():
            kept = torch.zeros_like(one if first.ndim else first, device=one.device)
            for number, part in enumerate(views(parameters, kept) if first.ndim else [kept]):
                part.copy_(tensors[f"{prefix}.{number}.{name}"])
            optimizer.state[one][name] = kept
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


def trained(state: TrainState) -> dict[str, nn.Module]:
    """The networks of `optimizers`."""
    found = {"optimizer": state.generator}
    if state.adversary is not None:
        found["discriminator_optimizer"] = state.adversary.discriminator
    return found


def _device_of(state: TrainState) -> torch.device:
    return next(state.generator.parameters()).device


def _only(optimizer: torch.optim.Adam) -> Tensor:
    """All that an optimiser optimises."""
    only: Tensor = optimizer.param_groups[0]["params"][0]
    return only


def _flat(network: nn.Module) -> Tensor:
    """A network's parameters as views of one tensor, and that."""
    (flat,) = pack(network.parameters())
    return flat


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
