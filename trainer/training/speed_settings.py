"""Settings of acceleration resolved for a device, and the training step built by them.

They change how a step is computed and nothing about what it computes. "auto" is the value that was measured to be
the fastest (docs/internals/log.md).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping

import msgspec
import torch
from torch import Tensor

from shards.errors import ConfigError
from trainer.config.schema import AUTO, Config, SpeedConfig
from trainer.device import use_bf16
from trainer.distributed.process_group import ProcessGroup
from trainer.kernels import toolchain
from trainer.training.state import TrainState
from trainer.training.step import Outcome

Step = Callable[[Tensor, Tensor, bool], Outcome]
"""LR [B 3 h w], HR [B 3 sh sw] and whether this rank requests a stop => the outcome of the step."""


def resolve(config: Config, *, device: torch.device, bf16: bool, world: int = 1) -> SpeedConfig:
    """The settings with every "auto" decided for a device and `world` processes.

    Raises:
        ConfigError: a setting is impossible on this device or with these networks.
    """
    speed = config.speed
    if speed.graph == "step" and device.type != "cuda":
        raise ConfigError(
            "speed.graph: a CUDA graph needs a CUDA device; use --device cuda or speed.graph=auto"
        )
    if speed.graph == "step" and world > 1:
        raise ConfigError(
            "speed.graph: a graph holds the step of one process; use speed.graph=none with --gpus"
        )
    if speed.graph == "step" and config.precision == "fp16":
        raise ConfigError(
            "speed.graph: the scale of fp16's gradients is decided outside a graph; use precision=bf16"
        )
    unfused = _unfused_reason(config, device, bf16, world)
    if speed.dense == "fused" and speed.compile == "blocks":
        raise ConfigError(
            "speed.compile: fused blocks are no modules that could be compiled; use one of the two"
        )
    if speed.dense == "fused" and unfused:
        raise ConfigError(f"speed.dense: cannot be fused here: {unfused}; use speed.dense=auto")
    if speed.content == "bf16" and not bf16:
        raise ConfigError(
            "speed.content: bf16 weights need bf16 steps; use precision=bf16 or speed.content=auto"
        )
    can_capture = device.type == "cuda" and world == 1 and config.precision != "fp16"
    has_glibc = device.type == "cpu" and sys.platform == "linux"
    fastest = {
        "dense": "plain" if unfused or speed.compile == "blocks" else "fused",
        "compile": "none",
        "graph": "step" if can_capture else "none",
        "content": "bf16" if bf16 else "fp32",
        "allocator": "keep" if has_glibc else "system",
        "convolutions": "fastest",
    }
    chosen = {name: value for name, value in msgspec.structs.asdict(speed).items() if value != AUTO}
    return msgspec.convert(fastest | chosen, SpeedConfig)


def settle(
    config: Config, *, device: torch.device, world_size: int, stored: Mapping[str, str]
) -> SpeedConfig:
    """Return the settings of a run with every "auto" decided: as its checkpoint has it, else by default.

    A stored value that this version or this device does not support falls back to the default.

    Args:
        config: settings other than "auto" win.
        device: device of the steps.
        world_size: number of processes.
        stored: settings with which the run began; empty for a new run.

    Raises:
        ConfigError: a setting that was asked for is not possible here.
    """
    bf16 = use_bf16(config, device)

    def decide(speed: SpeedConfig) -> SpeedConfig:
        wanted = msgspec.structs.replace(config, speed=speed)
        return resolve(wanted, device=device, bf16=bf16, world=world_size)

    speed = config.speed
    settled = decide(speed)
    for name, value in stored.items():
        if getattr(speed, name, "") == AUTO:
            with contextlib.suppress(ConfigError, msgspec.ValidationError):
                candidate = msgspec.convert(
                    msgspec.structs.asdict(speed) | {name: value}, SpeedConfig
                )
                settled, speed = decide(candidate), candidate
    return settled


def missing_fast_path(config: Config, *, device: torch.device, bf16: bool) -> str:
    """Why steps are slower than this GPU allows, with the fix; empty if they are not."""
    half = bf16 or config.precision == "fp16"
    if device.type == "cuda" and config.speed.dense == "auto" and half:
        return toolchain.unavailable_reason(device)
    return ""


def build_step(
    state: TrainState, config: Config, bf16: bool, *, ranks: ProcessGroup, speed: SpeedConfig
) -> Step:
    """The step of a state that `acceleration.apply` has accelerated by the same settings."""
    from trainer.training.cuda_graph import capture_later
    from trainer.training.objectives import r1_due
    from trainer.training.step import diagnostics_due, train_step

    def step(lr: Tensor, hr: Tensor, stop: bool | Tensor) -> Outcome:
        fused = speed.dense == "fused"
        with toolchain.explain_compile_errors() if fused else contextlib.nullcontext():
            return train_step(state, config, lr, hr, bf16, ranks=ranks, stop=stop)

    def has_more_work() -> bool:
        return diagnostics_due(state, config) or (state.stage == "gan" and r1_due(state, config))

    return capture_later(step, other=has_more_work) if speed.graph == "step" else step


def _unfused_reason(config: Config, device: torch.device, bf16: bool, world: int) -> str:
    """Why dense blocks cannot be fused; empty if they can."""
    if device.type != "cuda" or not (bf16 or config.precision == "fp16"):
        return "it is for steps in half precision on a GPU"
    if config.generator.norm != "none" and world > 1:
        return "batch normalisation over several processes is not in these kernels"
    return toolchain.unavailable_reason(device)
