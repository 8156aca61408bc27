"""FLOP of a training step, counted on the live networks without memory and time.

The step runs on fake tensors, which have shapes and no values. Convolutions and dense layers count, 2 FLOP per
multiply-add. Passes that the step skips for frozen weights or a leaf input do not count.
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
from trainer.training.state import build_state

_COUNTED = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


class Flops(msgspec.Struct, frozen=True):
    """GFLOP per pair of patches."""

    step: float
    """The whole training step."""
    generator_forward: float


def count_flops(config: Config, *, stage: Stage, scale: int, hr_size: int) -> Flops:
    """Count one step of a stage on a batch of one pair."""
    config = msgspec.structs.replace(
        config, content=msgspec.structs.replace(config.content, features="random"), precision="fp32"
    )
    with torch.random.fork_rng(devices=[]):
        state = build_state(
            config, stage=stage, scale=scale, device=torch.device("cpu"), content_weights=None
        )
    state.generator.train()
    mode = FakeTensorMode()
    _replace_by_fakes(state.generator, mode)
    if state.adversary is not None:
        _replace_by_fakes(state.adversary.discriminator, mode)
        _replace_by_fakes(state.adversary.content, mode)
    with mode:
        lr = torch.empty(1, 3, hr_size // scale, hr_size // scale)
        hr = torch.empty(1, 3, hr_size, hr_size)
        return Flops(
            step=_count_gflop(
                lambda: STAGE_OBJECTIVES[stage](
                    state, config, lr, hr, False, ranks=SINGLE_PROCESS, diagnostics=None
                )
            ),
            generator_forward=_count_gflop(lambda: state.generator(lr)),
        )


def _replace_by_fakes(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake tensors without gradients."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)


def _count_gflop(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    flop = counter.get_flop_counts()["Global"]
    return float(sum(n for name, n in flop.items() if str(name).split(".")[-1] in _COUNTED)) / 1e9
