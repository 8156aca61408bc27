"""The arithmetic of a training step, counted on the live networks; no memory, no time.

The step itself runs on fake tensors, which have shapes and no values. Counted are
convolutions and dense layers, 2 FLOP for each multiplication and addition; a pass that frozen weights
or a leaf input spare is not counted, because the step does not make it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from trainer.config.schema import Config, Stage
from trainer.distributed.process_group import SINGLE_PROCESS
from trainer.training.objectives import STAGE_OBJECTIVES
from trainer.training.state import TrainState, build_state

_COUNTED = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


class Flop(msgspec.Struct, frozen=True):
    """GFLOP for each pair of patches."""

    step: float
    """The whole training step."""
    generator_forward: float


def flop_of(config: Config, *, stage: Stage, scale: int, hr_size: int) -> Flop:
    """Count one step of a stage for a batch of one pair."""
    offline = msgspec.structs.replace(
        config, content=msgspec.structs.replace(config.content, features="random"), precision="fp32"
    )
    with torch.random.fork_rng(devices=[]):
        state = build_state(
            offline, stage=stage, scale=scale, device=torch.device("cpu"), content_weights=None
        )
    state.generator.train()
    mode = FakeTensorMode()
    _forget_values(state.generator, mode)
    if state.adversary is not None:
        _forget_values(state.adversary.discriminator, mode)
        _forget_values(state.adversary.content, mode)
    with mode:
        lr = torch.empty(1, 3, hr_size // scale, hr_size // scale)
        hr = torch.empty(1, 3, hr_size, hr_size)
        return Flop(
            step=_count(lambda: _step(state, offline, lr, hr)),
            generator_forward=_count(lambda: state.generator(lr)),
        )


def _forget_values(network: nn.Module, mode: FakeTensorMode) -> None:
    """Leave a network nothing but shapes, and no gradients to add to."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)


def _step(state: TrainState, config: Config, lr: torch.Tensor, hr: torch.Tensor) -> object:
    return STAGE_OBJECTIVES[state.stage](
        state, config, lr, hr, False, ranks=SINGLE_PROCESS, diagnostics=None
    )


def _count(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    counted = counter.get_flop_counts()["Global"]
    chosen = [n for name, n in counted.items() if str(name).split(".")[-1] in _COUNTED]
    return float(sum(chosen)) / 1e9
