"""How a step is made fast, and nothing about what it computes: ways chosen for a device, the step built by them.

"auto" takes what was measured to be fastest (docs/internals/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Mapping

import msgspec
import torch
from torch import Tensor, nn

from shards.errors import ConfigError
from trainer.config.schema import AUTO, Config, SpeedConfig
from trainer.device import use_bf16
from trainer.distributed.process_group import ProcessGroup
from trainer.networks import fused
from trainer.networks.convolution import Conv3x3, Conv4x4
from trainer.networks.rrdb import RRDB, DenseBlock
from trainer.training.state import TrainState
from trainer.training.step import Outcome

Step = Callable[[Tensor, Tensor, bool], Outcome]
"""LR [B 3 h w], HR [B 3 sh sw] and whether this rank wants to stop => what the step found."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def resolve(config: Config, *, device: torch.device, bf16: bool, world: int = 1) -> SpeedConfig:
    """The settings with every "auto" decided for a device and so many processes.

    Raises:
        ConfigError: a setting cannot be on this device or with these networks.
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
    unfused = _no_fused(config, device, bf16, world)
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
    captures = device.type == "cuda" and world == 1 and config.precision != "fp16"
    glibc = device.type == "cpu" and sys.platform == "linux"
    best = {
        "dense": "plain" if unfused or speed.compile == "blocks" else "fused",
        "compile": "none",
        "graph": "step" if captures else "none",
        "content": "bf16" if bf16 else "fp32",
        "allocator": "keep" if glibc else "system",
        "convolutions": "fastest",
    }
    asked = {name: value for name, value in msgspec.structs.asdict(speed).items() if value != AUTO}
    return msgspec.convert(best | asked, SpeedConfig)


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


def _no_fused(config: Config, device: torch.device, bf16: bool, world: int) -> str:
    """Why dense blocks are not to be in kernels of ours; empty if they are."""
    if device.type != "cuda" or not (bf16 or config.precision == "fp16"):
        return "it is for steps in half precision on a GPU"
    if config.generator.norm != "none" and world > 1:
        return "batch normalisation over several processes is not in these kernels"
    return fused.missing(device)


def held_up_by(config: Config, *, device: torch.device, bf16: bool) -> str:
    """What keeps steps from being as fast as this machine allows, and how to have it; empty if nothing does."""
    speed = config.speed
    if device.type == "cuda" and speed.dense == "auto" and (bf16 or config.precision == "fp16"):
        return fused.missing(device)
    return ""


def prepare(state: TrainState, speed: SpeedConfig) -> None:
    """Give a state's networks the form of resolved settings; their weights and names stay as they are."""
    torch.backends.cudnn.benchmark = speed.convolutions == "fastest"
    fuse = speed.dense == "fused"
    networks = [state.generator]
    if state.adversary is not None:
        networks += [state.adversary.discriminator, state.adversary.content]
    for network in networks:
        for module in network.modules():
            if isinstance(module, Conv3x3 | Conv4x4):
                module.fused = fuse
    for module in state.generator.modules():
        if isinstance(module, DenseBlock):
            module.fused = fuse
        if isinstance(module, RRDB) and speed.compile == "blocks":
            module.compile()
    if state.adversary is not None and speed.content == "bf16":
        for module in state.adversary.content.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)  # its normalisation of the input stays in float32
    if speed.allocator == "keep":
        keep_freed_memory()


def build_step(
    state: TrainState, config: Config, bf16: bool, *, ranks: ProcessGroup, speed: SpeedConfig
) -> Step:
    """The step of a state that was prepared by the same settings."""
    from trainer.training.cuda_graph import capture_later
    from trainer.training.objectives import penalised
    from trainer.training.step import looking, train_step

    def step(lr: Tensor, hr: Tensor, stop: bool | Tensor) -> Outcome:
        with fused.explained() if speed.dense == "fused" else contextlib.nullcontext():
            return train_step(state, config, lr, hr, bf16, ranks=ranks, stop=stop)

    def other() -> bool:
        return looking(state, config) or (state.stage == "gan" and penalised(state, config))

    return capture_later(step, other=other) if speed.graph == "step" else step


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free: a step otherwise gets each of its buffers page by page anew.

    In a step of the two-block RRDBNet, batch 4, that is 17 000 page faults (docs/internals/log.md).
    """
    _set_allocator(mmap=2**30, trim=2**31 - 1)


def return_freed_memory() -> None:
    """What glibc's own rules arrive at once a program has freed large blocks (mallopt(3))."""
    _set_allocator(mmap=2**25, trim=2**26)


def _set_allocator(*, mmap: int, trim: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another libc has another allocator
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mmap)
        libc.mallopt(_M_TRIM_THRESHOLD, trim)
