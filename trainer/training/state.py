"""Everything of a training stage that must survive a restart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from torch import Tensor, nn

from trainer.config.schema import Config, Stage
from trainer.distributed.sync_batchnorm import sync_batch_norm_
from trainer.losses.content import build_content_features
from trainer.models import build_discriminator, build_generator
from trainer.networks.feature_extractors import VGGFeatures
from trainer.training.flat_buffers import (
    Gradients,
    as_one_parameter,
    flatten_grads_,
    flatten_params_,
    views,
)
from trainer.training.optim import build_adam

M = TypeVar("M", bound=nn.Module)
COUNTED = "steps"
_SCALER = ("scale", "_growth_tracker")
"""Names of the GradScaler values that change."""


@dataclass
class Adversary:
    """The discriminator and the content network of stage `gan`."""

    discriminator: nn.Module
    optimizer: torch.optim.Adam
    content: VGGFeatures
    """Frozen; rebuilt from the configuration and never saved."""
    gradients: Gradients
    """The discriminator's gradients; nothing of them survives a step."""


class Progress(msgspec.Struct, kw_only=True):
    """Position of a stage; checkpoints store it under the names given here."""

    patches_seen: int = 0
    skipped_patches: int = msgspec.field(name="passed_over", default=0)
    """Patches skipped after rollbacks; the position in the order is `patches_seen` plus these."""
    consecutive_skips: int = msgspec.field(name="bad_in_a_row", default=0)
    """Steps skipped since the last applied one."""
    rollbacks: int = 0
    best: dict[str, float] = msgspec.field(default_factory=dict)
    """Best validation value so far of each metric that has a checkpoint."""
    start_psnr_y: float = 0.0
    """PSNR-Y of the stage's initial weights on these held-out patches, dB; 0: unknown."""
    speed: dict[str, str] = msgspec.field(default_factory=dict)
    """Resolved `SpeedConfig` of the stage, fixed at its start."""


@dataclass
class TrainState:
    """Networks, EMA, optimisers and position of one stage."""

    stage: Stage
    generator: nn.Module
    optimizer: torch.optim.Adam
    ema: nn.Module | None
    adversary: Adversary | None
    gradients: Gradients
    """The generator's gradients; nothing of them survives a step."""
    params_flat: Tensor
    """The generator's parameters as one flat tensor, which is all that the optimiser holds."""
    ema_flat: Tensor | None
    """The parameters of the EMA as one flat tensor."""
    buffers: list[Tensor]
    """Statistics and singular vectors of both networks as flat tensors; a skipped step restores them."""
    scaler: torch.amp.GradScaler | None = None
    """Keeps fp16 gradients in range; bf16 has float32's range and needs none."""
    progress: Progress = field(default_factory=Progress)
    """Position of the stage and everything else that a checkpoint stores besides tensors."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the losses of the applied steps since the epoch began, on the device, and their number
    under `COUNTED`; logged and cleared at the end of the epoch."""
    telemetry: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the diagnostics since the epoch began, logged and cleared in the same way."""

    @property
    def output(self) -> nn.Module:
        """The generator that is validated and delivered: the EMA where there is one."""
        return self.generator if self.ema is None else self.ema


def build_state(
    config: Config,
    *,
    stage: Stage,
    scale: int,
    device: torch.device,
    content_weights: Path | None,
    synced: bool = False,
) -> TrainState:
    """A fresh state; the same seed gives the same weights. With `synced`, batch norm is over all ranks."""
    torch.manual_seed(config.seed)
    generator = place_on_device(build_generator(config.generator, scale=scale), device)
    ema = None
    if config.ema.halflife_patches > 0:
        ema = copy.deepcopy(generator).eval().requires_grad_(False)
    adversary = None
    if stage == "gan":
        discriminator = place_on_device(build_discriminator(config.discriminator), device)
        d_gradients = flatten_grads_(discriminator.parameters())
        adversary = Adversary(
            discriminator=discriminator,
            optimizer=build_adam(
                config.optim, [as_one_parameter(_flatten(discriminator), d_gradients)]
            ),
            content=place_on_device(
                build_content_features(config.content, weights=content_weights), device
            ),
            gradients=d_gradients,
        )
    trained = [generator] if adversary is None else [generator, adversary.discriminator]
    if synced:
        for network in trained:
            sync_batch_norm_(network)
    gradients, params_flat = flatten_grads_(generator.parameters()), _flatten(generator)
    return TrainState(
        stage=stage,
        generator=generator,
        optimizer=build_adam(config.optim, [as_one_parameter(params_flat, gradients)]),
        ema=ema,
        adversary=adversary,
        gradients=gradients,
        params_flat=params_flat,
        ema_flat=None if ema is None else _flatten(ema),
        buffers=flatten_params_(buffer for network in trained for buffer in network.buffers()),
        scaler=torch.amp.GradScaler(device.type) if config.precision == "fp16" else None,
    )


def place_on_device(module: M, device: torch.device) -> M:
    """Move a network to the device; weights are channels last on a GPU, as its convolutions need them."""
    module.to(device)
    if device.type != "cpu":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
    return module


def load_initial(state: TrainState, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of an earlier stage into the generator and its EMA."""
    state.generator.load_state_dict(weights)
    if state.ema is not None:
        state.ema.load_state_dict(weights)


def network_tensors(state: TrainState) -> dict[str, Tensor]:
    """Weights and buffers of everything that is trained, by name."""
    tensors = {f"generator.{name}": value for name, value in state.generator.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"average.{name}": value for name, value in state.ema.state_dict().items()}
    if state.adversary is not None:
        stored = state.adversary.discriminator.state_dict()
        tensors |= {f"discriminator.{name}": value for name, value in stored.items()}
    return tensors


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """All tensors that must survive a restart, by name."""
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
    """Load saved tensors into a freshly built state, bit for bit."""
    state.generator.load_state_dict(_below(tensors, "generator."))
    if state.ema is not None:
        state.ema.load_state_dict(_below(tensors, "average."))
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
    """The optimisers of all networks, by their names in checkpoints."""
    found = {"optimizer": state.optimizer}
    if state.adversary is not None:
        found["discriminator_optimizer"] = state.adversary.optimizer
    return found


def trained(state: TrainState) -> dict[str, nn.Module]:
    """The trained networks, by the names of their optimisers."""
    found = {"optimizer": state.generator}
    if state.adversary is not None:
        found["discriminator_optimizer"] = state.adversary.discriminator
    return found


def _device_of(state: TrainState) -> torch.device:
    return next(state.generator.parameters()).device


def _only(optimizer: torch.optim.Adam) -> Tensor:
    """The single flat parameter of an optimiser."""
    only: Tensor = optimizer.param_groups[0]["params"][0]
    return only


def _flatten(network: nn.Module) -> Tensor:
    """Make a network's parameters views of one flat tensor, and return it."""
    (flat,) = flatten_params_(network.parameters())
    return flat


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
